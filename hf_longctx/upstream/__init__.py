"""What differs between the versions of transformers, in one place. `anatomy` alone asks for a release too."""
