"""A donor's states for keys: the truncated, length-sorted run beside the obvious ones.

The donor has the shape of SmolLM2-135M (30 blocks of width 576) and random weights: nothing is fetched, and the time is
the same. Lengths are those of mined n-grams in the donor's tokens.
"""

from typing import Any

import numpy as np
import torch
from contest import Contender, WrongAnswer, contest
from settings import Settings, main
from transformers import LlamaConfig, LlamaForCausalLM

from memgraft.harvesting.donor import Donor, native_compute_dtype
from memgraft.harvesting.forward import batches_by_length, donor_values
from memgraft.harvesting.text import open_tokenizer

TAP, NUM_BLOCKS, VOCABULARY = 8, 30, 49_152
LENGTHS, SHARES = (1, 2, 3, 4, 5, 6, 8), (0.01, 0.52, 0.27, 0.12, 0.05, 0.02, 0.01)
MAX_TOKENS = 1024


def make_donor() -> Donor:
    """A donor of SmolLM2-135M's shape."""
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    dtype = native_compute_dtype(None)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval().requires_grad_(False)
    return Donor(
        name="random weights",
        model=model,
        tokenizer=open_tokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))),
        bos=None,
        num_blocks=NUM_BLOCKS,
        value_dim=576,
        vocab_size=VOCABULARY,
        fingerprint="0" * 64,
        architecture="llama",
        compute_dtype=dtype,
    )


def all_blocks(donor: Donor, keys: list[list[int]], size: int) -> torch.Tensor:
    """What a script does: batches as they come, padded, every block, ``output_hidden_states``."""
    states = []
    for start in range(0, len(keys), size):
        batch = keys[start : start + size]
        width = max(map(len, batch))
        tokens = torch.tensor([key + [0] * (width - len(key)) for key in batch])
        lengths = torch.tensor([len(key) for key in batch])
        mask = (torch.arange(width) < lengths[:, None]).long()
        with torch.inference_mode():
            output = donor.model(tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states.append(output.hidden_states[TAP][torch.arange(len(batch)), lengths - 1])
    return torch.cat(states)


def group(settings: Settings) -> dict[str, Any]:
    """Nanoseconds a key for each way."""
    rng = np.random.default_rng(0)
    donor = make_donor()
    number = 512 if settings.quick else 4096
    keys = [rng.integers(0, VOCABULARY, int(length)).tolist() for length in rng.choice(LENGTHS, number, p=SHARES)]
    few = keys[: max(8, number // 64)]
    ours = donor_values(donor, (TAP,), few, max_tokens=MAX_TOKENS)[:, 0].float()
    for name, found in (("every block", all_blocks(donor, few, 64)), ("one at a time", all_blocks(donor, few, 1))):
        distance = float((ours - found.float()).norm() / ours.norm())
        if distance > 0.02:  # bfloat16 rounds differently by batch
            raise WrongAnswer(f"{name}: states differ by {distance:.3f} of their norm")
    padded = sum(len(batch) * max(len(keys[place]) for place in batch) for batch in _batches(keys))
    timings = contest(
        [
            Contender("donor_values", number, lambda: donor_values(donor, (TAP,), keys, max_tokens=MAX_TOKENS)),
            Contender("every block, batches as they come", number, lambda: all_blocks(donor, keys, 256)),
            Contender("every block, one key at a time", len(few), lambda: all_blocks(donor, few, 1)),
        ],
        settings.rounds,
    )
    return {
        "unit": "key",
        "tap": TAP,
        "num_blocks": NUM_BLOCKS,
        "compute_dtype": donor.compute_dtype,
        "padding_share": 1 - sum(map(len, keys)) / padded,
        "timings": timings,
    }


def _batches(keys: list[list[int]]) -> list[np.ndarray]:
    return list(batches_by_length(np.array([len(key) for key in keys]), MAX_TOKENS))


if __name__ == "__main__":
    main(group)
