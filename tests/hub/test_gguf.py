"""GGUF files are converted once, whole or not at all, and what the conversion loses is put back."""

from __future__ import annotations

import errno
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_longctx.hub import convert
from hf_longctx.hub.gguf import _fingerprint
from tests.hub.tiny import TEMPLATE, TRAINED, write_gguf


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_weights_are_the_file_s_own(tiny: Path, cache: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(convert(tiny, cache_dir=cache), dtype=torch.float32)
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(tiny).tensors}
    for ours, theirs in (
        (model.model.layers[1].mlp.up_proj.weight, stored["blk.1.ffn_up.weight"]),
        (model.model.embed_tokens.weight, stored["token_embd.weight"]),
    ):
        # bfloat16 keeps eight significant bits.
        torch.testing.assert_close(ours.detach(), torch.tensor(theirs), rtol=2**-8, atol=0)


def test_config_has_no_float32_noise_and_no_leftovers(tiny: Path, cache: Path) -> None:
    config = json.loads((convert(tiny, cache_dir=cache) / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["max_position_embeddings"] == TRAINED
    assert config["dtype"] == "bfloat16"
    assert not config.keys() & {"_model_name_or_path", "_name_or_path", "unk_token_id", "quantization_config"}


def test_generation_config_has_the_special_tokens(tiny: Path, cache: Path) -> None:
    saved = json.loads((convert(tiny, cache_dir=cache) / "generation_config.json").read_text())
    assert {key: saved[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def test_generation_also_ends_at_the_end_of_a_turn(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "turns.gguf", tokenizer__ggml__eot_token_id=0)
    saved = json.loads((convert(file, cache_dir=cache) / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, 0]


def test_tokenizer_keeps_digits_apart_and_the_chat_template(tiny: Path, cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(convert(tiny, cache_dir=cache))
    assert tokenizer.tokenize("\n\n 007")[-3:] == ["0", "0", "7"]
    assert tokenizer.decode(tokenizer("hello , 007's x").input_ids) == "hello , 007's x"
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.model_max_length == TRAINED


def test_plain_gpt2_vocabularies_are_left_as_they_are(tmp_path: Path, cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(convert(write_gguf(tmp_path / "a.gguf", pre="gpt-2"), cache_dir=cache))
    assert tokenizer.tokenize("007") == ["00", "7"]


def test_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre='martian'.*original checkpoint"):
        convert(write_gguf(tmp_path / "a.gguf", pre="martian"), cache_dir=cache)
    assert not list(cache.glob("*"))


def test_second_call_reuses_the_first(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = convert(tiny, cache_dir=cache)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: pytest.fail("converted again"))
    assert convert(tiny, cache_dir=cache) == first
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_files_with_the_same_name_and_size_are_told_apart(tmp_path: Path, cache: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one = write_gguf(tmp_path / "a" / "model.gguf", seed=1)
    two = write_gguf(tmp_path / "b" / "model.gguf", seed=2)
    assert one.stat().st_size == two.stat().st_size
    assert convert(one, cache_dir=cache) != convert(two, cache_dir=cache)


def test_a_file_of_the_same_name_in_the_current_folder_is_not_taken(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    write_gguf(tmp_path / "here" / "model.gguf", seed=1, pre="martian")  # even reading its tokenizer would be refused
    there = write_gguf(tmp_path / "there" / "model.gguf", seed=2)
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(there).tensors}
    monkeypatch.chdir(tmp_path / "here")
    for named in (there, Path("../there/model.gguf")):
        folder = convert(named, cache_dir=cache)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wanted = torch.tensor(stored["token_embd.weight"])
        torch.testing.assert_close(model.model.embed_tokens.weight.detach(), wanted, rtol=2**-8, atol=0)
        assert AutoTokenizer.from_pretrained(folder).tokenize("007") == ["0", "0", "7"]
        for file in folder.glob("*.json"):
            assert str(tmp_path) not in file.read_text(), f"{file.name} tells where the file lay"
    assert len(list(cache.iterdir())) == 1


def test_a_copy_that_an_older_version_kept_is_made_again_and_named(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = convert(tiny, cache_dir=cache)
    first = kept.rename(cache / f"{tiny.stem}-0123456789abcdef")  # as the first version named them
    (first / "config.json").write_text("{}")
    made = convert(tiny, cache_dir=cache)
    assert made != first
    assert json.loads((made / "config.json").read_text())["rope_parameters"]["rope_type"] == "default"
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"{first} was converted by an older version")
    monkeypatch.setattr("hf_longctx.hub.gguf._CONVERSION", 99)
    assert convert(tiny, cache_dir=cache) not in (first, made)


def test_a_setting_changed_in_place_is_noticed_wherever_in_the_head_it_is(tmp_path: Path) -> None:
    content = bytearray(32 << 20)
    (tmp_path / "a.gguf").write_bytes(content)
    before = _fingerprint(tmp_path / "a.gguf")
    for place in (10, 100_000, 3_333_333, 14_999_999):
        changed = content.copy()
        changed[place] = 1
        (tmp_path / "a.gguf").write_bytes(changed)
        assert _fingerprint(tmp_path / "a.gguf") != before, place


def test_without_the_gguf_package_a_command_is_named_that_works(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[gguf\]' in a checkout of hf_longctx, or pip install gguf"):
        convert(tiny)


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9, 0.9999], ids=lambda share: f"{share:.2%} of the file")
def test_truncated_file_is_refused(tiny: Path, cache: Path, share: float) -> None:
    whole = tiny.read_bytes()
    tiny.write_bytes(whole[: max(5, int(len(whole) * share))])
    with pytest.raises(ValueError, match=r"cut short or damaged.*Download it again"):
        convert(tiny, cache_dir=cache)
    assert not list(cache.glob("*"))


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip"], ids=["empty", "two bytes", "a zip"])
def test_other_file_is_refused(tmp_path: Path, cache: Path, content: bytes) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="a GGUF file starts with b'GGUF'"):
        convert(file, cache_dir=cache)


def test_one_part_of_a_split_file_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"one of 3 parts.*--merge"):
        convert(write_gguf(tmp_path / "a.gguf", split__count=3), cache_dir=cache)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        convert(tmp_path / "nope.gguf")


def test_full_disk_leaves_nothing_half_made(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PreTrainedModel, folder: Path, **_: object) -> None:
        (Path(folder) / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(OSError, match=r"No space left.*needs about .* MiB.*another folder"):
            convert(tiny, cache_dir=cache)
    assert not list(cache.glob("*"))
    assert (convert(tiny, cache_dir=cache) / "model.safetensors").is_file()


def test_a_conversion_that_another_one_overtook_gives_the_same_folder(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, overtook = PreTrainedModel.save_pretrained, []

    def slow(self: PreTrainedModel, folder: Path, **kwargs: object) -> None:
        write(self, folder, **kwargs)
        if not overtook:  # while the first is not yet in place, a second one runs from start to end
            overtook.append(True)
            overtook.append(convert(tiny, cache_dir=cache))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", slow)
    found = convert(tiny, cache_dir=cache)
    assert overtook == [True, found]
    assert list(cache.iterdir()) == [found]


def test_threads_convert_once(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, running = PreTrainedModel.save_pretrained, []

    def counted(self: PreTrainedModel, folder: Path, **kwargs: object) -> None:
        running.append(folder)
        write(self, folder, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", counted)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: convert(tiny, cache_dir=cache), range(4)))
    assert len(running) == 1
    assert list(cache.iterdir()) == list(found)
