"""What commands share: options, the console, writing, signals."""
