"""Files of published benchmarks, one module each: `read(path)` gives samples, `METRICS` are the official scores.

A module that is added to this folder is a benchmark at once: `hf-longctx eval --task NAME:FILE`.
"""
