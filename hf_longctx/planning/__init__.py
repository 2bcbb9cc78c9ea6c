"""From a config, a length and a memory budget to a method and its numbers, without loading a weight."""
