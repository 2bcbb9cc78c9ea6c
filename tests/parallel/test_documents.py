"""What a batch consists of, from everything that says it."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.parallel.model.documents import Documents, marks_of, next_labels, positions_of

CPU = torch.device("cpu")


def read(
    ids_shape: tuple[int, int], position_ids: object = None, mask: object = None, edges: object = None
) -> Documents:
    positions = positions_of(ids_shape, position_ids, edges, CPU)
    return Documents.of(marks_of(positions, mask, edges))


def packed(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])[None]


def test_one_document_a_row() -> None:
    assert read((2, 5)).lengths == [5, 5]
    assert read((1, 0)).lengths == []


def test_packed_positions_and_positions_that_start_anywhere() -> None:
    assert read((1, 9), packed([4, 1, 4])).lengths == [4, 1, 4]
    assert read((1, 4), torch.tensor([[7, 8, 3, 4]])).lengths == [2, 2]
    assert read((2, 3), torch.arange(3)[None]).lengths == [3, 3]


def test_right_padding_goes_and_rows_of_padding_too() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    found = read((3, 4), mask=mask)
    assert found.lengths == [4, 2]
    assert found.where_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert read((3, 4), packed([2, 2]), mask).lengths == [2, 2, 2]


def test_lengths_of_a_collator_give_positions_and_may_repeat_their_end() -> None:
    edges = torch.tensor([0, 3, 4, 7, 7, 7], dtype=torch.int32)
    assert read((1, 7), edges=edges).lengths == [3, 1, 3]
    assert positions_of((1, 7), None, edges, CPU).tolist() == [[0, 1, 2, 0, 0, 1, 2]]
    # two documents whose positions go on by one
    assert read((1, 4), torch.arange(4)[None], edges=torch.tensor([0, 2, 4])).lengths == [2, 2]
    with pytest.raises(ValueError, match="cu_seq_lens_q with 2 rows"):
        read((2, 4), edges=torch.tensor([0, 4]))


def test_padding_before_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has padding before a token"):
        read((2, 3), mask=torch.tensor([[1, 1, 1], [0, 1, 1]]))
    with pytest.raises(ValueError, match="row 0 has padding before a token"):
        read((1, 3), mask=torch.tensor([[1, 0, 1]]))


def test_the_last_token_of_a_document_predicts_nothing() -> None:
    positions = positions_of((2, 5), torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]), None, CPU)
    marks = marks_of(positions, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), None)
    labels = torch.arange(10, 20).view(2, 5)
    assert next_labels(labels, marks).tolist() == [[11, -100, 13, 14, -100], [16, 17, -100, -100, -100]]
