import pytest

torch = pytest.importorskip("torch")

from memgraft.data import segments  # noqa: E402
from memgraft.errors import ArgumentError  # noqa: E402


def same_partition(found, expected):
    """Equal up to the names of segments; padding is -1 in both."""
    found, expected = found.reshape(-1).tolist(), torch.tensor(expected).reshape(-1).tolist()
    assert [x == -1 for x in found] == [x == -1 for x in expected]
    pairs = set(zip(found, expected, strict=True))
    assert len(pairs) == len(set(found)) == len(set(expected)), (found, expected)


def test_position_ids_restart():
    same_partition(
        segments.from_position_ids(torch.tensor([[0, 1, 2, 0, 1, 0], [5, 6, 7, 8, 9, 10]])),
        [[0, 0, 0, 1, 1, 2], [3] * 6],
    )


def test_cu_seqlens_leave_the_tail_as_padding():
    same_partition(segments.from_cu_seqlens(torch.tensor([0, 2, 2, 5]), 7), [[0, 0, 2, 2, 2, -1, -1]])
    assert segments.from_cu_seqlens(torch.tensor([0]), 2).tolist() == [[-1, -1]]
    for bad in ([1, 3], [0, 5, 4], [0, 8], []):
        with pytest.raises(ArgumentError, match="ascending from 0"):
            segments.from_cu_seqlens(torch.tensor(bad), 7)


def test_eos_belongs_to_the_segment_it_ends():
    ids = torch.tensor([[4, 9, 4, 9, 9], [9, 1, 1, 1, 1]])
    same_partition(segments.from_eos(ids, 9), [[0, 0, 1, 1, 2], [3, 4, 4, 4, 4]])


def test_attention_masks_pad_on_either_side_and_name_segments():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 2, 2]])
    same_partition(segments.from_attention_mask(mask), [[-1, -1, 0, 0], [1, 1, 1, -1], [2, 2, 3, 3]])
    with pytest.raises(ArgumentError, match="column"):
        segments.from_attention_mask(torch.ones(1, 1, 4, 4))


def test_all_that_a_batch_says_is_used():
    ids = torch.tensor([[1, 2, 9, 3, 4, 5, 0, 0]])
    batch = {
        "input_ids": ids,
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
    }
    same_partition(segments.from_batch(batch, eos_id=9), [[0, 0, 0, 1, 2, 2, -1, -1]])
    edges = {"cu_seq_lens_q": torch.tensor([0, 3, 8])}
    same_partition(segments.from_batch({"input_ids": ids, **edges}), [[0] * 3 + [1] * 5])
    same_partition(segments.from_batch({"input_ids": ids.repeat(2, 1)}), [[0] * 8, [1] * 8])
    with pytest.raises(ArgumentError, match="one packed row"):
        segments.from_batch({"input_ids": ids.repeat(2, 1), "cu_seqlens": torch.tensor([0, 8])})
    with pytest.raises(ArgumentError, match="expected shape"):
        segments.from_batch({"input_ids": ids, "attention_mask": torch.ones(1, 7)})


def test_columns_are_laid_where_tokens_are():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    laid = segments.from_columns([[7, 8], [1, 1, 2]], mask, (2, 3))
    assert laid.tolist() == [[-1, 7, 8], [1, 1, 2]]
    assert segments.from_columns([[7], [1, 2]], None, (1, 3)).tolist() == [[7, 1, 2]]
    with pytest.raises(ArgumentError, match="example 0: expected 2 ids, one per token, found 3"):
        segments.from_columns([[7, 8, 9], [1, 1, 2]], mask, (2, 3))
    with pytest.raises(ArgumentError, match="3 examples"):
        segments.from_columns([[7], [8], [9]], mask, (2, 3))
