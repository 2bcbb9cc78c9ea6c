"""A model on this machine that answers chats."""

from __future__ import annotations

from typing import Any

from .replies import LeftOut, Reply


class LocalModel:
    """Answers chats with `model.generate`, the same for the same seed.

    Args:
        model: What `hf_longctx.hub.load` takes; its tokenizer needs a chat template.
        temperature: Of sampling; 0 is greedy. The model's other settings of sampling stay.
    """

    def __init__(self, model: str, *, temperature: float = 1.0) -> None:
        from hf_longctx.hub import load

        loaded: Any = load(model)
        self.model, self.tokenizer = loaded
        if not self.tokenizer.chat_template:
            raise ValueError(f"--model {model}: its tokenizer has no chat template. Give a model that answers chats.")
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        self.how = {"do_sample": True, "temperature": temperature} if temperature else greedy
        end = self.model.generation_config.eos_token_id
        self.ends = end if isinstance(end, list) else [self.tokenizer.eos_token_id if end is None else end]

    def __call__(self, messages: list[dict[str, str]], max_tokens: int, seed: int) -> Reply:
        """The reply to a chat, of fewer tokens where the context has no room for all; LeftOut below a third of them."""
        import torch

        from hf_longctx import applied
        from hf_longctx.rope.parameters import readable_length

        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt",
            tokenizer_kwargs={"verbose": False},
        ).to(self.model.device)  # fmt: skip
        read = inputs["input_ids"].shape[1]
        context = readable_length(self.model.config.get_text_config(decoder=True))
        room = max_tokens if context is None or applied(self.model) else context - read
        if room < max_tokens / 3:
            raise LeftOut(f"after a request of {read} tokens the model's {context} positions have no room for a reply")
        how = {**self.how, "eos_token_id": self.ends, "pad_token_id": self.ends[0]}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            out = self.model.generate(**inputs, max_new_tokens=min(room, max_tokens), **how)
        ids = out[0, read:]
        return Reply(str(self.tokenizer.decode(ids, skip_special_tokens=True)), ids[-1].item() in self.ends)
