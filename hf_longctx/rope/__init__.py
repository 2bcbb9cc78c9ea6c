"""Rotary frequencies: `rope_parameters` read, scaled and checked."""
