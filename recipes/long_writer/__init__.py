"""A recipe: a model learns to write long answers, and to end them."""
