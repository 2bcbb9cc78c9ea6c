"""Long-CLIP's experiment in miniature: a CLIP of rendered scenes at 77 tokens, stretched to 248, trained on.

    python -m recipes.long_clip.miniature --minutes 3        # one GPU
    python -m recipes.long_clip.miniature --smoke            # a CPU, under a minute, too little to learn

Beside it, trained with the same captions: the same model with all positions interpolated, as many steps; and one whose
table had 248 rows from birth, four times as many. Web captions reach only that one's first 77 rows, so its first
training is the 77-token model's, step for step. Speeds are measured first, and the steps are set by the minutes.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longctx.clip import FrozenRows, contrastive_loss, long_clip_loss, stretch_positions
from hf_longctx.clip.embed import image_embeddings, text_embeddings
from hf_longctx.evaluation.rows import row
from recipes.benchmarks.reading import finish
from recipes.outs import RESULT_OPTION

from . import scene_captions as captions
from . import tasks
from .scenes import SIDE, draw, render

BASE, STRETCHED, SHORT = 77, 248, 20
QUARTERS = (0.25, 0.5, 1.0)
NAMES = ("Long-CLIP", "interpolated", "native")


@dataclass(frozen=True)
class Size:
    """How large the models and their training are; steps are upper limits where minutes are given."""

    width: int = 256
    heads: int = 4
    layers: int = 4
    batch: int = 1024
    base_steps: int = 2400
    extra_steps: int = 250
    base_rate: float = 1e-3
    extra_rate: float = 3e-4
    components: int = 32
    scenes: int = 1000


SMOKE = Size(width=32, heads=2, layers=2, batch=64, base_steps=6, extra_steps=2, components=16, scenes=50)


def build(size: Size, length: int) -> Any:
    """A CLIPModel with a table of `length` positions, which starts as sinusoids: smooth, as CLIP's trained table is.

    The whole picture is one patch: objects and places are linear in it, soon learned, and leave time for the captions.
    """
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "projection_dim": size.width,
    }
    special = {"bos_token_id": captions.START, "eos_token_id": captions.END, "pad_token_id": captions.PAD}
    words = {"vocab_size": len(captions.WORDS), "max_position_embeddings": length, **special}
    pictures = {"image_size": SIDE, "patch_size": SIDE}
    model = CLIPModel(
        CLIPConfig(text_config={**tower, **words}, vision_config={**tower, **pictures}, projection_dim=size.width)
    )
    with torch.no_grad():
        _table(model, "text").copy_(_sinusoids(length, size.width))
    return model


def with_table(base: Any, size: Size, table: Tensor) -> Any:
    """A copy of `base` with another table of text positions."""
    model = build(size, table.shape[0]).to(base.device)
    old = {id(_table(base, "text"))}
    weights = {name: weight for name, weight in base.named_parameters() if id(weight) not in old}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights.get(name, table))
    return model


def start(name: str, base: Any, size: Size) -> Any:
    """The model that a way of training on long captions starts from."""
    if name == "Long-CLIP":
        return stretch_positions(copy.deepcopy(base))
    table = _table(base, "text").detach()
    if name == "interpolated":
        return with_table(base, size, F.interpolate(table.T[None], STRETCHED, mode="linear", align_corners=True)[0].T)
    rest = _sinusoids(STRETCHED, size.width)[BASE:].to(table)
    return with_table(base, size, torch.cat([table, rest]))


def train(
    model: Any,
    size: Size,
    steps: int,
    *,
    long: bool,
    freeze: bool = False,
    at: Callable[[int], None] = lambda step: None,
    of: int | None = None,
) -> list[float]:
    """Train on scenes made on the fly; a few losses. `at` is called after every step, `of` is the schedule's length."""
    device = model.device
    generator = torch.Generator(device).manual_seed(1 + long)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    rate = size.extra_rate if long else size.base_rate
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    frozen = FrozenRows(model, optimizer) if freeze else None
    of, losses = of or steps, []
    warmup = max(1, min(200, of // 10))
    model.train()
    for step in range(steps):
        share = min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / of))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = _loss(model, size, generator, long, step / of)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(1, of // 10) == 0 or step == steps - 1:
            losses.append(round(float(loss.detach()), 4))
            print(f"  step {step + 1} of {steps}: loss {losses[-1]}", flush=True)
        at(step + 1)
    if frozen is not None:
        frozen.remove()
    return losses


def _loss(model: Any, size: Size, generator: torch.Generator, long: bool, done: float) -> Tensor:
    scenes = draw(size.batch, generator, alike=4 if long else 1)
    images = image_embeddings(model, 2 * render(scenes, generator) - 1)
    scale = model.logit_scale.exp().clamp(max=100)
    if not long:
        stage = captions.STAGES[sum(done >= until for until in _UNTIL)]
        web = text_embeddings(model, captions.web(scenes, generator, BASE, stage).ids)
        return contrastive_loss(images, web, scale)
    told = text_embeddings(model, captions.long(scenes, generator, STRETCHED).ids)
    short = text_embeddings(model, captions.short(scenes, generator, SHORT, parts=0.25).ids)
    return long_clip_loss(images, told, short, scale, components=size.components).total


def plan(size: Size, minutes: float, device: torch.device) -> tuple[Size, dict[str, float]]:
    """The steps that fit into `minutes`, from a few steps of each kind; two fifths go to the first training."""
    seconds: dict[str, float] = {}
    for long, length in ((False, BASE), (True, STRETCHED)):
        model = build(size, length).to(device)
        begin = [0.0]

        def tick(step: int, begin: list[float] = begin) -> None:
            if step in (_WARM, _WARM + _TIMED):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                begin[0] = time.perf_counter() - (begin[0] if step > _WARM else 0)

        train(model, size, _WARM + _TIMED, long=long, at=tick, of=10_000)
        seconds["long" if long else "web"] = begin[0] / _TIMED
    budget = 60 * minutes - _ASIDE
    # Long-CLIP and interpolated take the extra steps once, native four times
    base = max(1, min(size.base_steps, int(0.4 * budget / seconds["web"])))
    extra = max(1, min(size.extra_steps, int((budget - base * seconds["web"]) / (6 * seconds["long"]))))
    return replace(size, base_steps=base, extra_steps=extra), seconds


def scores(model: Any, size: Size, limit: int) -> dict[str, float]:
    """What the tasks say of a model."""
    model.eval()
    reader, device = tasks.reader_of(model, limit), model.device
    long, short = tasks.long_captions(reader, size.scenes, device), tasks.short_captions(reader, size.scenes, device)
    return {
        "long": long.text_to_image[1],
        "long, image to text": long.image_to_text[1],
        "short": short.text_to_image[1],
        "short, image to text": short.image_to_text[1],
        "zero-shot": tasks.zero_shot(reader, size.scenes, device),
    }


def measure(base: Any, size: Size, seconds: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Train and ask, row by row."""
    begin = time.perf_counter()
    print(f"{size.base_steps} steps at {BASE} tokens", flush=True)
    losses = train(base, size, size.base_steps, long=False)
    stock = scores(base, size, BASE)
    curves = {"77 tokens": tasks.by_position(tasks.reader_of(base.eval(), BASE), size.scenes, base.device)}
    detail = {"losses": losses, "seconds a step": seconds, "steps": size.base_steps, "batch": size.batch}
    yield row(
        f"77 tokens, {size.base_steps:,} steps on web captions: R@1 on long captions, cut at 77",
        stock["long"],
        "",
        beside={"short": stock["short"], "zero-shot": stock["zero-shot"]},
        detail={**stock, **detail},
    )
    after = {position: share for position, share in curves["77 tokens"].items() if position >= 80}
    yield row(
        "77 tokens: R@1 where the deciding sentence starts at token 80 or later (chance is 0.1)",
        max(after.values()),
        "",
        bar="<= 0.2",
        detail={"by position": curves["77 tokens"]},
    )
    results: dict[str, dict[str, float]] = {}
    for name in NAMES:
        steps = size.extra_steps * (4 if name == "native" else 1)
        print(f"{name}: {steps} steps at {STRETCHED} tokens", flush=True)
        model = start(name, base, size)
        path = {0: scores(model, size, STRETCHED)}
        marks = [max(1, int(share * steps)) for share in QUARTERS[:-1]]

        def look(step: int, model: Any = model, path: dict[int, Any] = path, marks: list[int] = marks) -> None:
            if step in marks:
                path[step] = scores(model, size, STRETCHED)
                model.train()

        losses = train(model, size, steps, long=True, freeze=name == "Long-CLIP", at=look)
        results[name] = path[steps] = scores(model, size, STRETCHED)
        reader = tasks.reader_of(model.eval(), STRETCHED)
        curves[name] = tasks.by_position(reader, size.scenes, model.device)
        path_ = {str(step): found for step, found in path.items()}
        now = results[name]
        yield row(
            f"{name}, {steps:,} steps on long captions: R@1 on long captions",
            now["long"],
            "",
            beside={"short": now["short"], "zero-shot": now["zero-shot"]},
            detail={**now, "losses": losses, "by position": curves[name], "path": path_, "steps": steps},
        )
        if name == "Long-CLIP":
            yield from _kept(stock, now, curves[name])
    yield from _beside(stock, results, size)
    print(f"trained and measured in {time.perf_counter() - begin:.0f} s", flush=True)


def _kept(stock: dict[str, float], now: dict[str, float], curve: dict[int, float]) -> Iterator[dict[str, Any]]:
    for task in ("short", "zero-shot"):
        lost = 100 * (stock[task] - now[task])
        yield row(
            f"Long-CLIP: {task}, points lost to the 77-token model", lost, "", bar="<= 1", beside={task: now[task]}
        )
    low, high = min(curve.values()), max(curve.values())
    what = "Long-CLIP: R@1 by position of the deciding sentence to token 200, highest less lowest, points"
    yield row(what, 100 * (high - low), "", bar="<= 10", beside={"lowest": low, "highest": high})


def _beside(stock: dict[str, float], found: dict[str, dict[str, float]], size: Size) -> Iterator[dict[str, Any]]:
    ours = found["Long-CLIP"]["long"]
    what = "R@1 on long captions, Long-CLIP's"
    # an untrained native model finds nothing
    share = ours / found["native"]["long"] if found["native"]["long"] else None
    yield row(f"{what} over native's with 4 times the steps", share, "", bar=">= 0.95")
    yield row(
        f"{what} less interpolated's with equal steps, points",
        100 * (ours - found["interpolated"]["long"]),
        "",
        bar="> 0",
    )
    yield row(f"{what} less the 77-token model's, points", 100 * (ours - stock["long"]), "", bar="> 0")
    yield row(
        "Long-CLIP's steps on long captions over native's", size.extra_steps / (4 * size.extra_steps), "", bar="<= 0.25"
    )


def _table(model: Any, tower: str) -> Any:
    """A tower's positions, wherever this version of transformers keeps them."""
    (table,) = [weight for name, weight in model.named_parameters() if name.startswith(tower) and _POSITIONS in name]
    return table


def _sinusoids(length: int, width: int) -> Tensor:
    angles = torch.arange(length)[:, None] * torch.exp(-math.log(1000) * torch.arange(width // 2) / (width // 2))
    return 0.03 * torch.cat([angles.sin(), angles.cos()], 1)


_POSITIONS = "position_embedding.weight"
_UNTIL = (0.15, 0.4)  # shares of the first training at which its first two stages end
_WARM, _TIMED = 5, 8
_ASIDE = 25.0  # seconds for building, timing and asking


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="how long the whole may take; steps follow")
    parser.add_argument("--base-steps", type=int, help="most steps at 77 tokens")
    parser.add_argument("--extra-steps", type=int, help="most steps at 248 tokens; native takes 4 times as many")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args(arguments)
    if args.minutes is not None and not args.minutes * 60 > _ASIDE:
        parser.error(f"--minutes {args.minutes}: expected more than {_ASIDE / 60:.1f}, or no limit")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    size, seconds = SMOKE if args.smoke else Size(), {}
    given = {"base_steps": args.base_steps, "extra_steps": args.extra_steps}
    size = replace(size, **{name: steps for name, steps in given.items() if steps})
    if args.minutes is not None:
        size, seconds = plan(size, args.minutes, device)
        print(f"{size}, {seconds}", flush=True)
    base = build(size, BASE).to(device)
    if args.smoke and args.out is None:
        parser.error("--smoke needs an --out: what it measures means nothing")
    label = f"CLIP of {sum(weight.numel() for weight in base.parameters()) / 1e6:.1f} M weights on rendered scenes"
    command = "python -m recipes.long_clip.miniature" + (f" --minutes {args.minutes:g}" if args.minutes else "")
    finish(base, measure(base, size, seconds), args, "long_clip", label, command=command)


if __name__ == "__main__":
    main()
