"""Files that are compressed as a whole: `.zbst`, which are zstd or bzip2."""
