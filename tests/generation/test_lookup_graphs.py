"""Look-ups from a graph, the bookkeeping: tokens are kept by kernels that run in Triton's interpreter."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton


@pytest.mark.parametrize("method", ["CODES", "KEYS"])
def test_steps_by_address_are_those_of_torch_in_two_turns_of_rows_chosen_again_and_of_masks_and_copies(
    method: str,
) -> None:
    names = (
        "generates_the_same_in_two_turns",
        "rows_are_chosen_again_between_steps",
        "a_mask_hides_tokens_between_steps_and_copies_go_on_by_themselves",
    )
    # in one process, which takes seconds to begin
    calls = "\n".join(f"{name}({method})" for name in names)
    run(f"from tests.generation.lookup_steps import *\n{calls}", "1")
