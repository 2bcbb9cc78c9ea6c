"""Benchmarks that the user has as local files, as `Sample`s; one reader a file. Nothing is bundled or downloaded."""
