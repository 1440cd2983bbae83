"""Benchmarks: ratios against the tools that users have, measured in one run (docs/benchmarks.md)."""
