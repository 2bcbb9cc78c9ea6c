"""The forward of a model under the switch: it takes the whole batch, computes its share, and answers for the whole."""

# B rows, T tokens of a row, L rows of a rank
from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...upstream.caches import without_cache
from ..ranks import Ranks
from .agreement import Facts, read_together, say_refused
from .answers import Share
from .arguments import READ, answer_as_asked, check_arguments, labels_of, named, part_of
from .chance import Walked, drawing_apart, noise_of_rows
from .choosing import Geometry, choose
from .division import Division
from .documents import Documents, marks_of, positions_of
from .flexible import Flexible
from .groups import Groups
from .interface import LAYOUT

STATE = "_hf_longctx_sequence_parallel"  # in the __dict__ of a model: its State
logger = logging.getLogger("hf_longctx")


@dataclass(eq=False)
class State:
    """What a model under the switch needs in its forward.

    Args:
        settings: The switch.
        groups: The processes that share a batch.
        kind: How they exchange: the settings' kind, or "auto" between ring and all-gather, for each batch.
        geometry: Of the model.
        inner: The forward that the model had.
        gather_logits: Answer with logits of the whole batch.
        flexible: For degree="auto", what plans the groups of a batch; None: `groups` work together.
        said: What was logged last.
    """

    settings: Any
    groups: Groups
    kind: str
    geometry: Geometry
    inner: Callable[..., Any]
    gather_logits: bool
    flexible: Flexible | None = None
    said: str = ""

    def divide(self, lengths: Sequence[int]) -> Division:
        """Who has which tokens of a batch with documents of these lengths."""
        if self.flexible is not None:
            return self.flexible.divide(lengths)
        return Division.of(lengths, self.groups, self.kind, self.settings.cut)


@contextmanager
def with_logits(model: nn.Module) -> Iterator[None]:
    """Inside the block the model answers with logits too."""
    state: State = vars(model)[STATE]
    before, state.gather_logits = state.gather_logits, True
    try:
        yield
    finally:
        state.gather_logits = before


def forward_of(model: nn.Module) -> types.MethodType:
    """The forward below as a method of `model`, with the signature of the forward that it has."""
    stock: Any = model.forward

    @functools.wraps(getattr(stock, "__func__", stock))
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return shared_forward(self, vars(self)[STATE], named(stock, args, kwargs))

    return types.MethodType(forward, model)


def shared_forward(model: nn.Module, state: State, given: dict[str, Any]) -> Any:
    """Share the batch in `given` among the ranks of a group, run the model's own forward, and answer for all of it."""
    share, ranks, walked, arguments = _prepared(model, state, given)
    width, rows = share.shape[1], max(share.rows, 1)
    with drawing_apart(model, state.groups), noise_of_rows(walked, width, rows):
        out = state.inner(use_cache=False, return_dict=True, **{LAYOUT: ranks}, **arguments)
    one_less = given.get("labels") is not None and given.get("shift_labels") is None
    return answer_as_asked(_answer(out, share, state.gather_logits, one_less), model, given)


# torch.compile goes around what reads a batch on the host: only the model's own forward is worth a graph
@torch.compiler.disable
def _prepared(model: nn.Module, state: State, given: dict[str, Any]) -> tuple[Share, Ranks, Walked, dict[str, Any]]:
    """This rank's share, the ranks, what is known of the modules, and the arguments of the model's own forward."""
    walked = Walked.through(model)
    share, division, positions_BT, marks_BT = _share(model, walked, state, given)
    arguments = {name: part_of(x, share) for name, x in given.items() if name not in READ}
    arguments["position_ids"] = share.take(positions_BT)
    for name in ("input_ids", "inputs_embeds"):
        if given.get(name) is not None:
            arguments[name] = share.take(given[name])
    if given.get("labels") is not None or given.get("shift_labels") is not None:
        arguments.update(labels_of(given, share, marks_BT))
    return share, _ranks(state, division, share.device), walked, arguments


def _share(
    model: nn.Module, walked: Walked, state: State, given: dict[str, Any]
) -> tuple[Share, Division, Tensor, Tensor]:
    """This rank's share, once all ranks have shown the same batch; and the positions and marks of all tokens."""
    tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    device = tokens.device if isinstance(tokens, Tensor) else next(model.parameters()).device
    groups = state.groups
    try:
        check_arguments(model, walked, given, tokens)
        assert isinstance(tokens, Tensor)
        shape = tokens.shape[0], tokens.shape[1]
        cu_seq_lens = given.get("cu_seq_lens_q")
        positions_BT = positions_of(shape, given.get("position_ids"), cu_seq_lens, device)
        marks_BT = marks_of(positions_BT, given.get("attention_mask"), cu_seq_lens)
        shift_labels = given.get("shift_labels")
        compared = {
            "input_ids": given.get("input_ids"),
            "inputs_embeds": given.get("inputs_embeds"),
            "position_ids": positions_BT,
            "marks": marks_BT,
            "labels": given.get("labels") if shift_labels is None else shift_labels,
        }
        facts = Facts.of(compared, given.get("num_items_in_batch"), device)
    except Exception:
        say_refused(device, groups)
        raise
    documents = Documents.of(read_together(marks_BT, facts, groups))
    division = state.divide(documents.lengths)
    return Share(shape, documents, division.layout, groups, device), division, positions_BT, marks_BT


def _ranks(state: State, division: Division, device: torch.device) -> Ranks:
    kind, outside, groups = division.kind, "ring", division.groups
    if groups.size == 1:
        return Ranks(division.own, device=device)
    if kind in ("auto", "hybrid"):
        outside, reason = choose(division.own, state.geometry)
        kind = outside if kind == "auto" else kind
        said = f"{kind}" if kind != "hybrid" else f"Ulysses inside hosts and {outside} among them"
        if state.settings.kind == "auto" and said != state.said and state.groups.rank == 0:
            logger.info("SequenceParallel(kind='auto') takes %s: %s.", said, reason)
        state.said = said
    group = groups.outer if kind == "hybrid" else groups.whole
    return Ranks(division.own, kind, group, groups.inner, outside, device)


@torch.compiler.disable
def _answer(out: Any, share: Share, gather_logits: bool, one_less: bool) -> Any:
    """A model's output for the whole batch: its loss, and all that it says token by token; logits only if asked for.

    TRL's fused head answers with one token less where it has shifted the labels by itself.
    """
    computed = max(share.rows, 1)
    fields: dict[str, Any] = {}
    for name, x in without_cache(out).items():
        if name == "loss":
            fields[name] = share.total(x)
        elif isinstance(x, Tensor) and x.dim() >= 2 and x.shape[:2] == (1, computed):
            if name == "logits" and not gather_logits:
                continue
            whole = share.whole(x)
            fields[name] = whole[:, :-1] if one_less and name != "logits" else whole
    return type(out)(**fields)
