"""What differs between the versions of transformers, in one place."""
