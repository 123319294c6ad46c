"""More than one run at a time."""
