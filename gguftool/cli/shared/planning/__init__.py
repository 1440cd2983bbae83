"""Options of `plan`: speeds, and the command that its page repeats."""
