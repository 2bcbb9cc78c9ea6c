"""Look-ups by kernels in a padded batch give what torch gives for each row alone and at once, whatever the gate is.

Kernels run in Triton's interpreter, which is watched for reads of what is not theirs. Needs triton.
"""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

BATCH = """
from unittest import mock
import torch
from transformers import DynamicCache
from hf_longctx import CodeLookup
from hf_longctx.ops.kernels import triton_found, triton_keys, triton_lookup
from tests.generation.launches import as_on_a_gpu
from tests.tiny import left_padded, logits_of, text, tiny

def noted(module, name, calls):
    plain = getattr(module, name)
    def call(q, *given, **more):
        calls.append(q.shape)
        return plain(q, *given, **more)
    return mock.patch.object(module, name, call)

some = {"gate": "heads", "heads": [[0, 0], [1, 1]]}
margins = ({"gate_margin": 0.5}, {"gate_margin": -0.5})
gates = ({}, *margins, {"gate": None}, {"gate": "count"}, some, {**some, "per": "head"})
# one query, a few, many, which torch does as there are few slots, and one; two rows are short
parts, rows = (40, 41, 44, 61, 62), [text(1, n, seed=n) for n in (62, 43, 50)]
ids, mask = left_padded([row[0] for row in rows])
pos, model = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0), tiny(head_dim=32)  # fewer dims fail the kernels' check
for gate in gates:
    with CodeLookup(n_global=2, n_local=16, top_k=3, shortlist=16, by=BY, **gate).on(model):
        alone = [logits_of(model, row, use_cache=False)[0] for row in rows]
        cache, ours, start, chosen, attended = DynamicCache(), [], 0, [], []
        choose = noted(triton_lookup if BY == "signs" else triton_keys, "choose", chosen)
        with as_on_a_gpu(), choose, noted(triton_found, "decode", attended):
            for stop in parts:
                given = {"attention_mask": mask[:, :stop], "position_ids": pos[:, start:stop]}
                ours.append(logits_of(model, ids[:, start:stop], past_key_values=cache, **given))
                start = stop
    own = [[shape for shape in some if shape[:2] == (3, 4)] for some in (chosen, attended)]  # checks have two
    assert [shape[2] for shape in own[0]] == [1, 1, 3, 3, 1, 1] and len(own[1]) == 2 * 2, (gate, own)
    for b, row in enumerate(alone):
        torch.testing.assert_close(torch.cat(ours, 1)[b, -len(row) :], row, atol=5e-5, rtol=1e-5,
                                   msg=lambda text: f"{gate}, row {b}: {text}")
"""


@pytest.mark.parametrize("by", ["signs", "keys"])
def test_rows_of_a_batch_are_those_read_alone(by: str) -> None:
    run(f"BY = {by!r}\n{BATCH}", "1")
