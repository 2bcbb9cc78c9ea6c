"""Ways to make a cache follow an edit, and the distance of each from a full re-read: a batch of edits at a time."""

# B edits, T following tokens, V vocabulary, N columns
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx.anatomy import attention_layers, find_decoder
from hf_longctx.attention.rerotate import Mover
from hf_longctx.editing.batch import edit_batch
from hf_longctx.editing.echoes import echoes
from hf_longctx.editing.placed import PlacedWork, RowEdit, read_placed
from hf_longctx.editing.plan import REPAIR, compare, make_plan
from hf_longctx.editing.workspace import Span
from hf_longctx.upstream.caches import given_cache

from .pie_texts import Edit

OURS = "hf_longctx"
FOLLOWING = 64  # tokens over which distributions are compared
QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}


@dataclass
class Result:
    """Of one method, edit by edit: mean KL, share of tokens with the same first choice, tokens read again, kind, and
    the number of tokens after the edit."""

    kl: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    def spread(self) -> dict[str, Any]:
        """For the result file: of each number its quantiles over the edits, of the kinds their counts."""
        numbers = {"kl": self.kl, "top1": self.top1, "read again": self.again, "tokens after the edit": self.after}
        found: dict[str, Any] = {
            name: dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))
            for name, values in numbers.items()
        }
        return {"edits": len(self.kl), "kinds": dict(Counter(self.kind)), **found}


@dataclass
class Known:
    """The facts about one edit that only a full read shows: the error of each token's keys and values, and its
    attention to the edit. (N,) each; a rule that uses them is impossible in practice."""

    off: Tensor | None = None
    attends: Tensor | None = None


Choose = Callable[[Edit, Known, list[int]], list[int]]  # the tokens after the edit, in order -> those to read again


def measure(
    model: Any, sample: Iterable[Edit], methods: dict[str, Any], batch: int, attended: bool = False
) -> dict[str, Result]:
    """Each method on each edit."""
    found = {name: Result() for name in methods}
    todo = list(sample)
    for begin in range(0, len(todo), batch):
        _measure(model, todo[begin : begin + batch], methods, attended, found)
    return found


