"""One file or many shards as one logical model, and the layouts that models are written in."""
