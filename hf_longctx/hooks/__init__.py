"""The inert hooks: what `import hf_longctx` puts into transformers and peft, each with its reason, in tables."""
