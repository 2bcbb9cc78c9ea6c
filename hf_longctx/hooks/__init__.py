"""The inert hooks that `import hf_longctx` puts into transformers and PEFT, each with its reason, in tables."""
