"""Training on texts as long as the memory of one or two cards can hold."""
