"""Files that a run writes: checked before it begins, appended by line or moved into place whole, by one run only."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("hf_longctx")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_TRIES = 20  # to make a folder that another process removes
_held: dict[str, int] = {}  # places that this process has claimed, and the thread


def advice(error: OSError) -> str:
    """The remedy for a place that cannot be written."""
    if error.errno in _FULL:
        return "Free some space or choose another folder, then run again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "You may not write there: choose another folder, or change its permissions"
    if error.errno == errno.EROFS:
        return "That file system can only be read: choose another folder"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "There is a file in the way: choose another folder"
    return "Choose another folder"


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file through a temporary one beside it.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file at `path` is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path} ({error.strerror or error}); the old file is unchanged. {advice(error)}",
        ) from error
    finally:
        # It exists only if something failed.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json_lines(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write objects as JSON lines, the whole file or nothing, and give their number."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_whole(path, "".join(lines).encode())
    return len(lines)


def append_line(path: Path, line: Mapping[str, Any], what: str, *, escaped: bool = True) -> None:
    """Add a JSON object to a file of one per line, whole or not at all; `what` is their name in errors.

    Characters beyond ASCII are `escaped`, which keeps even lone surrogates, or written as they are.

    Raises:
        OSError: It cannot be written; the lines before it are unchanged.
    """
    # NaN stays as Python writes it: only Python reads the file.
    data = json.dumps(line, ensure_ascii=escaped).encode("utf-8", "replace") + b"\n"
    size = path.stat().st_size if path.exists() else 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(data)
    except OSError as error:
        # A full disk may have taken half of the line.
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise OSError(
            error.errno,
            f"could not add to {path} ({error.strerror or error}); the {what} before it are kept. {advice(error)}",
        ) from error


def whole_lines(path: Path, *begins: str) -> tuple[list[Any], int]:
    """The JSON values of a file's lines, and its size in bytes without a last line that was cut off in the middle.

    Raises:
        ValueError: A line is no JSON, or an unfinished last one does not begin like any of `begins`.
    """
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    half = data[size:]
    if half and not any(half.startswith(one[: len(half)]) for one in map(str.encode, begins)):
        raise ValueError("its last line has no end and an unknown beginning")
    return [json.loads(line) for line in data.split(b"\n")[:-1]], size


def drop_half_line(path: Path, size: int) -> None:
    """Cut a file to the size of its whole lines: the next line would be glued to an unfinished one."""
    if path.exists() and size < path.stat().st_size:
        os.truncate(path, size)


def check_folder(folder: str | os.PathLike[str], name: str = "out") -> None:
    """Try to create this folder and write into it, then remove it again.

    Raises:
        ValueError: It is a file.
        OSError: It cannot be written, with the reason.
    """
    _remove(_make(Path(folder), name))


def check_file(file: str | os.PathLike[str], name: str = "out") -> None:
    """Check that a file can be written at the end of a long run: it is no folder, and its folder can be written.

    Raises:
        ValueError: It is a folder, or its folder is a file.
        OSError: The folder cannot be written, with the reason.
    """
    if Path(file).is_dir():
        raise ValueError(f"{_named(Path(file), name)} is a folder; expected the name of a file to write.")
    check_folder(Path(file).parent, name)


@contextlib.contextmanager
def claimed(
    path: str | os.PathLike[str], name: str = "out", *, file: bool = False, wait: float = 0.0
) -> Iterator[None]:
    """Inside the block, no other process that claims this folder (or file) writes there.

    The lock is the operating system's: a process that is killed leaves none. Claiming again in the block is allowed.
    Folders and files that were created for it are removed if they are still empty at the end.

    Args:
        path: The folder, or the file.
        name: Of the option that names it, for errors.
        file: It is a file.
        wait: Seconds that another run may hold it.

    Raises:
        ValueError: The folder, or that of the file, is a file.
        OSError: It cannot be written, with the reason; or another run has claimed it.
    """
    place = Path(path)
    key = os.path.realpath(place)
    if _held.get(key) == threading.get_ident():
        yield
        return
    made = _make(place.parent if file else place, name)
    handle, new = None, False
    try:
        handle, new = _locked(place, key, name, file, time.monotonic() + wait)
        yield
    finally:
        if _held.get(key) == threading.get_ident():
            del _held[key]
            if new and place.is_file() and not place.stat().st_size:
                place.unlink()
        # before the lock is released: the next owner must not get a place that is then removed
        _remove(made)
        if handle is not None:
            os.close(handle)


def _locked(place: Path, key: str, name: str, file: bool, until: float) -> tuple[int | None, bool]:
    """An open handle that holds the lock, None if the system has no such locks; and whether the file is a new one.

    `until` is as `time.monotonic` tells it.
    """
    taken = BlockingIOError(
        errno.EWOULDBLOCK,
        f"{_named(place, name)}: another run is writing there now. Wait until it ends, or choose another place",
    )
    while True:
        if key in _held:  # another thread
            _be_patient(until, taken)
            continue
        if fcntl is None and not file:
            return _unlocked(place, key, "this system has no such locks"), False
        try:
            handle, new = _opened(place, file)
        except FileExistsError:  # another run has made it in the meantime
            continue
        except OSError as error:
            raise _cannot(place, name, error) from error
        why = _lock(handle)
        if why is None and _is_at(handle, place):
            _held[key] = threading.get_ident()
            if file:
                _check_room(handle, place, name)
            return handle, new
        os.close(handle)
        if why in _TAKEN:
            _be_patient(until, taken)
            continue
        if why is not None:  # a network's file system, or Windows
            return _unlocked(place, key, os.strerror(why)), new
        if not file:  # its last owner has removed it in the meantime
            _make(place, name)


def _opened(place: Path, file: bool) -> tuple[int, bool]:
    """A handle, and whether the file was made for it: only who makes it knows, as its last owner may remove it now."""
    if not file:  # the folder itself is locked: no lock file is left in it
        return os.open(place, os.O_RDONLY), False
    with contextlib.suppress(FileNotFoundError):
        return os.open(place, os.O_RDWR), False
    # of a link to a file that is not there, the file
    return os.open(os.path.realpath(place), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True


def _be_patient(until: float, taken: BlockingIOError) -> None:
    """Let some time pass; the error, if it is over."""
    if time.monotonic() >= until:
        raise taken
    time.sleep(0.02)


def _lock(handle: int) -> int | None:
    """The error number if the lock is not available; None if this process has it now."""
    if fcntl is None:
        return errno.ENOSYS
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.EIO
    return None


def _is_at(handle: int, place: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(place))
    return False


def _check_room(handle: int, place: Path, name: str) -> None:
    """Try to write into an empty file, as into a folder."""
    if not stat.S_ISREG(os.fstat(handle).st_mode) or os.fstat(handle).st_size:
        return
    try:
        os.write(handle, bytes(4096))
    except OSError as error:
        raise _cannot(place, name, error) from error
    finally:
        os.ftruncate(handle, 0)


def _unlocked(place: Path, key: str, why: str) -> int | None:
    logger.warning("%s cannot be locked (%s): start no second run that writes there.", place, why)
    _held[key] = threading.get_ident()
    return None


def _make(folder: Path, name: str) -> list[Path]:
    """Make a folder and try to write into it; returns the folders that were created, the innermost first."""
    if _is_no_folder(folder):
        raise ValueError(f"{_named(folder, name)} is a file; expected the name of a folder to write into.")
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for tries in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))
            break
        except OSError as error:
            # another process may have made the same folder, and removed it while it was still empty
            if isinstance(error, (FileNotFoundError, FileExistsError)) and tries:
                time.sleep(0.001)
                continue
            _remove(missing)
            raise _cannot(folder, name, error) from error
    return missing


def _is_no_folder(path: Path) -> bool:
    """Is something else there? Asked once: another process may make or remove a folder between two questions."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _remove(made: list[Path]) -> None:
    for one in made:
        with contextlib.suppress(OSError):
            one.rmdir()  # not if something is in it


def _named(place: Path, name: str) -> str:
    if not name:  # argparse names the option itself
        return repr(str(place))
    return f"{name} {place}" if name.startswith("-") else f"{name}={str(place)!r}"


def _cannot(place: Path, name: str, error: OSError) -> OSError:
    return OSError(error.errno, f"{_named(place, name)} cannot be written ({error.strerror or error}). {advice(error)}")
