"""recipes/jobs/: commands on cards, several at once, until the time is over."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
import time
from pathlib import Path

import pytest
import torch

from recipes.cards import visible
from recipes.extend_context import screen
from recipes.extend_context.settings import DEFAULT, checked, read_config
from recipes.jobs import __main__ as command
from recipes.jobs.schedule import Job, Schedule

ROOT = Path(__file__).resolve().parents[2]
QUICK = 0.02


def schedule(out: Path, *jobs: Job, cards: int = 2, seconds: float = 30.0) -> Schedule:
    return Schedule(jobs, out, [str(card) for card in range(cards)], seconds, sleep=QUICK)


def stamped(name: str, cards: int = 1, seconds: float = 1.5, writes: tuple[str, ...] = ()) -> Job:
    """Writes when it began and ended, and which cards it saw."""
    lines = f"date +%s.%N; echo $CUDA_VISIBLE_DEVICES; sleep {seconds}; date +%s.%N"
    return Job(name, lines, cards, seconds, writes)


def told(out: Path, name: str) -> tuple[float, str, float]:
    begun, cards, ended = (out / f"{name}.log").read_text(encoding="utf-8").split("\n")[:3]
    return float(begun), cards, float(ended)


def test_jobs_share_the_cards(tmp_path: Path) -> None:
    jobs = [stamped("a"), stamped("b"), stamped("both", cards=2), stamped("c")]
    states = schedule(tmp_path, *jobs).run()
    assert [(state.status, state.rc) for state in states.values()] == [("ended", 0)] * 4
    seen = {job.name: told(tmp_path, job.name) for job in jobs}
    assert {seen["a"][1], seen["b"][1]} == {"0", "1"}
    assert max(seen["a"][0], seen["b"][0]) < min(seen["a"][2], seen["b"][2]), "at once"
    assert seen["both"][1] == "0,1"
    for name in ("a", "b", "c"):
        assert seen["both"][0] >= seen[name][2] or seen["both"][2] <= seen[name][0], "two cards, alone"


def test_what_a_job_writes_is_copied(tmp_path: Path) -> None:
    file, nothing = tmp_path / "results/rows.json", tmp_path / "nothing"
    file.parent.mkdir()
    never = Job("never", "true", 1, 0.1, (str(nothing),))
    other = Job("other", f"echo {{}} > {file}", 1, 0.1, (str(file), str(nothing)))
    states = schedule(tmp_path / "out", never, other).run()
    assert states["never"].copied == ()
    assert states["other"].copied == ("rows.json",)
    assert (tmp_path / "out/rows.json").read_text(encoding="utf-8") == "{}\n"


def test_the_clock_ends_a_job_with_all_that_it_has_started(tmp_path: Path) -> None:
    """A shell that ignores an interrupt, and a child of it in the background."""
    child = tmp_path / "child"
    long = Job("long", f"trap '' INT; (sleep 60 & echo $! > {child}; wait)", 1, 0.1, ())
    never = Job("never", "true", 1, 50.0, ())
    fails = Job("fails", "echo no room; exit 7", 1, 0.1, ())
    begun = time.monotonic()
    states = schedule(tmp_path / "out", long, never, fails, seconds=1.0).run()
    assert time.monotonic() - begun < 25
    assert [state.status for state in states.values()] == ["stopped", "not begun", "ended"]
    assert states["fails"].rc == 7
    pid = int(child.read_text(encoding="utf-8"))
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text(encoding="utf-8").split()[2] == "Z"
    found = json.loads((tmp_path / "out/state.json").read_text(encoding="utf-8"))
    assert found["jobs"]["never"]["status"] == "not begun"


def test_a_detached_run_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(ROOT)
    file, out = tmp_path / "jobs.yaml", tmp_path / "out"
    file.write_text("slow: {command: 'sleep 2; echo done here', cards: 1, seconds: 2, writes: []}\n", encoding="utf-8")
    words = ["run", "slow", "--file", str(file), "--out", str(out), "--seconds", "60", "--detach"]
    assert command.main(words) == 0
    assert command.main(["wait", str(out), "--seconds", "0"]) == command.RUNS_ON
    assert command.main(["wait", str(out), "--seconds", "60"]) == 0
    assert re.search(r"slow +ended +0 +\d+ +2 +done here", capsys.readouterr().out)
    found = json.loads((out / "state.json").read_text(encoding="utf-8"))
    found["jobs"]["slow"]["status"], found["pid"] = "running", 2**30
    (out / "state.json").write_text(json.dumps(found), encoding="utf-8")
    assert command.main(["wait", str(out), "--seconds", "0"]) == 2
    assert "has died" in capsys.readouterr().err


def test_cards_are_those_that_the_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    assert visible() == ["2", "GPU-5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible() == ["0", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "pack", "--out", "x", "--seconds", "1"], "there is no job 'pack'. Did you mean packs?"),
        (["run", "packs", "--out", "x", "--seconds", "1"], "packs: more GPUs than the 1 that there are here."),
        (["wait", "nothing-here", "--seconds", "0"], "there is no run in nothing-here."),
    ],
)
def test_what_it_refuses(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("job", command.jobs().values(), ids=lambda job: job.name)
def test_every_command_exists_with_its_options(job: Job) -> None:
    """Module, files and options; an option that a module does not name would fail on the card only."""
    for line in job.command.splitlines():
        words = shlex.split(line)
        assert all((ROOT / word).exists() for word in words if word.startswith(("tests/", "recipes/accelerate/")))
        modules = [after for word, after in itertools.pairwise(words) if word == "-m"]
        module = next((name for name in modules if name.startswith("recipes.")), None)
        if module is not None:
            source = source_of(module)
            for option in words[words.index(module) :]:
                assert not option.startswith("--") or f'"{option}"' in source, option
    for file in job.writes:
        assert Path(file).parent.is_dir()


def test_variants_of_jobs_go_together(tmp_path: Path) -> None:
    """Each that a job joins by + is allowed beside the others, and screens take their other words."""
    names, screens = set(), 0
    for job in command.jobs().values():
        words = shlex.split(job.command.splitlines()[-1])
        if "recipes.extend_context.screen" in words:
            names |= set(screen.parsed(words[3:]).variants)
            screens += 1
        elif "recipes.extend_context.train" in words:
            names |= {words[words.index("--variant") + 1]} if "--variant" in words else set()
    assert screens == sum("recipes.extend_context.screen" in job.command for job in command.jobs().values()) > 0
    assert {"control", "yarn_cool+no_retrieval"} <= names
    for name in names - {screen.BASE}:
        checked(read_config(DEFAULT, name) | {"out": str(tmp_path)})


def source_of(module: str) -> str:
    """The text of a module that is run, and of those that make parsers for others."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    main = importlib.util.find_spec(f"{module}.__main__") if found.submodule_search_locations else found
    assert main is not None, module
    shared = (
        ROOT / "recipes" / name for name in ("benchmarks/reading.py", "shared_batches.py", "long_writer/command.py")
    )
    return "".join(path.read_text(encoding="utf-8") for path in (Path(str(main.origin)), *shared))
