"""What makes iterations fast: recording, rewriting, compiling and caching what the agents compute. No algorithm."""
