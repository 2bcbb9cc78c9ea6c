"""Reading beyond the trained length without training: stock, RoPE variants, windows, and pairs of them, in one run.

python -m recipes.benchmarks.documents DOCS        # fetches the texts
python -m recipes.benchmarks.zero_shot perplexity|passkey --documents DOCS
python -m recipes.benchmarks.zero_shot best|figure              # from the two result files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_longctx import Giraffe, LMInfinite, LongContextMethod, RopeScaling, StreamingLLM
from hf_longctx.evaluation.passkey import MAX_NEW_TOKENS, passkey_grid
from hf_longctx.evaluation.perplexity import fixed_targets
from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.evaluation.rows import row

from .reading import RESULTS, TRAINED, K, arguments, finish, spans, subject

LENGTHS = [2 * K, 4 * K, 8 * K, 16 * K, 32 * K, 64 * K]
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TIMES = (2, 4, 8)
FIGURE = RESULTS.parents[2] / "docs/figures/zero_shot.png"
TRUNCATED = "stock, last 8k only"
SLOW = "LM-Infinite 8k, top_k=5"  # looks every query up among all keys: its time grows with the square of the length

SETTINGS: dict[str, list[LongContextMethod]] = {
    "stock": [],
    TRUNCATED: [],
    **{
        f"{kind} x{n}": [RopeScaling(type=kind, factor=n)]
        for kind, factors in (("linear", TIMES), ("ntk", (*TIMES, 16)), ("dynamic", (2,)), ("yarn", TIMES))
        for n in factors
    },
    "Giraffe truncated": [Giraffe(basis="truncated")],
    "Giraffe power": [Giraffe(basis="power")],
    "LM-Infinite 8k": [LMInfinite(n_local=8 * K)],
    SLOW: [LMInfinite(n_local=8 * K, top_k=5)],
    "StreamingLLM 8k": [StreamingLLM(window=8 * K - 4)],
    "yarn x2 + LM-Infinite 16k": [RopeScaling(type="yarn", factor=2), LMInfinite(n_local=16 * K)],
    "ntk x4 + StreamingLLM 16k": [RopeScaling(type="ntk", factor=4), StreamingLLM(window=16 * K - 4)],
    "yarn x4 + LM-Infinite 32k": [RopeScaling(type="yarn", factor=4), LMInfinite(n_local=32 * K)],
}


def perplexity(model: Any, documents: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """The last 1,024 tokens of one span of every document after more and more context, read in one piece.

    Dynamic NTK is consistent in one piece only.
    """
    texts = list(spans(documents, LENGTHS[-1], most=1).values())[:5]
    for name, methods in SETTINGS.items():
        lengths = [n for n in LENGTHS if name != SLOW or n <= 16 * K]
        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(method.on(model))
            read = [min(n, TRAINED) for n in lengths] if name == TRUNCATED else lengths
            scores = fixed_targets(model, texts, read, chunk=LENGTHS[-1])
        found = {n: score.perplexity for n, score in zip(lengths, scores, strict=True)}
        detail = {"perplexity": found, "nll": {n: list(s.nll) for n, s in zip(lengths, scores, strict=True)}}
        yield _row(name, found, detail)


def passkey(model: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Prompts at five depths: four each up to 32k, two at 64k, one where reading it takes many seconds."""
    for name, methods in SETTINGS.items():
        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(method.on(model))
            found, counts = {}, {}
            for length in LENGTHS:
                trials = 1 if name == SLOW and length > 16 * K else 4 if length <= 32 * K else 2
                keep = TRAINED - MAX_NEW_TOKENS if name == TRUNCATED else None
                cells = passkey_grid(
                    model,
                    tokenizer,
                    lengths=[length],
                    depths=DEPTHS,
                    trials=trials,
                    batch_size=20 if length <= 32 * K else 10,
                    keep_last=keep if keep and keep < length else None,
                )
                counts[length] = [cell.correct for cell in cells]
                found[length] = sum(counts[length]) / (trials * len(DEPTHS))
                torch.cuda.empty_cache()
        detail = {"passkey": found, "correct by depth": counts, "depths": DEPTHS, "trials at 64k": trials}
        yield _row(name, found, detail)


