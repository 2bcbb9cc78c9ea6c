"""recipes/long_dpo/ as its README says it. What needs TRL is skipped without it."""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_longctx import RopeScaling, extend_config
from hf_longctx.evaluation.tasks.long_output import FAULTS, NEVER_ENDS
from hf_longctx.storage.files import write_json_lines
from hf_longctx.upstream.installing import install_extra
from recipes.by_trl import check_trl
from recipes.long_dpo import compare, pairs, smoke, train
from recipes.long_writer.trainers import trainers
from tests.parallel.test_recipe import launched

HERE = Path(train.__file__).parent


@pytest.mark.parametrize("on_cards", [False, pytest.param(True, marks=[pytest.mark.gpu, pytest.mark.dist])])
def test_smoke(on_cards: bool, tmp_path: Path) -> None:
    """Two processes that share every pair take the losses and gradient norms of TRL alone in one."""
    pytest.importorskip("trl")
    with launched("--smoke", log=tmp_path / "log", on_cards=on_cards, recipe="recipes.long_dpo.train") as process:
        process.wait(500)
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert process.returncode == 0, text
    assert "\nas expected\n" in text


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    smoke.prepare(tmp_path)
    found: dict[str, Any] = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    return found


def test_a_training_in_two_parts_is_one_training(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    # with a reference given, TRL loads none by the name in the config
    monkeypatch.delattr("trl.trainer.dpo_trainer.create_model_from_path")
    config["training"] |= {"lr_scheduler_type": "constant", "gradient_accumulation_steps": 1, "max_steps": 3}
    whole = train.run(config | {"out": str(tmp_path / "whole")})
    first = copy.deepcopy(config)
    first["training"] |= {"max_steps": 2, "save_steps": 1}
    train.run(first)
    with pytest.raises(ValueError, match=r"holds a training\. Go on with --resume"):
        train.run(config)
    assert train.run(config, resume=True)["steps"] == whole["steps"]
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"model", "report.json", "run"}
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["after"] == whole["after"]
    assert type(AutoModelForCausalLM.from_pretrained(out / "model")).__module__.startswith("transformers.")
    assert "hf_longctx" not in (out / "model/config.json").read_text(encoding="utf-8")


