"""How attention as arithmetic gets into a transformers layer: state, subclass, forward, inputs, self-check."""
