"""Benchmarks: ratios against what users have, measured in one run (docs/benchmarks.md)."""