def test_long_pairs_are_left_out_and_none_is_cut(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    rows = pairs.read_pairs(config["pairs"])
    tokens = [pairs.tokens_of(row, tokenizer) for row in rows]
    for row, n in zip(rows, tokens, strict=True):
        ids = [tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=False) for side in pairs.SIDES[1:]]
        assert n == max(map(len, ids))
        assert all(one[-1] == tokenizer.eos_token_id for one in ids), "both answers are taught to their end"
    middle = sorted(tokens)[len(tokens) // 2]
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        kept = train.fitting(rows, tokenizer, config | {"longest": middle}, 2048)
    assert kept == [row for row, n in zip(rows, tokens, strict=True) if n <= middle]
    assert f"{len(rows) - len(kept)} of {len(rows)} pairs have more than {middle} tokens" in caplog.text
    with pytest.raises(ValueError, match="longest: 4096: expected 1 to the 2048 positions of"):
        train.fitting(rows, tokenizer, config | {"longest": 4096}, 2048)
    with pytest.raises(ValueError, match="longest: 0: expected 1 token, or more"):
        train.fitting(rows, tokenizer, config | {"longest": 0}, None)


def test_a_scaled_model_takes_pairs_beyond_its_trained_length(config: dict[str, Any], tmp_path: Path) -> None:
    """As `hf-longctx extend --method rope_scaling` writes it: its config keeps the trained length."""
    pytest.importorskip("trl")
    trained = AutoModelForCausalLM.from_pretrained(config["model"]).config.max_position_embeddings
    longest = config | {"longest": 2 * trained, "training": config["training"] | {"max_steps": 1}}
    with pytest.raises(ValueError, match=f"expected 1 to the {trained} positions"):
        train.run(longest | {"out": str(tmp_path / "stock")})
    extended = extend_config(config["model"], RopeScaling(type="yarn", factor=4.0))
    model = AutoModelForCausalLM.from_pretrained(config["model"], config=extended)
    model.save_pretrained(tmp_path / "extended")
    AutoTokenizer.from_pretrained(config["model"]).save_pretrained(tmp_path / "extended")
    found = train.run(longest | {"model": str(tmp_path / "extended"), "out": str(tmp_path / "out")})
    assert len(found["steps"]) == 1


def test_pairs_by_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs.jsonl"
    pairs.main(["--out", str(out), "--tokens", "60", "--number", "40", "--tasks", "ledger,numbered"])
    assert "Wrote 40 pairs" in capsys.readouterr().out
    # TRL's template would end what never ends
    assert {json.loads(line)["fault"] for line in out.read_text().splitlines()} == set(FAULTS) - {NEVER_ENDS}
    assert [set(row) for row in pairs.read_pairs(out)] == [set(pairs.SIDES)] * 40
    for words, why in ((["--tokens", "0"], "whole number of tokens"), (["--tasks", "lodger"], "Did you mean 'ledger'")):
        with pytest.raises(SystemExit):
            pairs.main(["--out", str(tmp_path / "no.jsonl"), *words])
        assert why in capsys.readouterr().err
    assert not (tmp_path / "no.jsonl").exists()


CHAT = '[{"role": "user", "content": "x"}]'
BAD = {
    '{"prompt": "a", "chosen": "b"}': "line 1: the key 'rejected' is missing",
    '{"prompt": "a", "chosen": "b", "rejected": 3}': "'rejected' is 3; expected a text, or messages",
    '{"prompt": "a", "chosen": "b", "rejected": []}': "expected a text, or messages",
    '{"prompt": "a", "chosen": "b", "rejected": [{"role": "user"}]}': "expected a text, or messages",
    '{"prompt": "a", "chosen": "b", "rejected": "b"}': "the same, so nothing is preferred",
    '{"prompt": "a", "chosen": " ", "rejected": "b"}': "'chosen' is empty",
    f'{{"prompt": {CHAT}, "chosen": "b", "rejected": "c"}}': "some sides are texts, others messages",
    '{"prompt": "a", "chosen": "b", "rejected": "c"': "line 1: not JSON",
    "[]": "no pairs",
    '{"prompt_ids": [1], "chosen_ids": [2]}': "line 1: the key 'rejected_ids' is missing",
    '{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": []}': r"'rejected_ids' is \[\]; expected token ids, one",
    '{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2.5]}': "expected token ids",
    '{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2]}': "'chosen_ids' and 'rejected_ids' are the same",
    '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}': (
        "line 2: some sides are texts, others messages or tokens"
    ),
}


@pytest.mark.parametrize("line", BAD)
def test_files_that_are_no_pairs(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=BAD[line]):
        pairs.read_pairs(path)


def test_texts_are_pairs_too(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "a b", "chosen": " c d", "rejected": "", "score": 3}\n')
    (found,) = pairs.read_pairs(path)
    assert found == {"prompt": "a b", "chosen": " c d", "rejected": ""}
    assert pairs.tokens_of(found, AutoTokenizer.from_pretrained(config["model"])) == 4 + 1


def test_tokens_are_trained_on_as_texts_are(config: dict[str, Any], tmp_path: Path) -> None:
    """The tokens that TRL makes of texts give the same steps; without the end token they would be others."""
    pytest.importorskip("trl")
    config["training"] |= {"max_steps": 2}
    texts = train.run(config | {"out": str(tmp_path / "texts")})
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    rows = []
    for pair in pairs.read_pairs(config["pairs"]):
        prompt = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=False)
        whole = [tokenizer.apply_chat_template(pair["prompt"] + pair[s], return_dict=False) for s in pairs.SIDES[1:]]
        sides = [prompt, *(ids[len(prompt) :] for ids in whole)]
        rows.append(dict(zip(pairs.IDS, sides, strict=True)))
    write_json_lines(tmp_path / "ids.jsonl", rows)
    assert [pairs.tokens_of(row, tokenizer) for row in rows] == [
        pairs.tokens_of(pair, tokenizer) for pair in pairs.read_pairs(config["pairs"])
    ]
    found = train.run(config | {"pairs": str(tmp_path / "ids.jsonl"), "out": str(tmp_path / "ids")})
    assert found == texts
    unended = [row | {"rejected_ids": row["rejected_ids"][:-1]} for row in rows]
    write_json_lines(tmp_path / "unended.jsonl", unended)
    other = train.run(config | {"pairs": str(tmp_path / "unended.jsonl"), "out": str(tmp_path / "unended")})
    assert other["before"]["logps/chosen"] == texts["before"]["logps/chosen"]
    assert other["before"]["logps/rejected"] > texts["before"]["logps/rejected"]
    rows[2]["rejected_ids"] = [len(tokenizer)]
    with pytest.raises(ValueError, match=rf"pair 3 has token {len(tokenizer)}, and .* has {len(tokenizer)} tokens"):
        train.fitting(rows, tokenizer, config, 2048)


