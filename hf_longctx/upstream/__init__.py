"""What differs between the versions of transformers, in one place: nothing else in the package asks for a version."""
