"""Give complete part files their final names: one file, or the files of a set together."""
