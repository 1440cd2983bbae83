"""Writing operations: pure functions from models to plans; they read, but write nothing."""
