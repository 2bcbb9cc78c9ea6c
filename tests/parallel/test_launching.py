"""The files for `accelerate launch` are those that accelerate takes, and their README has the table of the script."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import ParallelismConfig
from accelerate.utils.launch import prepare_multi_gpu_env

from hf_longctx import SequenceParallel, SequenceParallelConfig
from hf_longctx.parallel import Layout
from hf_longctx.parallel.model.choosing import Geometry, across_hosts, choose
from hf_longctx.parallel.model.groups import ranks_inside
from recipes.accelerate import volumes

FOLDER = Path(volumes.__file__).parent
FILES = {  # processes, hosts, FSDP2, degrees of the file's comment or README row
    "one_gpu": (1, 1, False, [1]),
    "ddp": (2, 1, False, [1]),
    "fsdp2": (2, 1, True, [1, 2]),
    "sequence_parallel_2": (2, 1, False, [2]),
    "sequence_parallel_4": (4, 1, False, [4, 2]),
    "sequence_parallel_8": (8, 1, False, [8, 4, 2]),
    "hybrid_2_hosts": (16, 2, True, [16]),
    "multi_node_64": (64, 8, True, [8, 16, 64]),
}


def test_every_file_is_looked_at() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(FILES)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in FILES if f"`{name}.yaml`" not in readme and f"`_{name[-1]}`" not in readme] == []


@pytest.mark.parametrize("name", FILES)
def test_accelerate_takes_the_file(name: str) -> None:
    processes, hosts, sharded, degrees = FILES[name]
    given = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "train.py"])
    with mock.patch("accelerate.utils.launch.is_port_in_use", return_value=False):
        args, _, _ = _validate_launch_command(given)
        environment = prepare_multi_gpu_env(args) if processes > 1 else {}
    assert (args.num_processes, args.num_machines) == (processes, hosts)
    assert args.use_fsdp == sharded
    assert args.multi_gpu == (processes > 1 and not sharded)
    assert not args.use_parallelism_config
    assert not [variable for variable in environment if variable.startswith("PARALLELISM_CONFIG")]
    if processes > 1:
        assert int(args.nproc_per_node) == processes // hosts
    if sharded:
        assert environment["FSDP_VERSION"] == "2"
    if hosts > 1:
        assert (args.nnodes, args.node_rank, args.rdzv_endpoint) == (str(hosts), 0, "10.0.0.1:29500")
    elif processes > 1:
        assert args.master_port != "29500", "several trainings on one host"
    for degree in degrees:
        with mock.patch.dict(os.environ, {"WORLD_SIZE": str(processes)}):
            config: ParallelismConfig = SequenceParallelConfig(SequenceParallel(degree=degree), shard=sharded)
        assert (config.total_size, config.cp_size) == (processes, degree)


def test_the_table_of_the_readme_is_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    volumes.main([])
    assert f"<!-- volumes -->\n\n{capsys.readouterr().out}\n<!-- /volumes -->" in volumes.README.read_text("utf-8")


@pytest.mark.parametrize("degree", [8, 16, 64])
def test_auto_takes_the_kinds_of_the_table(degree: int) -> None:
    with mock.patch.dict(os.environ, {"LOCAL_WORLD_SIZE": str(volumes.HOST)}):
        for model in volumes.MODELS:
            geometry = Geometry(model.heads, model.kv_heads, model.dim, 0, 16)
            assert across_hosts(degree, geometry) == (degree > volumes.HOST)
            if degree > volumes.HOST:
                assert ranks_inside(degree, model.heads) == volumes.HOST
            # all-gather sends as much as a ring
            assert choose(Layout.of([volumes.TOKENS], degree, "all"), geometry)[0] == "ring"
