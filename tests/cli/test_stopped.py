"""A command that the system stops removes its temporary folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hf_longctx.cli.main import stopped_in_order

WAITS = """
import signal, tempfile, time
from hf_longctx.cli import main
# whoever runs the tests may ignore signals, as nohup does, and children inherit that
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
def methods():
    with tempfile.TemporaryDirectory():
        print("ready", flush=True)
        time.sleep(60)
main.app.registered_commands.clear()
main.app.command("wait")(methods)
main.app(["wait"])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_nothing_is_left_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS], env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert list(tmp_path.iterdir())
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_handlers_of_others_are_kept() -> None:
    def mine(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with stopped_in_order():
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with stopped_in_order(), pytest.raises(SystemExit), tempfile.TemporaryDirectory():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
