"""What the options of `plan` mean: speeds, and the command that is repeated on its page."""
