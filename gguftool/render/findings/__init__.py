"""What `check` finds, as text and as SARIF."""
