"""More than one run at a time; nothing here is imported where one trains alone."""
