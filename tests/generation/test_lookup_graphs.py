"""Look-ups from a graph, the bookkeeping: tokens are kept by kernels that run in Triton's interpreter."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton


def test_steps_by_address_are_those_of_torch_in_two_turns_of_rows_chosen_again_and_of_masks_and_copies() -> None:
    names = (
        "generates_the_same_in_two_turns",
        "rows_are_chosen_again_between_steps",
        "a_mask_hides_tokens_between_steps_and_copies_go_on_by_themselves",
    )
    # in one process, which takes seconds to begin
    run("\n".join(f"from tests.generation.lookup_steps import {name}; {name}()" for name in names), "1")