@torch.no_grad()
def _measure(model: Any, group: list[Edit], methods: dict[str, Any], attended: bool, found: dict[str, Result]) -> None:
    old = _old(model, group)
    truth, known = _full_read(model, group, attended)
    if attended:
        _offsets(model, old, truth, group, known)
    lengths = torch.tensor([len(e.new) for e in group], device=model.device)
    logp_BTV, fed_BT = _greedy(model, truth, group, lengths)
    del truth
    for name, method in methods.items():
        cache, again = method(model, view(old), group, known)
        mask, pos = _where(lengths, cache.get_seq_length() + FOLLOWING, FOLLOWING)
        logits = model(
            fed_BT, attention_mask=mask, position_ids=pos, **given_cache(model, cache), use_cache=True
        ).logits
        del cache
        for b, e in enumerate(group):
            p, q = logp_BTV[b], logits[b].float().log_softmax(-1)
            result = found[name]
            result.kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
            result.top1.append(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
            result.again.append(again[b])
            result.kind.append(e.kind)
            result.after.append(len(e.new) - e.spans[0][1])
        del logits


def _old(model: Any, group: list[Edit]) -> DynamicCache:
    """The old texts' caches as one batch; a text of several edits is read once."""
    read: dict[int, DynamicCache] = {}
    for e in group:
        if e.text not in read:
            read[e.text] = DynamicCache()
            model(e.old[None].to(model.device), **given_cache(model, read[e.text]), use_cache=True, logits_to_keep=1)
    return _stacked([read[e.text] for e in group])


def _full_read(model: Any, group: list[Edit], attended: bool) -> tuple[DynamicCache, list[Known]]:
    """The new texts read by the stock model, all but the last token, one after the other."""
    caches, known = [], []
    stock = model.config._attn_implementation
    if attended:
        model.set_attn_implementation("eager")  # the one that shows who attends to whom
    for e in group:
        caches.append(DynamicCache())
        ids = e.new[None, :-1].to(model.device)
        if not attended:
            model(ids, **given_cache(model, caches[-1]), use_cache=True, logits_to_keep=1)
            known.append(Known())
            continue
        weights: Tensor = torch.zeros(ids.shape[1], device=model.device)

        def add(module: Any, args: Any, output: Any, e: Edit = e, weights: Tensor = weights) -> None:
            for start, end in e.spans:
                weights.add_(output[1][0, :, :, max(start - 1, 0) : max(end, start + 1)].sum((0, 2)))

        hooks = [module.register_forward_hook(add) for module in attention_layers(find_decoder(model))]
        model(ids, **given_cache(model, caches[-1]), use_cache=True, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        known.append(Known(attends=weights.cpu()))
    model.set_attn_implementation(stock)
    return _stacked(caches), known


def _stacked(caches: list[DynamicCache]) -> DynamicCache:
    """One row each, padded on the left."""
    width = max(cache.get_seq_length() for cache in caches)
    out = DynamicCache()
    for i in range(len(caches[0].layers)):
        pairs: list[Tensor] = []
        for name in ("keys", "values"):
            rows = [getattr(cache.layers[i], name) for cache in caches]
            like = rows[0]
            pairs.append(like.new_zeros(len(rows), like.shape[1], width, like.shape[3]))
            for r, one in enumerate(rows):
                pairs[-1][r, :, width - one.shape[2] :] = one[0]
        out.update(*pairs, i)
        for cache in {id(cache): cache for cache in caches}.values():  # not everything twice
            cache.layers[i].keys = cache.layers[i].values = None
            cache.layers[i].is_initialized = False
    return out


def _offsets(model: Any, old: DynamicCache, truth: DynamicCache, group: list[Edit], known: list[Known]) -> None:
    """The error of each token's keys and values if they are moved and not read again."""
    moved, _ = _edited(model, view(old), group, known, lambda e, k, after: [])
    width = truth.get_seq_length()
    total = torch.zeros(len(group), width, device=model.device)
    for own, reference in zip(moved.layers, truth.layers, strict=True):
        for a, b in ((own.keys, reference.keys), (own.values, reference.values)):
            total += (a - b).norm(dim=-1).mean(1) / b.norm(dim=-1).mean()
    for r, e in enumerate(group):
        known[r].off = total[r, width - len(e.new) + 1 :].cpu()


def _greedy(model: Any, cache: DynamicCache, group: list[Edit], lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens that follow each text and the tokens that lead to them, decoded greedily."""
    token = torch.stack([e.new[-1:] for e in group]).to(model.device)
    out, fed = [], []
    for t in range(FOLLOWING):
        fed.append(token)
        mask, pos = _where(lengths + t, cache.get_seq_length() + 1, 1)
        logits = model(
            token, attention_mask=mask, position_ids=pos, **given_cache(model, cache), use_cache=True
        ).logits[:, -1]
        out.append(logits.float().log_softmax(-1))
        token = logits.argmax(-1, keepdim=True)
    return torch.stack(out, 1), torch.cat(fed, 1)


def _where(lengths: Tensor, columns: int, new: int) -> tuple[Tensor, Tensor]:
    """Mask and positions of `new` tokens, the first of which is the last one of a text of `lengths`."""
    real = lengths[:, None] - 1 + new
    mask = torch.arange(columns, device=lengths.device) >= columns - real
    return mask.long(), lengths[:, None] - 1 + torch.arange(new, device=lengths.device)


def view(cache: DynamicCache) -> DynamicCache:
    """The same keys and values in layers of their own: an edit puts new ones in place of them."""
    view = DynamicCache()
    for i, layer in enumerate(cache.layers):
        view.update(layer.keys[:, :, :0], layer.values[:, :, :0], i)
        view.layers[i].keys, view.layers[i].values = layer.keys, layer.values
    return view


# -- methods ----------------------------------------------------------------------------------------------------------
def _hf_longctx(repair: int | None) -> Any:
    def method(model: Any, cache: Any, group: list[Edit], known: Any) -> tuple[Any, list[int]]:
        made = edit_batch(model, cache, [e.old for e in group], [e.new for e in group], repair)
        return made.cache, [report.repaired for report in made.reports]

    return method


def _edited(
    model: Any, cache: Any, group: list[Edit], known: list[Known], choose: Choose, move: bool = True
) -> tuple[Any, list[int]]:
    """New tokens are read, and those after them that `choose` names; keys are moved or (naive) left as they are."""
    decoder: Any = find_decoder(model)
    length, rows, again = max(len(e.new) for e in group) - 1, [], []
    for e, about in zip(group, known, strict=True):
        difference = compare(e.old.numpy(), e.new.numpy(), len(e.old))
        plan = make_plan(difference, 0)
        fresh = {i for span in plan.read for i in range(span.start, span.end)}
        after = [i for _, new, n in plan.copies if new for i in range(new, new + n)]
        chosen = [i for i in choose(e, about, after) if i not in fresh]
        again.append(len(chosen))
        spans = [Span(i, i + 1) for i in sorted({*fresh, *chosen})]
        rows.append(RowEdit(plan.copies, spans, e.new[:-1].numpy(), 0, length - len(e.new) + 1))
    mover, works = Mover(decoder), []
    for module in attention_layers(decoder):
        index: Any = module.layer_idx
        how = partial(mover.move, module) if move else lambda keys, start, by: keys
        works.append(PlacedWork(cache.layers[index], rows, length, how))
    read_placed(decoder, works, rows, model.device, 256)
    for module, work in zip(attention_layers(decoder), works, strict=True):
        index = module.layer_idx
        work.commit(cache.layers[index])
    return cache, again


def _rule(choose: Choose) -> Any:
    return lambda model, cache, group, known: _edited(model, cache, group, known, choose)


def _next(e: Edit, n: int, after: list[int]) -> list[int]:
    """The next n tokens after each edit."""
    inside = set(after)
    return sorted({i for _, end in e.spans for i in range(end, end + n) if i in inside})


def _cost(e: Edit, after: list[int]) -> int:
    """As many tokens as the default reads again."""
    return min(REPAIR * len(e.spans), len(after))


def _nearest(e: Edit, known: Known, after: list[int]) -> list[int]:
    near = _next(e, REPAIR, after)
    return [*near, *[i for i in after if i not in set(near)][: _cost(e, after) - len(near)]]


def _spread(e: Edit, known: Known, after: list[int]) -> list[int]:
    n = _cost(e, after)
    return [after[i] for i in torch.linspace(0, len(after) - 1, n).long().tolist()] if after else []


def _halves(e: Edit, known: Known, after: list[int]) -> list[int]:
    near = _next(e, REPAIR // 2, after)
    left = [i for i in after if i not in set(near)]
    n = _cost(e, after) - len(near)
    return [*near, *(left[-n:] if n > 0 else [])]


def _echoes(e: Edit, known: Known, after: list[int]) -> list[int]:
    """Half the next ones, half phrases of the changed text that come again (and more of the next ones)."""
    n = _cost(e, after)
    near = _next(e, REPAIR // 2, after)
    may = np.zeros(len(e.new), bool)
    may[sorted(set(after) - set(near))] = True
    far = echoes(e.new.numpy(), [ids.numpy() for ids in e.changed], may, n - len(near)).tolist()
    rest = [i for i in after if i not in {*near, *far}]
    return [*near, *far, *rest[: n - len(near) - len(far)]]


def _most(name: str, near: int = 0) -> Choose:
    def choose(e: Edit, known: Known, after: list[int]) -> list[int]:
        first = _next(e, near, after)
        score: Tensor = getattr(known, name)
        left = [i for i in after if i not in set(first) and i < len(score)]
        n = max(_cost(e, after) - len(first), 0)
        return [*first, *sorted(left, key=lambda i: -float(score[i]))[:n]]

    return choose


def _naive(model: Any, cache: Any, group: list[Edit], known: list[Known]) -> tuple[Any, list[int]]:
    return _edited(model, cache, group, known, lambda e, k, after: [], move=False)


METHODS: dict[str, Any] = {
    OURS: _hf_longctx(None),
    "repair=0 (the paper)": _hf_longctx(0),
    **{f"repair={n}": _hf_longctx(n) for n in (16, 64, 128, 256) if n != REPAIR},
    "naive splice": _naive,
}
RULES: dict[str, Any] = {
    OURS: _hf_longctx(None),
    "the next ones": _rule(_nearest),
    "the last ones": _rule(lambda e, known, after: after[-n:] if (n := _cost(e, after)) else []),
    "half next, half last": _rule(_halves),
    "half next, half phrases that come again": _rule(_echoes),
    "evenly spread": _rule(_spread),
    "those that attend most to the edit (needs a full read)": _rule(_most("attends")),
    "half next, half those (needs a full read)": _rule(_most("attends", REPAIR // 2)),
    "those that are off most (needs a full read)": _rule(_most("off")),
    "none": _rule(lambda e, known, after: []),
}
