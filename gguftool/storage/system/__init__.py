"""Whatever differs by platform: file I/O, shared blocks, threads."""
