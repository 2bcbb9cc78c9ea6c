"""What passes on which release of transformers, peft and accelerate: records, and what documents say of them."""
