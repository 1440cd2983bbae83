"""Files that are packed as a whole: `.zbst`, which are zstd or bzip2."""
