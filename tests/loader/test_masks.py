"""Masks of more than two dimensions say what the two-dimensional one says, in every spelling that is in use."""

import pytest

torch = pytest.importorskip("torch")

from test_segments import same_partition  # noqa: E402

from memgraft.data.masks import UnreadableMask, read_mask  # noqa: E402
from memgraft.data.segments import from_batch  # noqa: E402
from memgraft.errors import ArgumentError  # noqa: E402

DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2], [-1, -1, 3, 3, 3, 3], [4, 4, 5, 5, -1, -1]])
"""Documents of three rows of six tokens, -1 is padding: packed, padded on the left, packed and padded on the right."""


def sees(window=None, columns=6, start=0):
    """Block-causal attention among `DOCUMENTS`, by its definition."""
    mask = torch.zeros(3, 6, columns, dtype=torch.bool)
    for row in range(3):
        for t in range(6):
            for s in range(t + 1):
                same = DOCUMENTS[row, t] == DOCUMENTS[row, s] >= 0
                mask[row, t, start + s] = bool(same) and (window is None or t - s < window)
    return mask[:, None]


def additive(mask, hidden):
    return torch.zeros(mask.shape).masked_fill(~mask, hidden)


def let_padding_see(mask):
    """What is done where softmax must not meet an empty row."""
    return mask | ~mask.any(dim=-1, keepdim=True)


SPELLINGS = {
    "bool": sees(),
    "whole numbers": sees().long(),
    "floats of 0 and 1": sees().float(),
    "infinity": additive(sees(), float("-inf")),
    "the smallest float": additive(sees(), torch.finfo(torch.float32).min),
    "bfloat16": additive(sees(), torch.finfo(torch.bfloat16).min).bfloat16(),
    "ten thousand": additive(sees(), -10000.0),
    "with biases": additive(sees(), float("-inf")) - 0.5 * torch.arange(6),
    "a window": sees(window=2),
    "heads": sees().expand(3, 4, 6, 6),
    "no heads": sees()[:, 0],
    "padding sees everything": let_padding_see(sees()),
    "two layer types": {"sliding_attention": sees(window=2), "full_attention": sees()},
    "windows alone": {"sliding_attention": sees(window=2), "chunked_attention": sees(window=3)},
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_every_spelling_says_the_same(case):
    same_partition(read_mask(SPELLINGS[case], (3, 6)), DOCUMENTS)


@pytest.mark.parametrize("past", [2, torch.tensor(2)], ids=["number", "tensor"])
def test_columns_of_a_cache_are_those_before_and_after(past):
    flat = (DOCUMENTS >= 0).long()
    longer = torch.cat([torch.ones(3, 2, dtype=torch.long), flat, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    assert ((read_mask(longer, (3, 6), past=past) < 0) == (DOCUMENTS < 0)).all()
    same_partition(read_mask(sees(columns=12, start=2), (3, 6), past=past), DOCUMENTS)
    same_partition(read_mask(longer[:, 2:], (3, 6)), read_mask(flat, (3, 6)))
    single = additive(torch.ones(1, 1, 1, 12, dtype=torch.bool), 0.0)
    assert read_mask(single, (1, 1), past=past).tolist() == [[0]]


def test_bidirectional_attention_is_no_padding():
    same_partition(read_mask(torch.ones(1, 1, 4, 4), (1, 4)), [[0] * 4])
    same_partition(read_mask(torch.zeros(1, 1, 4, 4), (1, 4)), [[0] * 4])


INVERTED = {
    "bools": ~sees(),
    "0 and 1": (~sees()).float(),
    "added from above": additive(sees(), 1e9),
    "whole numbers below 0": torch.where(sees(), 0, -1),
    "shares": sees() * 0.5,
    "weights": torch.where(sees(), 2.0, 0.0),
}


@pytest.mark.parametrize("case", INVERTED)
def test_masks_that_mean_the_opposite_are_not_taken_for_padding(case):
    with pytest.raises(UnreadableMask, match=r"invert the mask|far below 0"):
        read_mask(INVERTED[case], (3, 6))
    positions = torch.arange(6).expand(3, 6)
    batch = {"input_ids": torch.arange(18).reshape(3, 6), "attention_mask": INVERTED[case], "position_ids": positions}
    same_partition(from_batch(batch), [[0] * 6, [1] * 6, [2] * 6])


def test_zeros_that_are_added_are_not_taken_for_padding():
    with pytest.raises(ArgumentError, match="floats that are all 0"):
        read_mask(torch.zeros(3, 6), (3, 6))
    assert (read_mask(torch.zeros(3, 6, dtype=torch.long), (3, 6)) < 0).all()


def test_positions_in_three_axes_of_text_alone():
    positions = torch.tensor([[0, 1, 0, 1, 2, 0]])
    ids = torch.arange(6)[None]
    axes = positions.expand(3, 1, 6).clone()
    same_partition(from_batch({"input_ids": ids, "position_ids": axes}), [[0, 0, 1, 1, 1, 2]])
    axes[1, 0, 3] = 7  # an image
    same_partition(from_batch({"input_ids": ids, "position_ids": axes}), [[0] * 6])


def dilated():
    mask = torch.eye(6, dtype=torch.bool)
    mask[2:] |= torch.eye(6, dtype=torch.bool)[:-2]
    return mask[None, None].expand(3, 1, 6, 6)


@pytest.mark.parametrize(
    "mask",
    [dilated(), object(), torch.ones(3, 1, 6, 4), torch.ones(3, 1, 2, 6)],
    ids=["dilated", "blocks", "few", "rows"],
)
def test_what_cannot_be_read_gives_way_to_what_can(mask):
    ids = torch.arange(18).reshape(3, 6)
    with pytest.raises(UnreadableMask, match=r"position_ids too, or segments|expected shape"):
        from_batch({"input_ids": ids, "attention_mask": mask})
    positions = torch.tensor([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3]])
    expected = [[0, 0, 1, 1, 1, 2], [3] * 6, [4, 4, 5, 5, 5, 5]]
    same_partition(from_batch({"input_ids": ids, "attention_mask": mask, "position_ids": positions}), expected)
    same_partition(from_batch({"input_ids": ids, "attention_mask": mask}, given=torch.tensor(expected)), expected)


def test_masks_that_transformers_makes():
    from transformers import LlamaConfig
    from transformers.masking_utils import create_causal_mask

    padding = (DOCUMENTS >= 0).long()
    for kind in ("eager", "sdpa"):
        config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        config._attn_implementation = kind
        mask = create_causal_mask(config=config, inputs_embeds=torch.zeros(3, 6, 8), attention_mask=padding, cache=None)
        same_partition(read_mask(mask, (3, 6)), read_mask(padding, (3, 6)))
