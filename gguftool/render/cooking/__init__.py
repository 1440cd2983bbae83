"""Reports about making a quant: mixes, measurements, recipes, importance matrices, and the model card."""
