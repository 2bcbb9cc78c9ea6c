"""What `plan train` says: whether a run fits, what would make it fit, the longest; and wrong input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import Gemma3TextConfig, PhiConfig
from typer.testing import CliRunner, Result

from hf_longctx.cli import main as cli
from hf_longctx.console.units import GIB
from hf_longctx.ops.host import PROCESS_BYTES, host_bytes
from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.train import TrainingRun, TrainPlan, need, plan_train
from hf_longctx.planning.train.changes import FitSearch
from hf_longctx.planning.train.fits import MARGIN, Room, fits, longest
from hf_longctx.planning.train.seconds import step_seconds
from recipes.far.settings import LLAMA_1B

from .models import sizes
from .test_measured import ONE_CARD

H100 = MACHINES["h100"]
SIZES = sizes()
FLAGS = {"fused_norms": "--fused-norms", "tile": "--tile 8192", "offload": "--offload"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plan", "train", *arguments])


def plan(tokens: str, gpus: int = 1, **settings: Any) -> TrainPlan:
    return plan_train(LLAMA_1B, tokens, gpus, **settings)


@pytest.mark.parametrize(
    ("tokens", "settings"),
    [
        ("512k", {"fused_norms": True, "tile": 8192}),
        ("768k", {"tile": 8192, "offload": True}),
        ("1M", {"fused_norms": True, "tile": 8192, "offload": True}),
    ],
)
def test_what_fits_on_one_card(tokens: str, settings: dict[str, Any]) -> None:
    found = plan(tokens, host_memory="128GiB")
    assert found.chosen is not None
    assert found.asked.lacks
    assert found.chosen.flags == " ".join(FLAGS[name] for name in settings)
    assert found.chosen.need.pinned == (64 * GIB if "offload" in settings else 0)
    assert "Does not fit" in found.verdict
    assert found.chosen.flags in found.verdict
    again = plan(tokens, **settings)
    assert again.chosen is again.asked
    assert again.verdict.startswith("Fits")
    assert again.asked.need == found.chosen.need


def test_a_million_tokens_fit_on_two_cards() -> None:
    found = plan("1M", 2, tile=8192, offload=True, host_memory="200GiB")
    assert found.kind == "ring"
    assert not found.asked.lacks
    assert found.asked.time.step < 600


@pytest.mark.parametrize("tokens", ONE_CARD)
def test_never_fits_where_it_does_not(tokens: int) -> None:
    """A card of the measured peak, to the last byte, would not have been enough: there is CUDA beside."""
    assert not fits(SIZES, TrainingRun(tokens=tokens, kind="stock"), Room(int(ONE_CARD[tokens][2] * GIB)))


def test_what_is_said_to_fit_leaves_a_margin() -> None:
    of = TrainingRun(tokens=65536)
    needed = need(SIZES, of).device
    assert fits(SIZES, of, Room(int(needed * MARGIN) + 1))
    assert not fits(SIZES, of, Room(int(needed * MARGIN) - 1))


@pytest.mark.parametrize("settings", [{}, {"tile": 8192, "offload": True}, {"gpus": 2, "kind": "gather"}])
def test_the_longest(settings: dict[str, Any]) -> None:
    of, room = TrainingRun(tokens=1, **settings), Room(80 * 10**9, 256 * GIB)
    most = longest(SIZES, of, room)
    assert most is not None
    assert fits(SIZES, of.but(tokens=most), room)
    assert not fits(SIZES, of.but(tokens=int(most * 1.02)), room)


def test_the_cheapest_is_the_quickest_of_the_fewest_changes() -> None:
    search, of = FitSearch(SIZES, H100, Room(60 * GIB)), TrainingRun(tokens=262144, remat="attention")
    singles = [option for option in search.singles(of) if not option.lacks]
    found = search.cheapest(of)
    assert found is not None
    if singles:
        assert found.time.step == min(option.time.step for option in singles)
    else:
        assert len(found.flags.split("--")) > 2
    assert not found.lacks


def test_more_cards_where_no_setting_helps() -> None:
    found = plan("2M")
    assert found.chosen is not None
    assert "--gpus" in found.chosen.flags
    assert plan("900M").chosen is None


def test_a_host_that_is_too_small_is_named_with_bytes() -> None:
    found = plan("512k", tile=8192, offload=True, host_memory="32GiB")
    assert f"{32 * GIB:,} bytes" in found.asked.lacks
    assert "has 32.0 GiB" in found.asked.lacks
    assert not plan("512k", tile=8192, offload=True, host_memory=32 * GIB + PROCESS_BYTES).asked.lacks


def test_a_container_has_less_than_its_host(tmp_path: Any) -> None:
    (tmp_path / "memory.max").write_text("12345\n")
    assert host_bytes(tmp_path) == 12345
    (tmp_path / "memory.max").write_text("max\n")
    assert host_bytes(tmp_path) != 12345


def test_adapters_need_no_gradients_of_the_model() -> None:
    whole, adapters = (plan("32k", lora=rank).asked for rank in (None, 16))
    assert adapters.need.states + adapters.need.gradients < 0.1 * (whole.need.states + whole.need.gradients)
    assert adapters.time.matmuls < whole.time.matmuls


def test_norms_that_cannot_be_fused() -> None:
    sizes_of_it = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    gemma = Gemma3TextConfig(**sizes_of_it, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    phi = PhiConfig(**sizes_of_it, num_attention_heads=2)
    for config, precision in ((gemma, "bf16"), (gemma, "master"), (phi, "bf16"), (phi, "mixed")):
        with pytest.raises(ValueError, match=f"no RMSNorm that is one kernel in {precision}"):
            plan_train(config, 1024, fused_norms=True, precision=precision)
        assert not any("fused" in one.flags for one in plan_train(config, 1024, precision=precision).options)
    asked = plan_train(gemma, 1024, precision="mixed")
    assert "--fused-norms" in [one.flags for one in asked.options]


def test_ulysses_needs_a_query_head_for_each_card() -> None:
    assert plan("32k", gpus=32, kind="ulysses").asked.run.ranks == 32
    with pytest.raises(ValueError, match="kind='ulysses': 32 query heads cannot be shared by 64 ranks"):
        plan("32k", gpus=64, kind="ulysses")


def test_the_rank_of_adapters() -> None:
    with pytest.raises(ValueError, match="lora=0: expected the rank of adapters, 1 or more"):
        plan("32k", lora=0)


def test_kept_attention_saves_time_and_takes_memory() -> None:
    plain, kept = (TrainingRun(tokens=131072, remat=remat) for remat in (None, "attention"))
    assert step_seconds(SIZES, plain, H100).step / step_seconds(SIZES, kept, H100).step == pytest.approx(
        1.195, abs=0.03
    )
    assert need(SIZES, kept).peak > need(SIZES, plain).peak


def test_shards_hold_a_part_of_the_states() -> None:
    each, shared = (need(SIZES, TrainingRun(tokens=32768, gpus=8, shard=shard)) for shard in (False, True))
    assert shared.states == each.states / 8


def test_the_command_says_it_and_its_exit_code_does() -> None:
    fitting = run("smollm2-135m-instruct", "--tokens", "8k")
    assert fitting.exit_code == 0, fitting.output
    assert "Fits" in fitting.output
    found = run("smollm2-135m-instruct", "--tokens", "4M", "--json", "--remat", "attention")
    assert found.exit_code == 1
    data = json.loads(found.stdout)
    assert data["verdict"].startswith("Does not fit")
    assert data["options"][0]["run"]["remat"] == "attention"
    assert data["chosen"] in [option["flags"] for option in data["options"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tokens", "x"), "tokens='x'"),
        (("--tokens", "8k", "--gpus", "0"), "gpus=0"),
        (("--tokens", "8k", "--tile", "0"), "tile=0"),
        (("--tokens", "8k", "--optimizer", "adam"), "adamw"),
        (("--tokens", "8k", "--precision", "fp8"), "expected one of bf16"),
        (("--tokens", "8k", "--remat", "mlp"), "remat='mlp'"),
        (("--tokens", "8k", "--keep-on-host"), "remat='attention'"),
        (("--tokens", "8k", "--offload", "--no-checkpointing"), "checkpointing=True"),
        (("--tokens", "8k", "--gpu", "cpu"), "memory=None"),
        (("--tokens", "8k", "--gpu", "tpu"), "gpu='tpu'"),
        (("--tokens", "8k", "--kind", "star"), "kind='star'"),
        (("--tokens", "8k", "--gpus", "2", "--kind", "stock"), "stock attention does not"),
    ],
)
def test_wrong_input(arguments: tuple[str, ...], said: str) -> None:
    result = run("smollm2-135m-instruct", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_more_cards_than_tokens() -> None:
    with pytest.raises(ValueError, match=r"gpus=64: 64 GPUs cannot share 10 token\(s\), expected at least one token"):
        plan("10", 64)
    with pytest.raises(ValueError, match="GPUs cannot share"):
        plan("64k", 100_000_000)


def test_more_cards_than_a_host_has() -> None:
    with pytest.raises(ValueError, match=r"gpus=1000: one host was planned, and no host has more than 72 GPUs"):
        plan("64k", 1_000)
    assert run("smollm2-135m-instruct", "--tokens", "1M", "--gpus", "73").exit_code == 2
    assert plan("64k", 1_000, hosts=125).asked.run.gpus == 1_000
    assert any("taken to be in one host" in note for note in plan("64k", 16).notes)
    assert not any("in one host" in note for note in plan("64k", 8).notes)


def test_the_search_for_the_longest_text_looks_at_fewer_tokens_than_cards() -> None:
    assert plan("64k", 8, memory="2GiB").asked.longest_tokens == 0


def test_groups_of_a_degree_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="cannot be split into groups of 3"):
        TrainingRun(tokens=1, gpus=4, degree=3)
