"""Train a model on texts longer than its window, and measure what it reads afterwards."""
