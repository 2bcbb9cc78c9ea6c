"""Prompts of any length are what encoding each sentence by hand gives, at one length; pipelines take them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_longctx.clip import encode_long_prompt, stretch_positions, stretch_tokenizer
from tests.clip.diffusion import bytes_tokenizer, encoder, projecting
from tests.clip.tiny import clip, siglip_text
from tests.reference import long_align
from tests.tiny import tiny

# one sentence, several, one that is longer than the encoder, none
PROMPTS = ["a red cat", "A cat sits on a 3.5 m mat. The dog! Is it red? 猫が座る。犬", "red cat dog " * 50, ""]
SENTENCES = [
    ["a red cat"],
    ["A cat sits on a 3.5 m mat.", "The dog!", "Is it red?", "猫が座る。", "犬"],
    ["red cat dog " * 25, "red cat dog " * 25],
    [""],
]
# another batch is another shape of matrix product
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_warning_unless_asked_for() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def pair(pad: str = "<|endoftext|>") -> tuple[Any, Any]:
    tokenizer = bytes_tokenizer(pad=pad)
    return tokenizer, encoder(tokenizer)


def both() -> list[tuple[Any, Any]]:
    second = bytes_tokenizer(pad="!")
    return [pair(), (second, projecting(second))]


def by_hand(pairs: list[tuple[Any, Any]], sentences: list[str], length: int = 240) -> Tensor:
    layer = -2 if len(pairs) == 2 else None
    return torch.cat([long_align.encoded(*one, sentences, length, layer) for one in pairs], -1)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_stable_diffusion_gets_each_sentence_as_encoded_by_hand(pad: str) -> None:
    tokenizer, model = pair(pad)
    out = encode_long_prompt((tokenizer, model), PROMPTS)
    assert out.keys() == {"prompt_embeds", "negative_prompt_embeds"}
    assert out["prompt_embeds"].shape == out["negative_prompt_embeds"].shape == (4, 240, 32)
    for found, sentences in zip(out["prompt_embeds"], SENTENCES, strict=True):
        torch.testing.assert_close(found, by_hand([(tokenizer, model)], sentences), **CLOSE)
    for found in out["negative_prompt_embeds"]:
        torch.testing.assert_close(found, by_hand([(tokenizer, model)], [""]), **CLOSE)
    assert not any(tensor.requires_grad for tensor in out.values())


def test_sdxl_gets_both_encoders_and_the_mean_of_the_pooled() -> None:
    pairs = both()
    out = encode_long_prompt(pairs, PROMPTS, "bad cat! dog!")
    assert out["prompt_embeds"].shape == out["negative_prompt_embeds"].shape == (4, 240, 32 + 24)
    tokenizer, model = pairs[1]
    for i, sentences in enumerate(SENTENCES):
        torch.testing.assert_close(out["prompt_embeds"][i], by_hand(pairs, sentences), **CLOSE)
        with torch.no_grad():
            pooled = [model(**tokenizer(one, return_tensors="pt")).text_embeds[0] for one in sentences]
        torch.testing.assert_close(out["pooled_prompt_embeds"][i], torch.stack(pooled).mean(0), **CLOSE)
    torch.testing.assert_close(out["negative_prompt_embeds"][2], by_hand(pairs, ["bad cat!", "dog!"]), **CLOSE)
    assert out["negative_pooled_prompt_embeds"].shape == (4, 16)


def test_each_prompt_is_as_if_alone_and_a_batch_of_many_segments_is_read_in_parts() -> None:
    given = pair()
    many = ["cat. dog! " * 50, *(f"a cat on a mat {i}." for i in range(90))]
    together = encode_long_prompt(given, many, "red", max_tokens=400)["prompt_embeds"]
    for i in (0, 1, 90):
        alone = encode_long_prompt(given, many[i], "red", max_tokens=400)["prompt_embeds"]
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


@pytest.mark.parametrize("caption", ["A cat, 3.5 m; see it. Red? Dog", "cat " * 74 + ". " + "a dog. " * 80, "", "cat!"])
def test_published_splitting_and_cutting_give_the_published_codes_embedding(caption: str) -> None:
    given = pair()
    found = encode_long_prompt(given, caption, splitter="longalign", truncate=True)["prompt_embeds"][0]
    torch.testing.assert_close(found, by_hand([given], long_align.sentences_as_published(caption)), **CLOSE)


def test_length_is_what_is_asked_for_and_nothing_is_cut_unasked() -> None:
    given = pair()
    prompts = ["cat. " * 100, "a dog"]  # 3 tokens a sentence: start, word, mark
    with pytest.raises(ValueError, match=r"^prompt 0 has 300 tokens in 100 segments, more than max_tokens=240\."):
        encode_long_prompt(given, prompts)
    with pytest.raises(ValueError, match=r"^negative prompt 0 has 300 tokens"):
        encode_long_prompt(given, "a dog", prompts[0])
    full = encode_long_prompt(given, prompts, max_tokens=None)
    cut = encode_long_prompt(given, prompts, truncate=True)
    assert full["prompt_embeds"].shape == full["negative_prompt_embeds"].shape == (2, 300, 32)
    assert torch.equal(cut["prompt_embeds"][0], full["prompt_embeds"][0, :240])
    longer_negative = encode_long_prompt(given, "a dog", "cat. " * 100, max_tokens=None)
    assert longer_negative["prompt_embeds"].shape == longer_negative["negative_prompt_embeds"].shape == (1, 300, 32)


def test_merged_sentences_share_a_start_token() -> None:
    given = pair()
    found = encode_long_prompt(given, "A cat. A dog. " + "red " * 70, merge=True)["prompt_embeds"][0]
    torch.testing.assert_close(found, by_hand([given], ["A cat. A dog.", "red " * 70]), **CLOSE)


def test_encoders_that_read_more_get_longer_segments() -> None:
    tokenizer, model = pair()
    stretch_positions(model)
    given = stretch_tokenizer(tokenizer, 248), model
    found = encode_long_prompt(given, "red cat dog " * 50)["prompt_embeds"][0]
    torch.testing.assert_close(found, by_hand([given], ["red cat dog " * 50]), **CLOSE)


def test_layers_are_skipped_as_asked() -> None:
    tokenizer, model = pair()
    found = encode_long_prompt((tokenizer, model), "a red cat", clip_skip=1)["prompt_embeds"][0]
    with torch.no_grad():
        hidden = model(**tokenizer("a red cat", return_tensors="pt"), output_hidden_states=True).hidden_states[-2]
        norm = next(module for name, module in model.named_modules() if name.endswith("final_layer_norm"))
        torch.testing.assert_close(found[:4], norm(hidden)[0, :4], **CLOSE)
    assert torch.equal(
        encode_long_prompt((tokenizer, model), "cat", clip_skip=0)["prompt_embeds"],
        encode_long_prompt((tokenizer, model), "cat")["prompt_embeds"],
    )
    for wrong in (3, -1, True, 1.0):
        with pytest.raises(ValueError, match="expected None or 0 to 2, of 3 layers"):
            encode_long_prompt((tokenizer, model), "cat", clip_skip=wrong)  # type: ignore[arg-type]


def test_offloaded_and_half_precision_encoders() -> None:
    from accelerate import cpu_offload

    pairs = both()
    before = encode_long_prompt(pairs, PROMPTS)
    for _, model in pairs:
        cpu_offload(model, execution_device="cpu")
    assert next(pairs[0][1].parameters()).device.type == "meta"
    after = encode_long_prompt(pairs, PROMPTS)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    tokenizer, model = pair()
    assert encode_long_prompt((tokenizer, model.bfloat16()), PROMPTS)["prompt_embeds"].dtype == torch.bfloat16


def test_weights_in_a_prompt_are_text_and_a_warning_says_so() -> None:
    given = pair()
    with pytest.warns(UserWarning, match=r"'\(red:1.3\)' in a prompt is read as text: weights are not supported"):
        found = encode_long_prompt(given, "a (red:1.3) cat")
    torch.testing.assert_close(found["prompt_embeds"][0], by_hand([given], ["a (red:1.3) cat"]), **CLOSE)
    encode_long_prompt(given, "a cat (red) at 10:30 [dog]: sits")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts": []}, "prompts=.*expected a string or a list of strings, one at least"),
        ({"prompts": [1]}, r"prompts=\[1\]: expected a string"),
        ({"prompts": None}, "prompts=None: expected a string"),
        ({"prompts": "a", "negative_prompts": ["b", "c"]}, "2 negative prompts for 1 prompts"),
        ({"prompts": ["a", "b"], "negative_prompts": ["c", 2]}, "negative_prompts=.*expected a string or"),
        ({"prompts": "a", "max_tokens": 0}, "max_tokens=0: expected a whole number of tokens, the paper's 240"),
        ({"prompts": "a", "max_tokens": True}, "max_tokens=True"),
        ({"prompts": "a", "splitter": "nltk"}, "splitter='nltk'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode_long_prompt(pair(), **settings)


def test_what_is_no_clip_encoder_is_named() -> None:
    from transformers import T5Config, T5EncoderModel

    tokenizer, model = pair()
    t5 = T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    other = bytes_tokenizer()
    for given, says in (
        ((tokenizer, t5), r"T5EncoderModel is no CLIP text encoder \(T5, for example"),
        ((tokenizer, tiny()), "LlamaForCausalLM is no CLIP text encoder"),
        ((tokenizer, clip()), "CLIPModel in place of a text encoder"),
        ([(model, tokenizer)], "CLIPTextModel in place of a tokenizer"),
        ([(tokenizer, None)], "NoneType in place of a text encoder"),
        (model, "CLIPTextModel: expected a Stable Diffusion or SDXL pipeline"),
        ("stabilityai/sdxl", "str: expected a Stable Diffusion"),
        ([tokenizer], "expected a Stable Diffusion"),
        ([], "list: expected a Stable Diffusion"),
        ([(tokenizer, model)] * 2, "CLIPTextModel and CLIPTextModel: expected one CLIP text encoder"),
        ([(tokenizer, projecting(tokenizer))] * 2, "of which the last has a projection"),
        ((_Endless(), model), "does not put a text between a start and an end token"),
        ((_Endless(), siglip_text()), "does not put a text between a start and an end token"),
    ):
        with pytest.raises(ValueError, match=says):
            encode_long_prompt(given, "a cat")
    other.add_tokens(["cat"])
    second = projecting(tokenizer)
    second.resize_token_embeddings(len(other))
    other.add_tokens(["red cat"])
    second.resize_token_embeddings(len(other))
    with pytest.raises(ValueError, match=r"cut the same segments into \[4, 1\] and \[3, 1\] tokens"):
        encode_long_prompt([(tokenizer, model), (other, second)], "a red cat")


class _Endless:
    """A tokenizer that knows no special tokens."""

    model_max_length, bos_token_id, eos_token_id = 64, 96, 97

    def __call__(self, texts: Any, **_: Any) -> Any:
        from transformers import BatchEncoding

        one = isinstance(texts, str)
        ids = torch.ones(1 if one else len(texts), 5, dtype=torch.long)
        return BatchEncoding({"input_ids": [3] if one else ids, "attention_mask": ids})


def test_nothing_of_an_encoder_is_changed() -> None:
    tokenizer, model = pair()
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = tokenizer.padding_side, tokenizer.model_max_length
    tokenizer.padding_side = "left"
    found = encode_long_prompt((tokenizer, model), "a red cat")["prompt_embeds"][0]
    tokenizer.padding_side = "right"
    torch.testing.assert_close(found, by_hand([(tokenizer, model)], ["a red cat"]), **CLOSE)
    assert model.training
    assert (tokenizer.padding_side, tokenizer.model_max_length) == settings
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())


def test_an_encoder_inside_another_module() -> None:
    class Wrapped(nn.Module):
        """As torch.compile and PEFT leave it: another class around the encoder."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    tokenizer, model = pair()
    plain, wrapped = (encode_long_prompt((tokenizer, one), PROMPTS) for one in (model, Wrapped(model)))
    assert torch.equal(plain["prompt_embeds"], wrapped["prompt_embeds"])
