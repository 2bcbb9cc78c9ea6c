"""Attention as arithmetic: masks, positions, branches, their kernels and how their parts are merged."""