def best() -> Iterator[dict[str, Any]]:
    """For 2, 4 and 8 times the trained length: the settings that find most, among those that read fluently.

    Fluent: at most 1.5 times the perplexity of the stock model inside its window. A setting whose perplexity was not
    measured at a length stays in, with none shown.
    """
    ppl, key = (_by_name(part, part) for part in ("perplexity", "passkey"))
    limit = 1.5 * ppl["stock"][str(TRAINED)]
    for times in TIMES:
        length = str(times * TRAINED)
        fluent = [name for name in key if ppl[name].get(length, 0.0) <= limit]
        order = sorted(fluent, key=lambda name: (-key[name][length], ppl[name].get(length, 0.0)))
        for place, name in enumerate(order[:3]):
            beside = {"setting": name, "perplexity": ppl[name].get(length)}
            yield row(f"{times} times ({times * 8}k): choice {place + 1}", key[name][length], "", beside=beside)


# what the picture shows; all settings are in the tables of the cards
LINES = {
    FIGURE: ["stock", TRUNCATED, "StreamingLLM 8k", SLOW, "dynamic x2", "ntk x8", "ntk x16"],
}


def curves(names: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Perplexity and passkeys found of some settings, by length: the trained one and those beyond it."""
    return {
        part: {
            name: {int(n): value for n, value in found[name].items() if int(n) >= TRAINED and value is not None}
            for name in names
        }
        for part in ("perplexity", "passkey")
        for found in [_by_name(part, part)]
    }


def figure(path: Path) -> Any:
    """A picture: perplexity and passkeys by length."""
    from hf_longctx.evaluation.report import plots

    found = curves(LINES[path])
    where = json.loads((RESULTS / "zero_shot_perplexity.json").read_text(encoding="utf-8"))
    made = plots.new_figure(9.6, 4.8)
    panels = made.subplots(1, 2)
    titles = ("Perplexity of the same last 1,024 tokens", "Passkeys found")
    for axes, part, title in zip(panels, ("perplexity", "passkey"), titles, strict=True):
        plots.draw_curves(axes, found[part], TRAINED, share=part == "passkey")
        axes.set_title(title, fontsize=11, loc="left")
        axes.get_legend().remove()
    lines = panels[0].get_legend_handles_labels()
    made.legend(*lines, frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    title = f"Beyond the trained length: {where['model']}, on one {where['hardware']}"
    subtitle = "20 prompts a length, 10 at 64k; top_k=5 at 32k and 64k: 5 prompts, and no perplexity"
    plots.figure_title(made, title, subtitle)
    return made


def stamp(path: Path) -> str:
    """What a picture was drawn from, in its metadata: a test draws no pixels."""
    return hashlib.sha256(json.dumps(curves(LINES[path]), sort_keys=True).encode()).hexdigest()


def _by_name(part: str, field: str) -> dict[str, dict[str, float]]:
    path = RESULTS / f"zero_shot_{part}.json"
    if not path.is_file():
        raise SystemExit(f"{path.name} is not there yet: python -m recipes.benchmarks.zero_shot {part} makes it.")
    return {r["what"]: r["detail"][field] for r in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def _row(name: str, found: dict[int, float], detail: dict[str, Any]) -> dict[str, Any]:
    beside = {_k(n): found.get(n) for n in LENGTHS[:-1]}
    why = "not measured: a minute per prompt" if LENGTHS[-1] not in found else None
    return row(name, found.get(LENGTHS[-1]), "", beside=beside, why=why, detail=detail)


def _k(n: int) -> str:
    return f"{n // K}k"


def main() -> None:
    """Run one part and write its result file, or draw the figure."""
    parser = arguments(__doc__)
    parser.add_argument("part", choices=("perplexity", "passkey", "best", "figure"))
    args = parser.parse_args()
    if args.part == "perplexity" and not args.documents:
        parser.error("this part reads texts: python -m recipes.benchmarks.documents DIR, then --documents DIR")
    match args.part:
        case "figure":
            from hf_longctx.evaluation.report import plots

            plots.save(figure(FIGURE), (args.out or FIGURE.parent) / FIGURE.name, metadata={"Source": stamp(FIGURE)})
        case "best":
            source = json.loads((RESULTS / "zero_shot_passkey.json").read_text(encoding="utf-8"))
            kept = {key: source[key] for key in ("commit", "hardware", "versions", "model", "date")}
            rows = list(best())
            write_results(
                RESULTS / "zero_shot_best.json",
                {
                    **result_file(rows, model=""),
                    **kept,
                    "command": "python -m recipes.benchmarks.zero_shot best",
                    "heading": "passkeys found",
                },
            )
        case part:
            model, tokenizer, documents = subject(args)
            rows_ = perplexity(model, documents) if part == "perplexity" else passkey(model, tokenizer)
            finish(model, rows_, args, f"zero_shot_{part}", heading=_k(LENGTHS[-1]))


if __name__ == "__main__":
    main()
