"""`plan`: which method, for this model, this length and this memory, and what it will cost."""

from __future__ import annotations

import dataclasses
import os
import sys
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..console.units import parse_bytes, parse_tokens, show_bytes, show_seconds
from ..hub.configs import extend_config
from ..method import LongContextMethod
from ..near import did_you_mean
from .hardware import Machine, find_machine
from .options import LONGEST, Option, as_read, assess, candidates
from .predict import Job, fits
from .shape import Shape, build, measure, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
PATIENCE_S = 600.0  # a method that sees more is preferred if it reads the text within this time


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer. `chosen` is None where nothing fits or serves; then `remedies` say what would fit."""

    model: str
    tokens: int
    batch: int
    dtype: str
    memory_bytes: int
    machine: Machine
    parameters: int
    trained: int | None
    options: list[Option]
    chosen: Option | None
    why: str
    remedies: list[str]
    notes: list[str]
    config: PreTrainedConfig = dataclasses.field(repr=False)  # the stock one; `hf_longctx.extend_config` takes it

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers in bytes, seconds and tokens, as their names say."""
        plain = _fields(self, ("options", "chosen", "config", "machine"))
        plain["machine"] = dataclasses.asdict(self.machine)
        plain["options"] = [_option_dict(option) for option in self.options]
        plain["chosen"] = None if self.chosen is None else self.chosen.name
        return plain

    def extended_config(self) -> PreTrainedConfig:
        """The model's config with the chosen method in it. ValueError if there is none."""
        if self.chosen is None:
            raise ValueError(f"{self.why} There is no method to write.")
        return extend_config(self.config, *([] if self.chosen.method is None else [self.chosen.method]))


