"""The page of `plan --html`: numbers for the script, what it shows without one, template, style, script."""
