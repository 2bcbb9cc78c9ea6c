"""Which method is recommended, what is said where nothing fits, and what the command does with wrong input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    T5Config,
)
from typer.testing import CliRunner, Result

import hf_longctx
from hf_longctx import CodeLookup, Giraffe, LMInfinite, StreamingLLM, plan
from hf_longctx.cli import main as cli
from hf_longctx.planning.plan import Plan
from tests.planning.test_calibration import SMOLLM2
from tests.tiny import config_of

LLAMA_8B = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=8192,
)  # fmt: skip


# its frequencies change with the length of the text, which methods of ours refuse
MOVING = LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *(str(argument) for argument in arguments)])


def complaint(*arguments: str | Path) -> str:
    """The one line on stderr of a command that failed as it should."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("Error: ")
    return line


def option(found: Plan, name: str) -> Any:
    return next(o for o in found.options if o.name == name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and no weights."""
    SMOLLM2.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# -- what is recommended -----------------------------------------------------------------------------------------------
def test_stock_within_the_trained_length() -> None:
    found = plan(SMOLLM2, "8k", "24GiB")
    assert found.chosen is not None
    assert found.chosen.method is None
    assert found.chosen.whole


def test_scaled_frequencies_a_few_times_the_trained_length() -> None:
    found = plan(SMOLLM2, "32k", "24GiB")
    assert found.chosen is not None
    assert found.chosen.method == hf_longctx.RopeScaling(type="ntk", factor=8)
    assert "breaks down beyond the 8,192 tokens" in found.options[0].obstacle
    assert option(found, "Giraffe()").remark.startswith("meant for fine-tuning")
    assert found.extended_config().rope_parameters["rope_theta"] > 1e5


def test_look_ups_beyond_and_the_plain_window_where_they_take_too_long_or_too_much() -> None:
    far, million, tight = (plan(SMOLLM2, *ask) for ask in (("128k", "80GB"), ("1M", "80GB"), ("1M", "4GiB")))
    assert far.chosen is not None
    assert far.chosen.method == CodeLookup(n_local=8168, read_at=4084)
    assert "looks up 8 others per group of heads" in far.why
    assert not any(option.name.startswith("CodeLookup") for option in plan(SMOLLM2, "8k", "80GB").options)
    for found, why in ((million, "sees more, but reads in"), (tight, "sees more, but does not fit")):
        assert found.chosen is not None
        assert found.chosen.method == LMInfinite(n_local=8192)
        assert why in found.why
        assert "forgets what lies between" in found.why


def test_a_method_asked_for_is_chosen_if_it_fits() -> None:
    found = plan(SMOLLM2, "8k", "24GiB", method=StreamingLLM(window=1000))
    assert [o.name for o in found.options] == ["stock", "StreamingLLM(window=1000)"]
    assert found.chosen is found.options[1]
    trained = plan(SMOLLM2, "16k", "24GiB", method=Giraffe())
    assert trained.chosen is trained.options[1], "asked for by name, so its need of training is known"


def test_a_batch_and_a_wider_dtype_cost_what_they_should() -> None:
    one, four = (option(plan(LLAMA_8B, "8k", "80GB", batch=batch), "stock").prediction for batch in (1, 4))
    assert four.kv_bytes == 4 * one.kv_bytes
    assert four.weight_bytes == one.weight_bytes
    wide = option(plan(LLAMA_8B, "8k", "80GB", dtype="float32"), "stock").prediction
    assert wide.weight_bytes == 2 * one.weight_bytes
    assert wide.kv_bytes == 2 * one.kv_bytes


def test_longest_is_the_last_length_that_fits() -> None:
    found = plan(LLAMA_8B, "8k", "24GiB")
    longest = option(found, "stock").longest_tokens
    assert option(plan(LLAMA_8B, longest, "24GiB"), "stock").fits
    assert not option(plan(LLAMA_8B, int(longest * 1.03), "24GiB"), "stock").fits
    assert option(found, "LMInfinite()").longest_tokens is None


def test_a_slower_machine_takes_longer_and_no_machine_changes_bytes() -> None:
    h100, l4 = (option(plan(LLAMA_8B, "8k", "80GB", gpu=gpu), "stock").prediction for gpu in ("h100", "l4"))
    assert l4.read_seconds > 3 * h100.read_seconds
    assert l4.decode_seconds_graph > 5 * h100.decode_seconds_graph
    chunked = (plan(LLAMA_8B, "8k", "80GB", gpu=gpu, chunk=1024) for gpu in ("h100", "l4"))
    assert len({option(found, "stock").prediction.peak_bytes for found in chunked}) == 1
    own = option(plan(LLAMA_8B, "8k", "80GB", tflops=121, bandwidth=300), "stock").prediction
    assert own.read_seconds == l4.read_seconds


def test_a_method_that_refuses_the_model_says_why_and_the_others_go_on() -> None:
    scaled = LlamaConfig(**{**LLAMA_8B.to_dict(), "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}, "max_position_embeddings": 131072})  # fmt: skip
    found = plan(scaled, "256k", "80GB")
    assert "scaled already" in option(found, "Giraffe()").obstacle
    assert option(found, "Giraffe()").prediction is None
    assert found.trained == 131072
    assert found.chosen is not None
    with pytest.raises(ValueError, match="scaled already"):
        plan(scaled, "256k", "80GB", method=Giraffe())


def test_sliding_layers_keep_their_window_and_stock_pays_for_their_masks() -> None:
    config = config_of("gemma3", num_hidden_layers=3, max_position_embeddings=4096)
    short, long = (option(plan(config, n, "24GiB", chunk=64), "stock").prediction for n in (1000, 2000))
    per_token = 2 * 2 * 8 * 2  # the one full layer: key and value, 2 heads of 8, bf16
    assert long.kv_bytes - short.kv_bytes == 1000 * per_token


def test_what_a_config_carries_already_is_not_counted() -> None:
    keyed = hf_longctx.extend_config(SMOLLM2, LMInfinite(n_local=256))
    assert option(plan(keyed, "8k"), "stock").prediction == option(plan(SMOLLM2, "8k"), "stock").prediction
    assert plan(keyed, "8k").extended_config().hf_longctx is None


# -- where nothing fits ------------------------------------------------------------------------------------------------
def test_a_smaller_window_is_named_where_it_would_fit() -> None:
    found = plan(LLAMA_8B, "1M", "17GB")
    assert found.chosen is None
    assert "1,000,000 tokens" in found.why
    (line,) = [line for line in found.remedies if line.startswith("LMInfinite():")]
    assert "--set n_local=2048" in line
    assert "tokens fit" in line
    assert plan(LLAMA_8B, "1M", "17GB", method=LMInfinite(n_local=2048)).chosen is not None
    assert plan(LLAMA_8B, "1M", "17GB", method=LMInfinite(n_local=4096)).chosen is None
    with pytest.raises(ValueError, match="no method to write"):
        found.extended_config()


def test_other_settings_that_would_fit_are_named() -> None:
    assert any("--dtype bfloat16" in line for line in plan(LLAMA_8B, "64k", "30GB", dtype="float32").remedies)
    rows = plan(LLAMA_8B, "64k", "24GB", batch=16).remedies
    assert any("--batch " in line for line in rows)
    chunked = plan(SMOLLM2, "1M", "1.2GiB", chunk=65536).remedies
    assert any("--chunk 8192" in line or "--chunk 16384" in line for line in chunked)
    hosted = plan(SMOLLM2, "100k", "3GiB", method=LMInfinite(top_k=5, n_local=8192)).remedies
    assert any("keys_on_host=true --set top_k=5" in line for line in hosted)


def test_a_model_too_large_is_told_so() -> None:
    (*_, last) = plan(LLAMA_8B, "1M", "8GB").remedies
    assert last.startswith("The weights alone take 15.5 GiB")


def test_where_nothing_serves_it_is_not_the_memory_that_is_blamed() -> None:
    found = plan(MOVING, "128k", "80GB")  # no method of ours
    assert found.chosen is None
    assert found.why.startswith("Nothing serves 131,072 tokens")
    assert "'dynamic' changes its frequencies" in found.why
    assert found.remedies == []


def test_capped_attention_is_served_beyond_its_trained_length() -> None:
    found = plan(Gemma2Config(), "128k", "80GB")
    assert found.chosen is not None
    assert found.chosen.method == CodeLookup(n_local=8168, read_at=4084)


def test_a_model_that_chooses_its_own_keys_is_refused_by_that_reason() -> None:
    if "deepseek_v32" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no deepseek_v32")
    config = CONFIG_MAPPING["deepseek_v32"](num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"chooses or compresses the keys that a query sees \(sparse attention\)"):
        plan(config, "128k", "80GB", method=LMInfinite(n_local=8192))


# -- the command -------------------------------------------------------------------------------------------------------
def test_command_prints_the_table_within_80_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(folder, "--length", "1M", "--memory", "24GiB")
    assert result.exit_code == 0, result.output
    assert "1,000,000 tokens" in result.stdout
    assert "Recommended: LMInfinite()" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    rows = [line for line in result.stdout.splitlines() if line.startswith(("stock ", "LMInfinite() "))]
    assert all(len(line.split()) >= 8 for line in rows), rows


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120])
@pytest.mark.parametrize("length", ["32k", "1M"])
def test_command_shows_every_name_and_number_whole_at_any_width(
    folder: Path, columns: int, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = plan(str(folder), length, "24GiB")
    lines = run(folder, "--length", length, "--memory", "24GiB").stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("\u2026" in line for line in lines), lines
    whole = " ".join(" ".join(lines).split())  # a name of several words may go on in the next line
    for one in found.options:
        assert one.name in whole
        assert one.prediction is not None
        assert f"{one.prediction.peak_bytes / 2**30:.1f}" in whole
        assert one.longest_tokens is None or f"{one.longest_tokens:,}" in whole
    if columns <= 40:
        starts = [line for line in lines if line in {one.name for one in found.options}]
        assert len(starts) >= len(found.options) - 1, "each name on a line of its own, but for one wider than the page"


def test_command_names_a_method_that_refuses_the_model_at_40_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    MOVING.save_pretrained(tmp_path)
    result = run(tmp_path, "--length", "128k", "--memory", "80GB")
    assert result.exit_code == 1
    assert "LMInfinite()\n  refuses this model\n" in result.stdout


def test_command_json_can_be_read_by_a_program(folder: Path) -> None:
    found = json.loads(run(folder / "config.json", "--length", "128k", "--json", "--gpu", "h200").stdout)
    assert found["tokens"] == 131072
    assert found["machine"]["name"] == "h200"
    assert found["options"][0]["prediction"]["weight_bytes"] == 269030016
    assert {o["name"] for o in found["options"]} >= {"stock", "LMInfinite()"}


def test_command_writes_a_config_with_the_method(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(folder, "--length", "1M", "--memory", "24GiB", "--out", out)
    assert result.exit_code == 0, result.output
    assert AutoConfig.from_pretrained(out).hf_longctx["methods"][0]["n_local"] == 8192
    assert "not empty" in complaint(folder, "--length", "1M", "--memory", "24GiB", "--out", out)
    again = run(folder, "--length", "1M", "--memory", "24GiB", "--out", out, "--force", "--method", "streaming_llm")
    assert again.exit_code == 0, again.output
    assert AutoConfig.from_pretrained(out).hf_longctx["methods"][0]["name"] == "streaming_llm"


def test_command_ends_with_1_and_writes_nothing_where_nothing_fits(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--length", "1M", "--memory", "600MiB", "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "Nothing fits" in result.stdout
    assert not (tmp_path / "out").exists()


def test_command_takes_a_method_with_settings(folder: Path) -> None:
    result = run(folder, "--length", "1M", "--method", "lm_infinite", "--set", "n_local=1024", "--gpu", "L4")
    assert result.exit_code == 0, result.output
    assert "LMInfinite(n_local=1024)" in result.stdout
    assert "calibrated on an H100 only" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--length", "-5"], "expected a whole number of tokens"),
        (["--length", "many"], "'many'"),
        (["--length", "1M", "--memory", "24"], "expected a size with its unit"),
        (["--length", "1M", "--memory", "-24GiB"], "expected a size with its unit"),
        (["--length", "1M", "--gpu", "tpu"], "There are: h100"),
        (["--length", "1M", "--gpu", "cpu"], "no fixed memory"),
        (["--length", "1M", "--tflops", "-1"], "above 0"),
        (["--length", "1M", "--bandwidth", "0"], "above 0"),
        (["--length", "1M", "--batch", "0"], "batch=0"),
        (["--length", "1M", "--chunk", "0"], "chunk=0"),
        (["--length", "1M", "--dtype", "int4"], "dtype='int4'"),
        (["--length", "1M", "--method", "lm_infinit"], "Did you mean 'lm_infinite'"),
        (["--length", "1M", "--set", "n_local=4"], "Add --method"),
        (["--length", "1M", "--method", "rope_scaling"], "factor=None"),
        (["--length", "1M", "--method", "xl3m"], "--method xl3m is a way to generate, not a change of the model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line(folder: Path, options: list[str], words: str) -> None:
    assert words in complaint(folder, *options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"model_type": "no_such_model"}', "cannot be read"),
        ('{"model_type": "llama"}', "lacks hidden_size, num_hidden_layers, num_attention_heads, vocab_size"),
        (json.dumps({**SMOLLM2.to_dict(), "num_attention_heads": "nine"}), "cannot be read"),
        (json.dumps({**SMOLLM2.to_dict(), "hidden_size": -576}), "from this config"),
        (
            json.dumps(MambaConfig().to_dict()),
            "MambaConfig has no num_attention_heads. Expected a causal",
        ),
        (json.dumps(GPT2Config(n_layer=2).to_dict()), "causal language model with RoPE"),
        (json.dumps(BertConfig().to_dict()), "causal language model with RoPE"),
        (json.dumps(T5Config().to_dict()), "causal language model with RoPE"),
    ],
    ids=["broken", "list", "empty", "unknown", "fields", "type", "negative", "mamba", "gpt2", "bert", "t5"],
)
def test_wrong_configs_are_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    for model in (tmp_path, tmp_path / "config.json"):
        assert words in complaint(model, "--length", "1M")


def test_wrong_places_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "folder without a config.json" in complaint(tmp_path, "--length", "1M")
    assert "no such folder" in complaint(tmp_path / "none", "--length", "1M")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "its/base"}')
    adapter = complaint(tmp_path / "adapter", "--length", "1M")
    assert "Give the folder or Hub id of its base model, 'its/base'" in adapter
    from hf_longctx.planning import shape

    monkeypatch.setattr(shape, "hub_problem", lambda repo: "offline")
    assert "the Hub did not give a model" in complaint("owner/name", "--length", "1M")


def test_a_gguf_file_s_header_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    from hf_longctx.hub import convert, gguf, resolve
    from tests.hub.tiny import write_gguf

    file = write_gguf(tmp_path / "tiny.gguf")
    wanted = plan(str(convert(file, cache_dir=tmp_path / "kept")), "1k", "1GiB")
    monkeypatch.setattr(gguf, "cache_home", lambda: tmp_path / "home")
    monkeypatch.setattr(gguf, "_dequantise", lambda *_: pytest.fail("weights were read"))
    found = plan(file, "1k", "1GiB")
    assert found.model == "tiny.gguf, dequantised"
    assert found.options[0].prediction == wanted.options[0].prediction
    assert not (tmp_path / "home").exists()
    # the examples' model where the Hub cannot be reached
    monkeypatch.setattr(resolve, "hub_problem", lambda *_: "offline")
    monkeypatch.setattr(resolve, "_gguf_from_wheel", lambda: file)
    assert plan("smollm2-135m-instruct", "1k", "1GiB").parameters == wanted.parameters


def test_wrong_gguf_files_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.hub.tiny import write_gguf

    assert "no such file" in complaint(tmp_path / "none.gguf", "--length", "1k")
    (tmp_path / "text.gguf").write_text("text")
    assert "starts with b'text'" in complaint(tmp_path / "text.gguf", "--length", "1k")
    file = write_gguf(tmp_path / "cut.gguf")
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cut short or damaged" in complaint(file, "--length", "1k")


def test_planning_logs_no_changes_to_a_model(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plan(str(folder), "1M", "24GiB")
    assert not [record for record in caplog.records if record.name == "hf_longctx"]
