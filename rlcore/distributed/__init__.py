"""Several processes that learn together; nothing here is imported where one learns alone."""
