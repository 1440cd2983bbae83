"""Shared by commands: options, the console, showing, writing, signals."""