def test_what_the_recipe_refuses(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="degrees: not settings of this recipe"):
        train.run(config | {"degrees": 2})
    with pytest.raises(ValueError, match="the config lacks longest"):
        train.run({name: value for name, value in config.items() if name != "longest"})
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.jsonl\. python -m recipes\.long_dpo\.pairs"):
        train.run(config | {"pairs": "nowhere.jsonl"})
    with pytest.raises(ValueError, match="training: max_length: the recipe sets these itself"):
        train.arguments(object, config | {"training": {"max_length": 1024}}, Path("out"), max_length=None)
    pytest.importorskip("trl")
    with pytest.raises(ValueError, match="held_out: 10 of 10 pairs"):
        train.run(config | {"held_out": 10})


@pytest.mark.parametrize("absent", ["trl", "datasets"])
def test_without_trl(absent: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is read, in an environment that has neither and in one that has both."""
    monkeypatch.setitem(sys.modules, absent, None)
    train.needed.cache_clear()
    trainers.cache_clear()
    for needs in (check_trl, train.needed, trainers, lambda: train.run(config)):
        with pytest.raises(ImportError, match=re.escape(install_extra("trl"))):
            needs()
    assert not Path(config["out"]).exists()


@pytest.mark.parametrize("name", ["config", "config_32k"])
def test_the_configs_are_for_a_card_too(name: str) -> None:
    found = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    assert found.keys() == {*train.TYPES, "degree"}
    pytest.importorskip("trl")
    made = train.needed().config
    args = made(**train.arguments(made, found, Path("out"), max_length=None))
    assert args.max_length is None
    assert args.learning_rate <= 1e-5


def test_reports_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one: dict[str, Any] = {"processes": 1, "pairs": 2, "left out": 0, "before": {"loss": 0.7}, "after": {"loss": 0.5}}
    one["steps"] = [{"loss": 0.6931, "grad_norm": 2.0}, {"loss": 0.5, "grad_norm": 1.0}]
    two = copy.deepcopy(one) | {"processes": 2}
    two["steps"][1]["loss"] *= 1 + 5e-6

    def compared(*words: str) -> int:
        for name, report in (("one", one), ("two", two)):
            (tmp_path / f"{name}.json").write_text(json.dumps(report))
        return compare.main([str(tmp_path / "one.json"), str(tmp_path / "two.json"), *words])

    assert compared("--out", str(tmp_path / "long_dpo.json")) == 0
    assert "step 2, loss: 0.50000000 on 1, 0.50000250 on 2" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "long_dpo.json").read_text())["rows"]
    assert row["holds"]
    assert row["value"] == pytest.approx(5e-6, rel=1e-3)
    two["steps"][0]["grad_norm"] *= 1.01
    assert compared() == 1
    two["steps"].pop()
    with pytest.raises(SystemExit):
        compared()
    assert "different trainings: 2 and 1 steps" in capsys.readouterr().err
