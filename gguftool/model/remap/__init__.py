"""Metadata that follows tensors when layers, experts, tokens or names change."""
