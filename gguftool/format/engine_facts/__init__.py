"""What each engine does: data, with its source."""
