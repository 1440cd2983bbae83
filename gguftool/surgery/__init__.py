"""Models to plans: pure, no disk."""
