"""Sources behind a network: HTTP servers, the Hugging Face Hub, and whatever fsspec knows."""
