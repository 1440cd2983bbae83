"""Where bytes come from: local files, HTTP, the Hub, fsspec."""
