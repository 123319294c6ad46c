"""Learning from what people did or preferred instead of from rewards."""
