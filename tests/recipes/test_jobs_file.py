"""The jobs of recipes/jobs/jobs.yaml: their commands, options and variants exist, and they wait for what they read."""

from __future__ import annotations

import fnmatch
import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import pytest

from recipes.extend_context import screen
from recipes.extend_context.settings import DEFAULT, checked, read_config
from recipes.jobs import __main__ as command
from recipes.jobs.job import Job
from recipes.long_writer import settings as writing_settings

ROOT = Path(__file__).resolve().parents[2]


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


def test_a_job_waits_for_those_in_whose_folders_it_reads() -> None:
    """Beside them, on another card, it would begin before there is anything."""
    known, found = command.jobs(out=Path("/run")), dict[str, set[str]]()
    for name, job in known.items():
        read = re.findall(r"/run/([\w?]+)/", job.command)
        found[name] = {other for one in read for other in fnmatch.filter(known, one)} - {name}
        assert found[name] <= {*job.after, *(other for other, _ in job.reads)}, name
    assert found["writer_s_l_alone"] == found["writer_generation"] == {"writer_sft"}
    assert {"writer_screen_1", "writer_screen_3", "writer_sft"} <= found["writer_screen_dpo"]


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
    assert {"control", "all_facts+yarn_cool+rehearsal"} <= names
    for name in names - {screen.BASE, "$best"}:  # what `choose` finds, and has read
        checked(read_config(DEFAULT, name) | {"out": str(tmp_path)})


def test_variants_of_writing_go_together() -> None:
    """Those that jobs give to commands of recipes/long_writer, and those of every case of a job that screens."""
    names = list[str]()
    for job in command.jobs().values():
        if "recipes.long_writer.screen" in job.command:
            found = re.findall(r"\bvariants=(?:\"([^\"]+)\"|(\S+))", job.command)
            assert found
            names += " ".join(quoted or bare for quoted, bare in found).replace(";", "").split()
        if "recipes.long_writer." in job.command:
            names += re.findall(r"\bvariant=([^\s;]+)", job.command)
        lines = (line for line in job.command.splitlines() if "recipes.long_writer." in line)
        names += (name for line in lines for name in re.findall(r"--variant ([^\s$]+)", line))
    assert {"base", "grpo_scored", "fewer_problems+rate_2e-4", "shown_32k", "s_l_alone"} <= set(names)
    assert {"whole+rate_2e-4+dpo_cut+grpo_scored+grpo_cut", "grpo_scored+by_answer"} <= set(names)
    for name in set(names) - {screen.BASE}:
        writing_settings.read_config(writing_settings.DEFAULT, name)


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
