"""Commands that make a quant, from measurements to the file; one module each."""
