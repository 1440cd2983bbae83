"""Facts about the engines, each with its source."""
