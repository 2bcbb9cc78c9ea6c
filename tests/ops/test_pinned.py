"""Pinned memory that threads make ahead of need, with CUDA's part in it replaced: there is no GPU."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from hf_longctx.ops import pinned
from hf_longctx.ops.pinned import PinnedBlock, Pool

CARD = torch.device("cuda", 0)
SHAPE = 2, 64, 8, 4  # 8 KiB of bfloat16


class Driver:
    """What CUDA was asked for, in order, and what it refuses."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.registered: dict[int, int] = {}
        self.refuses: set[int] = set()  # by number of the call
        self.asked = 0
        self.lock = threading.Lock()

    def register(self, memory: torch.Tensor, device: torch.device) -> None:
        with self.lock:
            self.asked += 1
            if self.asked in self.refuses:
                raise RuntimeError("out of memory")
            assert memory.data_ptr() not in self.registered
            assert (memory.data_ptr() % pinned.HUGE, memory.dtype, device) == (0, torch.uint8, CARD)
            assert memory.untyped_storage().data_ptr() == memory.data_ptr(), "torch asks of that whether it is pinned"
            assert threading.current_thread() is not threading.main_thread(), "CUDA keeps the last error of a thread"
            self.registered[memory.data_ptr()] = memory.nbytes
            self.calls.append("register")

    def unregister(self, address: int, device: torch.device) -> bool:
        with self.lock:
            del self.registered[address]
            self.calls.append("unregister")
            return True

    def synchronize(self, device: torch.device) -> None:
        self.calls.append("synchronize" if device == CARD else device)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(pinned, "LEAST", 1)
    monkeypatch.setattr(pinned, "can_register", lambda device: device.type == "cuda")
    monkeypatch.setattr(pinned, "register", made.register)
    monkeypatch.setattr(pinned, "unregister", made.unregister)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    yield made
    assert not made.registered, "all is given back"


def test_memory_is_used_again_once_the_device_is_done_and_given_back_once(driver: Driver) -> None:
    pool = Pool()
    tensors = [pool.empty(SHAPE, torch.bfloat16, CARD) for _ in range(3)]
    for n, tensor in enumerate(tensors):
        assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (SHAPE, torch.bfloat16, True)
        tensor.fill_(n)
    assert [tensor.unique().tolist() for tensor in tensors] == [[0], [1], [2]], "each its own memory"
    address, part = tensors[1].data_ptr(), tensors[1][1, :5]
    del tensors[1], tensor
    assert pool.available(part.nbytes) == 0
    assert (part == 1).all(), "a part of it keeps the memory"
    del part
    gc.collect()
    assert pool.available(8192) == 1
    assert driver.calls == ["register"] * 3, "nothing is waited for yet"
    again = pool.empty((64, 32), torch.float32, CARD)  # of as many bytes
    assert again.data_ptr() == address
    assert driver.calls == ["register"] * 3 + ["synchronize"]
    assert (pool.seen.made, pool.seen.again, pool.seen.torchs) == (3 * 8192, 8192, 0)
    pool.give_back()
    assert len(driver.registered) == 3, "all of it is in use"
    del again, tensors
    pool.give_back()
    assert driver.calls[4:] == ["synchronize"] + ["unregister"] * 3
    pool.give_back()
    assert len(driver.calls) == 8


