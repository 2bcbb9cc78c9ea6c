"""How far a model reads: perplexity by context, passkey retrieval, and the files and figures they end in."""
