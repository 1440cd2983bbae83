"""The findings of `check`, as text and as SARIF."""
