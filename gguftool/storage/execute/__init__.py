"""How a plan is written: part files, resume, publishing, changes in place."""
