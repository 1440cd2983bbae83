"""End-to-end tests: outputs in the real llama.cpp."""
