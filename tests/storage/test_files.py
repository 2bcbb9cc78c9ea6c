"""Files that runs write: nothing that was there is lost, a place is checked before, one run at a time writes there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.storage import files as outputs
from hf_longctx.storage.files import advice, append_line, check_file, check_folder, claimed, whole_lines, write_whole

HOLD = (
    "import sys, time; from hf_longctx.storage.files import claimed\n"
    "with claimed(sys.argv[1], file=sys.argv[2] == 'file'):\n"
    "    print('held', flush=True); time.sleep(60)"
)


def held(place: Path, kind: str) -> subprocess.Popen[str]:
    """Another process that writes there."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(place), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_second_process_is_refused_until_the_first_ends_even_if_it_was_killed(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("fcntl")
    place = tmp_path / "out"
    process = held(place, kind)
    try:
        with (
            pytest.raises(BlockingIOError, match="another run is writing there now"),
            claimed(place, file=kind == "file"),
        ):
            pass
        assert place.exists(), "the first one's"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with claimed(place, file=kind == "file"), claimed(place, file=kind == "file"):
        pass


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_another_run_is_waited_for_as_long_as_one_says(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("fcntl")
    place, file = tmp_path / "out", kind == "file"
    process = held(place, kind)
    end = threading.Timer(0.3, process.kill)
    try:
        with pytest.raises(BlockingIOError), claimed(place, file=file, wait=0.1):
            pass
        end.start()
        with claimed(place, file=file, wait=60):
            assert process.wait() == -signal.SIGKILL
            found: list[Any] = []
            other = threading.Thread(target=lambda: found.append(in_turn(place, file)))
            other.start()
            time.sleep(0.2)
            assert not found, "a thread waits as well"
        other.join(60)
        assert found == [True]
    finally:
        end.cancel()
        process.kill()
        process.wait()


def in_turn(place: Path, file: bool) -> bool:
    with claimed(place, file=file, wait=60):
        return place.exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_still_empty_is_removed_and_all_else_stays(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    place = tmp_path / "a" / "b" / "c"
    with claimed(place, file=kind == "file"):
        assert place.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    with claimed(place, file=kind == "file"):
        (place / "mine" if kind == "folder" else place).write_text("mine")
    (kept,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept.read_text() == "mine"
    with claimed(place, file=kind == "file"):
        pass
    assert kept.read_text() == "mine"


def test_without_locks_a_word_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outputs, "fcntl", None)
    for place, file in ((tmp_path / "folder", False), (tmp_path / "file", True)):
        caplog.clear()
        with claimed(place, file=file):
            pass
        assert "start no second run" in caplog.text
        assert not place.exists()


REASONS = {
    errno.ENOSPC: "Free some space",
    errno.EACCES: "You may not write there",
    errno.EROFS: "can only be read",
    errno.ENOTDIR: "a file in the way",
    errno.EIO: "Choose another folder",
}


@pytest.mark.parametrize("number", REASONS)
def test_a_folder_that_cannot_be_written_says_why_and_no_other_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=REASONS[number]) as error:
        check_folder(tmp_path / "a" / "b")
    assert error.value.errno == number
    assert os.strerror(number) in str(error.value)
    assert not list(tmp_path.iterdir())
    others = [words for other, words in REASONS.items() if other != number and other != errno.EIO]
    assert not any(words in str(error.value) for words in others)
    monkeypatch.setattr("builtins.open", refuse)
    for write in (lambda: write_whole(tmp_path / "f", b""), lambda: append_line(tmp_path / "f", {}, "cells")):
        with pytest.raises(OSError, match=REASONS[number]):
            write()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; expected the name of a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(OSError, match="a file in the way"):
        check_folder(tmp_path / "file" / "sub")
    with pytest.raises(OSError, match="a file in the way"):
        check_file(tmp_path / "file" / "sub" / "costs.json")
    assert (tmp_path / "file").read_text() == "mine"
    assert "another folder" in advice(OSError(errno.EIO, "x"))


def test_a_folder_where_a_file_is_to_be_written_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"--out .*folder is a folder; expected the name of a file to write"):
        check_file(tmp_path / "folder", "--out")
    check_file(tmp_path / "new" / "costs.json")
    assert [one.name for one in tmp_path.rglob("*")] == ["folder"]


def test_a_half_line_of_ours_is_left_out_and_one_of_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"key": 1}\n{"ke')
    assert whole_lines(path, '{"key": ') == ([{"key": 1}], 11)
    for text in (b"a note without an end of line", b'{"key": 1}\nmine'):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="unknown beginning"):
            whole_lines(path, '{"key": ')


@pytest.mark.parametrize("when", ["removed", "made", "link"])
def test_an_empty_file_is_left_by_nobody_whoever_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its last owner removes it, or another makes it, just before it is opened; or it is a link to none."""
    place, stock, calls = tmp_path / "rows.json", os.open, list[int]()
    if when == "removed":
        place.touch()
    if when == "link":
        place.symlink_to(tmp_path / "target.json")

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith(".json"):
            calls.append(flags)
            if when == "removed" and len(calls) == 1:
                place.unlink()
            if when == "made" and len(calls) == 2:
                os.close(stock(place, os.O_CREAT | os.O_RDWR))
        return stock(path, flags, *more, **named)

    monkeypatch.setattr(outputs.os, "open", opened)
    with claimed(place, file=True):
        assert place.exists()
    if when == "made":  # another's, who removes it by itself
        assert (place.exists(), len(calls)) == (True, 3)
    elif when == "removed":
        assert not list(tmp_path.iterdir())
