"""The page of `plan --html`: numbers for the script, the content without a script, template, style, script."""