def test_several_threads_make_it_ahead_and_nobody_waits(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    pool, together, own, inside = Pool(), threading.Barrier(pinned.REGISTERING), driver.register, list[int]()

    def at_once(memory: torch.Tensor, device: torch.device) -> None:
        inside.append(1)
        assert len(inside) <= pinned.REGISTERING, "the driver's lock is left to others"
        together.wait(20)
        own(memory, device)
        inside.pop()

    monkeypatch.setattr(pinned, "register", at_once)
    pool.ahead(8192, 4, CARD)
    pool.ahead(8192, 4, CARD)
    assert pool.available(8192) == 4, "what is being made counts"
    assert pool.available(8193) == 0
    assert pool.coming_bytes() <= 4 * 8192
    tensors = [pool.empty(SHAPE, torch.bfloat16, CARD) for _ in range(4)]
    assert driver.calls == ["register"] * 4
    assert pool.available(8192) == pool.coming_bytes() == 0
    pool.ahead(8192, 1, None)
    pool.ahead(8192, 1, torch.device("cpu"))
    assert pool.available(8192) == 0
    del tensors
    pool.give_back()


def test_where_none_can_be_registered_torch_says_what_is_wrong(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, allocate = Pool(), torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "pin_memory" in kwargs:
            raise RuntimeError("CUDA error: out of memory")
        return allocate(*args, **kwargs)

    driver.refuses = {2}
    pool.ahead(8192, 3, CARD)
    tensors: list[torch.Tensor] = []
    with monkeypatch.context() as full:
        full.setattr(torch, "empty", empty)
        with pytest.raises(RuntimeError, match="CUDA error: out of memory"):
            tensors.extend(pool.empty(SHAPE, torch.bfloat16, CARD) for _ in range(3))  # as many as there are
    assert len(tensors) < 3
    while len(tensors) < 3:
        tensors.append(pool.empty(SHAPE, torch.bfloat16, CARD))
    assert len(driver.registered) == 3
    assert len({tensor.data_ptr() for tensor in tensors}) == 3
    driver.refuses = {5}
    tensors.append(pool.empty(SHAPE, torch.bfloat16, CARD))
    assert pool.seen.torchs == 1, "torch could"
    del tensors
    pool.give_back()


def test_what_is_being_made_is_not_lost_by_ctrl_c_and_is_given_back(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, wait = Pool(), Future.result

    def interrupted(self: Any, timeout: Any = None) -> Any:
        raise KeyboardInterrupt

    pool.ahead(8192, 1, CARD)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.empty(SHAPE, torch.bfloat16, CARD)
    monkeypatch.setattr(Future, "result", wait)
    assert pool.available(8192) == 1
    assert pool.empty(SHAPE, torch.bfloat16, CARD).shape == SHAPE
    assert pool.available(8192) == 1
    pool.ahead(8192, 3, CARD)
    pool.give_back()
    assert pool.available(8192) == 0


def test_a_device_that_fails_loses_nothing_and_a_forked_child_gives_nothing_back(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool()
    del (first := [pool.empty(SHAPE, torch.bfloat16, CARD)])[0]
    with monkeypatch.context() as broken:
        broken.setattr(torch.cuda, "synchronize", lambda device: (_ for _ in ()).throw(RuntimeError("illegal access")))
        with pytest.raises(RuntimeError, match="illegal access"):
            pool.empty(SHAPE, torch.bfloat16, CARD)
    assert first == []
    assert pool.available(8192) == 1
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        pool.give_back()
    assert pool.available(8192) == 1
    assert len(driver.registered) == 1
    pool.give_back()


def test_the_device_is_waited_for_that_used_the_memory(driver: Driver) -> None:
    pool, other = Pool(), torch.device("cuda", 1)
    for device in (CARD, other, CARD):
        assert pool.empty(SHAPE, torch.bfloat16, device).shape == SHAPE
    assert driver.calls == ["register", "synchronize", other]
    pool.give_back()


def test_nothing_is_tried_again_where_the_first_memory_cannot_be_registered(driver: Driver) -> None:
    pool, driver.refuses = Pool(), {1}
    for _ in range(3):
        assert pool.empty(SHAPE, torch.bfloat16, CARD).shape == SHAPE
        pool.ahead(8192, 2, CARD)
    assert (driver.asked, pool.available(8192), pool.seen.torchs) == (1, 0, 3)


def test_small_pieces_and_devices_that_cannot_are_torchs(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "LEAST", 8193)
    pool = Pool()
    pool.ahead(8192, 2, CARD)
    for device in (CARD, torch.device("cpu"), None):
        assert pool.empty(SHAPE, torch.bfloat16, device).shape == SHAPE
    assert driver.calls == []
    assert pool.seen.torchs == 3


class Cudart:
    def __init__(self, error: int) -> None:
        self.error, self.calls = error, list[Any]()

    def cudaHostRegister(self, *args: int) -> int:
        self.calls.append(args)
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(address)
        return 0


@pytest.mark.parametrize(("error", "is_pinned"), [(0, True), (0, False), (2, False)])
def test_memory_that_is_not_pinned_afterwards_is_refused(
    error: int, is_pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudart, memory = Cudart(error), torch.zeros(4096, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(device == CARD))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: is_pinned)
    if is_pinned:
        pinned.register(memory, CARD)
    else:
        with pytest.raises(RuntimeError, match=r"4,096 bytes: (error 2|they are not pinned)"):
            pinned.register(memory, CARD)
    at = memory.data_ptr()
    assert cudart.calls == [(at, 4096, 3)] + [at] * (not error and not is_pinned)
    assert pinned.unregister(at, CARD)


@pytest.mark.parametrize(
    ("attributes", "can"),
    [({}, True), ({91: 0}, False), ({99: 0}, False), ({100: 1}, False), (None, False)],
    ids=["all", "other addresses", "no registering", "the host's page tables", "no driver"],
)
def test_a_device_must_read_registered_memory_by_the_hosts_addresses(
    attributes: dict[int, int] | None, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
            assert attributes is not None
            known = {99: 1, 91: 1, 100: 0} | (attributes if device == 1 else {})
            value._obj.value = known[attribute]
            return 0

    def load(name: str) -> Library:
        if attributes is None:
            raise OSError(name)
        return Library()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pinned.can_register.__wrapped__(CARD) is can
    assert not pinned.can_register.__wrapped__(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not pinned.can_register.__wrapped__(CARD), "another maker's, or none"


def test_a_block_begins_at_a_huge_page_and_its_tensors_may_be_of_inference_mode(driver: Driver) -> None:
    pool = Pool()
    with torch.inference_mode():
        tensor = pool.empty((8192,), torch.uint8, CARD)
    assert tensor.is_inference()
    assert not pool.empty((8192,), torch.uint8, CARD).is_inference()
    assert tensor.data_ptr() % pinned.HUGE == 0
    assert isinstance(next(iter(pool._live)), PinnedBlock)
    del tensor
    pool.give_back()
