"""Installed engines, driven as child processes within limits: their executables, command lines and logs."""
