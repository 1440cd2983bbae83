"""Writing a plan: part files, resume, publishing, changes in place."""
