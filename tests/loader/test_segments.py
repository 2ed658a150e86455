import pytest

torch = pytest.importorskip("torch")

from memgraft.data import segments  # noqa: E402
from memgraft.errors import ArgumentError  # noqa: E402


def same_partition(found, expected):
    """Equal up to the names of segments; padding is -1 in both."""
    found, expected = found.reshape(-1).tolist(), torch.as_tensor(expected).reshape(-1).tolist()
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
    for bad in ([[1.0, 0.5]], [[0, -1]]):
        with pytest.raises(ArgumentError, match="whole numbers"):
            segments.from_attention_mask(torch.tensor(bad))


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
    with pytest.raises(ArgumentError, match=r"expected shape .1, 8."):
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


IDS = torch.tensor([[1, 2, 3, 4, 5]])
SAYINGS = {
    "edges of queries": {"cu_seq_lens_q": torch.tensor([0, 3, 5])},
    "edges of queries and keys": {
        "cu_seq_lens_q": torch.tensor([0, 3, 5]),
        "cu_seq_lens_k": torch.tensor([0, 3, 5]),
        "max_length_q": 3,
        "max_length_k": 3,
    },
    "edges in a list, a row of their own": {"cu_seqlens": [[0, 3, 5]], "max_seqlen": torch.tensor([3])},
    "positions": {"position_ids": torch.tensor([[0, 1, 2, 0, 1]])},
    "positions of the text before those of images": {
        "position_ids": torch.tensor([0, 1, 2, 0, 1]).repeat(4, 1, 1),
    },
    "numbers": {"seq_idx": torch.tensor([[0, 0, 0, 1, 1]], dtype=torch.int32)},
    "numbers for all rows": {"document_ids": torch.tensor([7, 7, 7, 2, 2])},
    "lengths": {"seq_lengths": [[3, 2]]},
    "lengths of the only row": {"seq_lengths": torch.tensor([3, 2])},
    "starts": {"seq_start_id": [[0, 3]]},
    "mask of numbers": {"attention_mask": torch.tensor([[1, 1, 1, 2, 2]])},
    "mapping of masks": {
        "attention_mask": {"full_attention": torch.tensor([[1, 1, 1, 2, 2]]), "sliding_attention": None}
    },
}


@pytest.mark.parametrize("case", SAYINGS)
def test_every_entry_of_the_list_has_its_meaning(case):
    said = segments.from_batch({"input_ids": IDS, "labels": IDS, "doc_id": torch.tensor([4]), **SAYINGS[case]})
    same_partition(said, [[0, 0, 0, 1, 1]])


def test_what_says_nothing_about_documents():
    for batch in (
        {"position_ids": torch.stack([torch.tensor([[3, 0, 9, 1, 2]]) + axis % 2 for axis in range(3)])},
        {"attention_mask": None, "position_ids": None},
        {"attention_mask": {"full_attention": None}},
        {"doc_id": ["a"], "segment_kind": "text", "document_id": 4, "seq_len": torch.tensor([5])},
    ):
        same_partition(segments.from_batch({"input_ids": IDS, **batch}), [[0] * 5])


REFUSED = {
    "another name": ({"cu_seqlens_padded": torch.tensor([0, 3, 5])}, "cu_seqlens_padded: may say"),
    "samples": ({"sample_ids": torch.tensor([[0, 0, 1, 1, 1]])}, "sample_ids: may say"),
    "another mask of packed rows": ({"packing_mask": torch.tensor([[1, 1, 2, 2, 2]])}, "packing_mask: may say"),
    "edges under a short name": ({"cu_lens": torch.tensor([0, 2, 5])}, "cu_lens: may say"),
    "ends of documents": ({"eod_mask": torch.zeros(1, 5)}, "eod_mask: may say"),
    "a mask of another name": ({"attn_mask": torch.ones(1, 1, 5, 5)}, "attn_mask: may say"),
    "a mask of torch's kind": ({"padding_mask": torch.zeros(1, 5)}, "padding_mask: may say"),
    "queries and keys that differ": (
        {"cu_seq_lens_q": torch.tensor([0, 3, 5]), "cu_seq_lens_k": torch.tensor([0, 2, 5])},
        "not of the same documents",
    ),
    "a longest that is not": ({"cu_seq_lens_q": torch.tensor([0, 3, 5]), "max_length_q": 2}, "at least the 3"),
    "lengths of more tokens": ({"seq_lengths": [[3, 3]]}, "sum to its 5 tokens, found 6"),
    "lengths of another batch": ({"seq_lengths": [[3, 2], [5]]}, "each of 1 rows, found 2"),
    "starts after the first": ({"seq_start_id": [[1, 3]]}, "ascending from 0"),
    "fractions": ({"position_ids": torch.tensor([[0.0, 0.5, 1, 2, 3]])}, "whole numbers"),
    "numbers of another shape": ({"seq_idx": torch.zeros(1, 4, dtype=torch.int32)}, "expected shape"),
    "a block mask": ({"attention_mask": object()}, "expected a tensor, found object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused(case):
    batch, match = REFUSED[case]
    with pytest.raises(ArgumentError, match=match):
        segments.from_batch({"input_ids": IDS, **batch})


def test_several_tokens_end_segments():
    same_partition(segments.from_batch({"input_ids": IDS}, eos_id=(2, 4)), [[0, 0, 1, 1, 2]])
