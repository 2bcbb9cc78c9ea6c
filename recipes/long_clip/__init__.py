"""Long-CLIP: train a stretched CLIP on long and short captions, and the paper's experiment in miniature."""
