"""Results as the `model-index` of a card's metadata, which the Hub reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .evidence import Evidence

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def eval_results(found: Sequence[Evidence], task: str, folder: str | None) -> list[EvalResult]:
    """One entry for every row that has a value of this model.

    huggingface_hub puts entries of one task, dataset type and dataset config together and keeps the first one's names,
    so what distinguishes a row is in the name and the config of its dataset.

    Args:
        found: The result files.
        task: The pipeline tag.
        folder: The address of the folder that has the copies of the files, None where there is none yet.
    """
    from huggingface_hub import EvalResult

    from ...evaluation.report.rows import rounded

    results = []
    for one in found:
        seen: Counter[str] = Counter()
        for row, value in one.values():
            unit, length = str(row.get("unit") or "value"), (row.get("detail") or {}).get("length")
            what = " ".join(row["what"].split())
            what += (
                f", {length:,} tokens" if isinstance(length, int) and str(length) not in what.replace(",", "") else ""
            )
            seen[what] += 1
            config = what if seen[what] == 1 else f"{what} ({seen[what]})"
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type=one.name,
                    dataset_name=f"{one.name}: {config}",
                    dataset_config=config,
                    metric_type=re.sub(r"[^a-z0-9]+", "_", unit.lower()).strip("_") or "value",
                    metric_name=unit,
                    metric_value=rounded(value),
                    source_name="hf_longctx" if folder else None,
                    source_url=f"{folder}/{one.name}.json" if folder else None,
                )
            )
    return results
