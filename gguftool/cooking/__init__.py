"""Which type for which tensor: errors, measured damage, and the mix that fits a budget."""
