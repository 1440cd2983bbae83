"""Edit: settings as users write them, special tokens by their text, and the plan."""