def plan(
    model: str | os.PathLike[str] | PreTrainedConfig,
    length: int | str,
    memory: int | str | None = None,
    *,
    batch: int = 1,
    dtype: str = "bfloat16",
    method: LongContextMethod | None = None,
    gpu: str = "h100",
    tflops: float | None = None,
    bandwidth: float | None = None,
    chunk: int | None = None,
) -> Plan:
    """Predict bytes and seconds of reading `length` tokens, for stock and for each method, and recommend one.

    From the config alone: the model is built on the meta device, where it fills its cache without memory; `notes` say
    so where that is impossible and the cache is a guess. Bytes were within 5 % and seconds within 15 % of what
    was measured with SmolLM2-135M on one H100; other machines and top_k look-ups are not calibrated.

    Args:
        model: A folder, a config.json, a Hub id, a .gguf file, `"smollm2-135m-instruct"` or a config.
        length: Tokens to read in each row: 200000, "128k" (131,072) or "1M" (1,000,000).
        memory: Of the device: bytes, "24GiB" or "24GB". None: all that `gpu` has.
        batch: Rows read at once, of this length each.
        dtype: "bfloat16", "float16" or "float32", of weights and cache.
        method: Look at this one and at stock only. None: at all that can serve.
        gpu: "h100", "h200", "a100", "l4", "rtx4090" or "cpu".
        tflops: Peak TFLOP/s in 16 bits of another machine, instead of `gpu`'s.
        bandwidth: The same for its memory, in GB/s.
        chunk: Tokens read at once (`prefill_chunk_size`). None: the smallest that is nearly as fast as any that fits.
    """
    tokens, machine = parse_tokens(length), find_machine(gpu, tflops, bandwidth)
    memory_bytes = machine.memory_bytes if memory is None else parse_bytes(memory)
    if memory_bytes is None:
        raise ValueError(f"memory=None: {machine.name} has no fixed memory. Say how much there is, such as 16GiB.")
    for name, value in (("batch", batch), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected a whole number, at least 1.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: {did_you_mean(dtype, DTYPES)}expected one of {', '.join(DTYPES)}.")
    config, source = read_config(model)
    config = extend_config(config)  # what it may carry is not asked for
    meta = build(config)
    stock = measure(meta)
    job = Job(tokens=tokens, batch=batch, dtype_bytes=DTYPES[dtype], machine=machine, memory_bytes=memory_bytes)
    if method is None:
        options = candidates(meta, stock, job, chunk)
    else:
        options = [assess(each, meta, stock, job, chunk) for each in (None, method)]
        if options[1].shape is None:
            raise ValueError(options[1].obstacle)
    chosen = _choose(options, asked=method is not None)
    notes = [stock.caveat] if stock.caveat else []
    if getattr(config, "quantization_config", None) is not None:
        notes.append(f"The config's quantization is not counted: weights are those of {dtype}.")
    if machine != find_machine("h100"):
        notes.append("Seconds are calibrated on an H100 only: take them as an order of magnitude.")
    if any(layer.top_k for option in options if option.shape for layer, _ in option.shape.layers):
        notes.append("Seconds of look-ups are calculated from what they read and were not measured.")
    asked = f"{tokens:,} tokens x {batch} in {dtype} within {show_bytes(memory_bytes)}"
    return Plan(
        model=source, tokens=tokens, batch=batch, dtype=dtype, memory_bytes=memory_bytes, machine=machine,
        parameters=stock.parameters, trained=stock.trained, options=options, chosen=chosen,
        why=_why_not(options, asked) if chosen is None else _why(chosen, options, memory_bytes),
        remedies=[] if chosen else _remedies(options, meta, stock, job, chunk), notes=notes, config=config,
    )  # fmt: skip


def _choose(options: list[Option], *, asked: bool) -> Option | None:
    """The first that fits, reaches and reads in time; the quickest of those that fit if none does in time."""
    serving = [o for o in options if o.fits and not o.obstacle and (asked or not o.remark)]
    if asked:  # a method that was named comes before stock
        serving.sort(key=lambda option: option.method is None)
    quick = [o for o in serving if _read_seconds(o) <= PATIENCE_S]
    return (quick or sorted(serving, key=_read_seconds))[0] if serving else None


def _why(chosen: Option, options: list[Option], memory_bytes: int) -> str:
    made = chosen.prediction
    assert made is not None
    graph = made.decode_seconds_graph
    written = f"{1e3 * made.decode_seconds_eager:.0f} ms" + (f" ({1e3 * graph:.1f} ms from a graph)" if graph else "")
    sentences = [
        f"{chosen.name}: it needs {show_bytes(made.peak_bytes)} of {show_bytes(memory_bytes)}, reads in "
        f"{show_seconds(made.read_seconds)} in chunks of {made.chunk:,} and writes a token in {written}.",
        f"A token sees {chosen.sees}.",
    ]
    for other in options[1 : options.index(chosen)]:
        if other.prediction is None or other.obstacle or other.remark:
            continue
        lacks = f"does not fit ({show_bytes(other.prediction.peak_bytes)})"
        slow = f"reads in {show_seconds(other.prediction.read_seconds)}"
        sentences.append(f"{other.name} sees more, but {slow if other.fits else lacks}.")
    stock = options[0]
    if chosen is not stock and stock.obstacle:
        sentences.append(f"The stock model {stock.obstacle}.")
    elif chosen is not stock and not stock.fits:
        sentences.append("The stock model does not fit.")
    return " ".join(sentences)


def _why_not(options: list[Option], asked: str) -> str:
    if any(not option.obstacle for option in options):
        return f"Nothing fits: {asked}."
    return f"Nothing serves {asked}: " + " ".join(f"{o.name}: {o.obstacle.rstrip('.')}." for o in options)


def _remedies(options: list[Option], meta: Any, stock: Shape, job: Job, chunk: int | None) -> list[str]:
    """For each method that could serve this length: its longest text, and the single changes that would make it fit."""
    found = []
    for option in options:
        if option.shape is None or option.obstacle:
            continue
        assert option.prediction is not None
        least = show_bytes(option.prediction.peak_bytes)
        if option.longest_tokens is None:
            most = f"more than {LONGEST:,} tokens fit"
        else:
            most = f"at most {option.longest_tokens:,} tokens fit" if option.longest_tokens else "no text fits"
        changes = [] if option.fits else _changes(option, meta, stock, job, chunk)
        or_else = f", or with {'; or with '.join(changes)}" if changes else ""
        found.append(f"{option.name}: {most}; this one with {least} of memory{or_else}.")
    least_ever = job.calibration.runtime_bytes + stock.parameters * job.dtype_bytes
    if least_ever > job.memory_bytes:
        found.append(f"The weights alone take {show_bytes(least_ever)}, runtime included: choose a smaller model.")
    return found


def _changes(option: Option, meta: Any, stock: Shape, job: Job, chunk: int | None) -> list[str]:
    shape, changes = option.shape, []
    assert shape is not None
    if job.dtype_bytes > 2 and fits(shape, dataclasses.replace(job, dtype_bytes=2), chunk):
        changes.append("--dtype bfloat16")
    # the largest that fits: every smaller one does as well
    rows = range(1, min(job.batch, sys.maxsize))
    batch = bisect_left(rows, True, key=lambda batch: not fits(shape, dataclasses.replace(job, batch=batch), chunk))
    changes += [f"--batch {batch}"] if batch else []
    if chunk is not None:
        smaller = (2**n for n in range(min(chunk, job.tokens).bit_length() - 1, 7, -1))
        size = next((size for size in smaller if fits(shape, job, size)), None)
        changes += [f"--chunk {size}"] if size else []
    for setting, method in () if option.method is None else option.method.smaller():
        smaller_shape = as_read(method, meta, stock)[1]
        for size in dict.fromkeys((chunk, None)):
            if fits(smaller_shape, job, size):
                without = "" if size == chunk else " and no --chunk"
                return [*changes, f"--method {method.name} --set {setting}{without}"]
    return changes


def _read_seconds(option: Option) -> float:
    assert option.prediction is not None
    return option.prediction.read_seconds


def _option_dict(option: Option) -> dict[str, Any]:
    made, method = option.prediction, None if option.method is None else option.method.spec()
    numbers = None if made is None else {**dataclasses.asdict(made), "peak_bytes": made.peak_bytes}
    plain = _fields(option, ("shape", "method", "prediction"))
    return {"name": option.name, "method": method, **plain, "prediction": numbers}


def _fields(value: Any, but: tuple[str, ...]) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in but}
