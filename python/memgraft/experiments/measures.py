"""What the losses of arms say beyond their means: bits per byte, and the matches that gained and lost most."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memgraft.bank import Bank
from memgraft.data import MemoryBatch
from memgraft.experiments.windows import TokenWindows
from memgraft.tokenizer import TextCodec, open_tokenizer

LOSSES_NAME = "held_out_losses.npy"
_BYTES_TOKENS = 1 << 22
"""Bytes are counted in the first documents with so many tokens."""
MOVED = 12
"""Pairs of match and next token that a list of gains or losses holds."""
SEEN = 2
"""Pairs seen less often in the evaluated windows are left out: one place says little."""


def bytes_per_token(windows: TokenWindows, tokenizer: Any) -> float | None:
    """UTF-8 bytes of text a token over whole documents of the held-out corpus; None for a corpus of empty text.

    Whole documents, since a window may cut a character in two. End-of-text tokens count as tokens that spell nothing.
    """
    codec = open_tokenizer(tokenizer)
    corpus = windows.corpus
    special = set(corpus.special_ids) | ({corpus.eos_id} if corpus.eos_id is not None else set())
    starts = np.asarray(corpus.document_starts, dtype=np.int64)
    tokens = found = 0
    for start, stop in itertools.pairwise(starts):
        ids = corpus.tokens(int(start), int(stop))
        (text,) = codec.decode([[int(token) for token in ids if token not in special]])
        tokens, found = tokens + len(ids), found + len(text.encode())
        if tokens >= _BYTES_TOKENS:
            break
    return found / tokens if found else None


def bits_per_byte(loss: float, per_token: float | None) -> float | None:
    """A loss in nats a token as bits a byte of text."""
    return None if per_token is None else loss / math.log(2) / per_token


def moved(
    folders: Sequence[tuple[Path, Path]], windows: TokenWindows, chosen: Sequence[int], bank: Bank, tokenizer: Any
) -> dict[str, list[dict[str, Any]]] | None:
    """The pairs of matched key and next token whose loss the first arm lowers and raises most in sum over the windows.

    Args:
        folders: the folders of the first and of the second arm, one pair a seed; losses are means over seeds.
        windows: the held-out text.
        chosen: the windows that were evaluated.
        bank: gives the longest key before each token.
        tokenizer: the recipient's, to spell keys and tokens.

    Returns:
        ``gained`` and ``lost``, most first: key, next token, times seen, mean loss in both arms; None where a folder
        has no losses of these windows.
    """
    sums = []
    for number in range(2):
        paths = [pair[number] / LOSSES_NAME for pair in folders]
        if not paths or not all(path.is_file() for path in paths):
            return None
        sums.append(np.mean([np.load(path).astype(np.float64) for path in paths], axis=0))
    first_WT, second_WT = sums
    if first_WT.shape != (len(chosen), windows.seq_len - 1) or first_WT.shape != second_WT.shape:
        return None
    tokens_WT = np.stack([windows.tokens(window) for window in chosen])
    segments_WT = np.stack([windows.segments(window) for window in chosen])
    memory = MemoryBatch.look_up(bank, torch.from_numpy(tokens_WT), torch.from_numpy(segments_WT))
    rows_WT = memory.rows[:, :-1].cpu().numpy().astype(np.int64)
    hit_WT = rows_WT >= 0
    vocab = bank.index.vocab_size
    pairs, places = np.unique(rows_WT[hit_WT] * vocab + tokens_WT[:, 1:][hit_WT], return_inverse=True)
    seen = np.bincount(places, minlength=len(pairs))
    totals = [np.bincount(places, weights=losses[hit_WT], minlength=len(pairs)) for losses in (first_WT, second_WT)]
    change = np.where(seen >= SEEN, totals[0] - totals[1], 0.0)
    order = np.argsort(change, kind="stable")
    codec = open_tokenizer(tokenizer)

    def entries(numbers: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        return [
            {
                **_spelled(int(pairs[number]), bank, codec),
                "times": int(seen[number]),
                "loss": float(totals[0][number] / seen[number]),
                "loss_without": float(totals[1][number] / seen[number]),
            }
            for number in numbers
        ]

    gained = order[:MOVED][change[order[:MOVED]] < 0]
    lost = order[::-1][:MOVED][change[order[::-1][:MOVED]] > 0]
    return {"gained": entries(gained), "lost": entries(lost)}


def _spelled(pair: int, bank: Bank, codec: TextCodec) -> dict[str, Any]:
    row, token = divmod(pair, bank.index.vocab_size)
    part = bank.keys.arrays(row, row + 1)
    key, following = codec.decode_inside([[int(value) for value in part.tokens], [token]])
    return {"key": key, "next": following}
