"""The hashed n-gram embedding that stands in at a miss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from memgraft.config import FallbackConfig
from memgraft.errors import ArgumentError
from memgraft.nn.compression import CompressedVocabulary
from memgraft.nn.hashing import multipliers


class HashFallback(nn.Module):
    """Token ids to embeddings e_t through hashed n-gram tables (docs/METHOD.md, section 4).

    All heads of all orders share one table, each with its own range of slots.

    Args:
        config: orders, heads, widths.
        vocabulary: the compressed vocabulary of the recipient's tokenizer.
        layer: number of the recipient's block, which seeds the multipliers.
        sizes: primes of this site as ``sizes[order][head]``, from :func:`memgraft.nn.hashing.prime_sizes`.
        seed: the graft's seed.
        pad_token_id: raw id that stands left of a segment.
    """

    compressed_ids: Tensor
    offsets: Tensor
    sizes: Tensor

    def __init__(
        self,
        config: FallbackConfig,
        *,
        vocabulary: CompressedVocabulary,
        layer: int,
        sizes: Sequence[Sequence[int]],
        seed: int,
        pad_token_id: int,
    ) -> None:
        super().__init__()
        if not 0 <= pad_token_id < len(vocabulary):
            raise ArgumentError(
                f"fallback pad_token_id must lie in the vocabulary of {len(vocabulary)} tokens, found {pad_token_id}"
            )
        self.orders = config.orders
        self.max_order = max(config.orders)
        self.num_heads = config.num_heads
        flat = np.array([size for heads in sizes for size in heads], dtype=np.int64)
        self.num_slots = int(flat.sum())
        self.multipliers = tuple(int(m) for m in multipliers(seed, layer, self.max_order, vocabulary.size))
        self.pad_id = int(vocabulary.ids[pad_token_id])
        self.register_buffer("compressed_ids", torch.from_numpy(vocabulary.ids.astype(np.int32)))
        self.register_buffer("sizes", torch.from_numpy(flat), persistent=False)
        self.register_buffer("offsets", torch.from_numpy(np.cumsum(flat) - flat), persistent=False)
        self.table = nn.Embedding(self.num_slots, config.dim // config.num_heads, sparse=config.sparse_gradients)

    def slots(self, tokens_BH: Tensor, segments_BH: Tensor, num_new: int) -> Tensor:
        """Table rows read at the last ``num_new`` positions.

        Args:
            tokens_BH: raw token ids with any history in front, (B, H).
            segments_BH: segment ids, (B, H); a change ends the look-back.
            num_new: positions to compute, at the end.

        Returns:
            (B, num_new, orders * heads) int64, orders ascending, heads in turn.
        """
        total = tokens_BH.shape[1]
        start = max(0, total - num_new - (self.max_order - 1))
        tokens = self._compressed(tokens_BH[:, start:].long())
        segments = segments_BH[:, start:]
        first = tokens.shape[1] - num_new
        here = segments[:, first:]
        mix = tokens[:, first:] * self.multipliers[0]
        mixes = [mix]
        inside = torch.ones_like(here, dtype=torch.bool)
        for lag in range(1, self.max_order):
            missing = max(0, lag - first)
            low, high = first + missing - lag, tokens.shape[1] - lag
            if low >= high:
                back, same = torch.full_like(mix, self.pad_id), torch.zeros_like(inside)
            else:
                back = functional.pad(tokens[:, low:high], (missing, 0), value=self.pad_id)
                same = functional.pad(segments[:, low:high] == here[:, missing:], (missing, 0), value=False)
            # Once the look-back has left the segment it stays out, even where a segment id comes back.
            inside = inside & same
            mix = mix ^ (torch.where(inside, back, self.pad_id) * self.multipliers[lag])
            mixes.append(mix)
        per_order = torch.stack([mixes[order - 1] for order in self.orders], dim=-1)
        per_head = per_order.repeat_interleave(self.num_heads, dim=-1)
        return per_head % self.sizes + self.offsets

    def _compressed(self, tokens_BH: Tensor) -> Tensor:
        """Compressed ids; raw ids past the map (embeddings added since) share id 0, as those past a tokenizer's end."""
        num_known = self.compressed_ids.shape[0]
        known = self.compressed_ids[tokens_BH.clamp_max(num_known - 1)].long()
        return torch.where(tokens_BH < num_known, known, 0)

    def forward(
        self, tokens_BH: Tensor, segments_BH: Tensor, num_new: int, positions_M: Tensor | None = None
    ) -> Tensor:
        """Embeddings e_t of the last ``num_new`` positions in the table's dtype, (B * num_new, orders * dim).

        With flat indices ``positions_M`` of those alone, (M, orders * dim); of one position if M is 0, which keeps the
        graph whole.
        """
        slots = self.slots(tokens_BH, segments_BH, num_new).flatten(0, 1)
        if positions_M is not None:
            slots = slots[positions_M] if len(positions_M) else slots[:1]
        embedded: Tensor = self.table(slots)
        return embedded.flatten(1)
