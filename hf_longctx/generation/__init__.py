"""Procedures that `generate` calls, and decoding from CUDA graphs."""
