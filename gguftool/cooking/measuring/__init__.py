"""Measuring: scratch copies, saved logits, runs of the engine, here or on a cluster."""
