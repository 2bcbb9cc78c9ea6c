"""One method per file, one paper per method."""
