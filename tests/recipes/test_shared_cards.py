"""recipes/jobs/: several jobs on one card, and jobs that begin with what another one has written so far."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.jobs import __main__ as command
from recipes.jobs.free import Free
from recipes.jobs.job import Job
from recipes.jobs.processes import Processes, limited
from recipes.jobs.schedule import Schedule, State
from tests.recipes.test_jobs import Played, played


def begun(states: dict[str, State]) -> dict[str, tuple[float | None, tuple[str, ...]]]:
    return {name: (state.begun, state.cards) for name, state in states.items()}


def test_parts_of_cards_are_taken_where_most_is_free() -> None:
    free = Free(["0", "1"])
    half, most, whole = (Job(name, "", 1, 1, share=share) for name, share in (("h", 0.5), ("m", 0.7), ("w", 1.0)))
    both = Job("both", "", 2, 1)
    assert free.take(half) == ("0",)
    assert free.take(both) is None
    assert free.take(most) == ("1",)
    assert free.take(half) == ("0",)
    assert free.take(half) is None
    assert free.take(whole) is None
    free.give_back(most, ("1",))
    assert free.take(whole) == ("1",)
    free.give_back(whole, ("1",))
    free.give_back(half, ("0",))
    free.give_back(half, ("0",))
    assert free.take(both) == ("0", "1")


def test_ten_tenths_are_a_card() -> None:
    """Parts are not exact in binary."""
    free, tenth = Free(["0"]), Job("tenth", "", 1, 1, share=0.1)
    assert [free.take(tenth) for _ in range(11)] == [("0",)] * 10 + [None]
    for _ in range(10):
        free.give_back(tenth, ("0",))
    assert free.take(Job("whole", "", 1, 1)) == ("0",)


def test_small_jobs_run_beside_each_other_and_large_ones_alone() -> None:
    jobs = [Job(name, "", 1, 100, share=0.5) for name in "abc"]
    states = played([*jobs, Job("alone", "", 1, 50), Job("both", "", 2, 50)], {"c": 150}, cards=2)
    assert begun(states) == {
        "a": (0, ("0",)),
        "b": (0, ("1",)),
        "c": (0, ("0",)),
        "alone": (100, ("1",)),
        "both": (150, ("0", "1")),
    }


@pytest.mark.parametrize(("cards", "share"), [(1, 0.0), (1, 1.5), (2, 0.5), (1, -1.0)])
def test_a_share_is_a_part_of_one_card(cards: int, share: float) -> None:
    with pytest.raises(ValueError, match=rf"job: share: {share:g} of {cards} cards?: expected a part of one card"):
        Job("job", "", cards, 1, share=share)


def test_a_job_begins_once_the_file_that_it_reads_is_there() -> None:
    first = Job("first", "", 1, 500, share=0.5)
    behind = Job("behind", "", 1, 100, share=0.5, reads=(("first", "model/done"),))
    machine = Played({"first": 500, "behind": 100})
    machine.written["first", "model/done"] = 200
    states = Schedule([behind, first], machine, ["0"], 1000).run()
    assert begun(states)["behind"] == (200, ("0",))
    machine = Played({"first": 500, "behind": 100})  # never written
    states = Schedule([first, behind], machine, ["0"], 1000).run()
    assert states["behind"].status == "not begun"


def test_who_waits_for_a_file_stops_no_job_that_is_late() -> None:
    late = Job("late", "", 1, 100)
    behind = Job("behind", "", 1, 10, reads=(("late", "done"),))
    assert played([late, behind], {"late": 600})["late"].status == "ended"


def test_a_file_that_nobody_writes_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    file, out = tmp_path / "jobs.yaml", tmp_path / "out"
    file.write_text(
        "a: {command: 'mkdir -p {out}; touch {out}/done; sleep 2; date +%s%N', cards: 1, share: 0.5, seconds: 1, "
        "writes: []}\n"
        "b: {command: 'date +%s%N', cards: 1, share: 0.5, seconds: 1, writes: [], reads: {a: done}}\n",
        encoding="utf-8",
    )
    words = ["--file", str(file), "--out", str(out), "--seconds", "60"]
    assert command.main(["run", "b", *words]) == 2
    assert f"b: {out / 'a/done'} is not there. Run a as well, with the same --out." in capsys.readouterr().err
    assert not out.exists()
    assert command.main(["run", "b", "a", *words]) == 0
    ended, first = ((out / f"{name}.log").read_text(encoding="utf-8") for name in "ab")
    assert int(first) < int(ended), "before the other one is over"
    assert command.main(["run", "b", *words]) == 0, "it is there, of the run before"
    file.write_text("b: {command: a, cards: 1, seconds: 1, writes: [], reads: {c: d}}", encoding="utf-8")
    with pytest.raises(ValueError, match="b: reads: c: expected other jobs"):
        command.jobs(file)


def test_a_dry_run_takes_files_to_be_there_half_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(
        "a: {command: a, cards: 1, share: 0.5, seconds: 100, writes: []}\n"
        "b: {command: b, cards: 1, share: 0.5, seconds: 80, writes: [], reads: {a: done}}\n",
        encoding="utf-8",
    )
    words = ["--file", str(file), "--out", str(tmp_path / "out"), "--seconds", "900", "--cards", "1", "--dry-run"]
    assert command.main(["run", "a", "b", *words]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split() for line in told[1:3]] == [["0", "100", "0", "a"], ["50", "130", "0", "b"]]
    assert told[3].endswith("cards are in use for 100% of it."), "a card of two jobs counts once"


TORCH = """
class cuda:
    def is_available(): return True
    def _lazy_call(call): call()
    def set_per_process_memory_fraction(share): print("at most", share)
"""


def test_a_process_holds_no_more_memory_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python that a job starts; with a torch that says what it is told."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/torch.py").write_text(TORCH, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    python = f"{sys.executable} -c 'print(1)'"
    jobs = [Job("part", f'bash -c "{python}"', 1, 1, share=0.3), Job("whole", python, 1, 1)]
    Schedule(jobs, Processes(tmp_path / "out"), ["0"], 30, sleep=0.02).run()
    assert (tmp_path / "out/part.log").read_text(encoding="utf-8") == "at most 0.3\n1\n"
    assert (tmp_path / "out/whole.log").read_text(encoding="utf-8") == "1\n"
    monkeypatch.delenv("PYTHONPATH")
    assert os.pathsep not in limited(jobs[0])["PYTHONPATH"]
    there = subprocess.run([sys.executable, "-c", "import torch"], env=os.environ | limited(jobs[0]), check=True)
    assert there.returncode == 0, "and torch itself, without a GPU"


def test_what_is_timed_has_a_card_alone() -> None:
    """Of the jobs here: seconds of something else on the card would be measured as well."""
    timed = (
        "--parts decoding",
        "--parts large",
        "recipes.far.",
        "lookup_kernels",
        "curriculum",
        ".generation ",
        "_time",
    )
    for job in command.jobs().values():
        if any(word in job.command for word in timed):
            assert job.share == 1, job.name
