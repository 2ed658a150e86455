"""Rows made of the recipient's own weights, and what else an arm puts in the place of donor rows.

``counts`` and ``own_embeddings`` need no donor: a row is a weighted sum of rows of the recipient's output head or input
embedding, read anew at every call, so that it follows training; no gradient flows through it. Everything around the
rows (lookup, gate, convolution, fallback) is that of the graft.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from memgraft.bank import Bank
from memgraft.corpus.blocks import windows_with_lead
from memgraft.data.batch import KEY
from memgraft.integrations.transformers import graft_layers
from memgraft.integrations.transformers.families import find_decoder
from memgraft.integrations.transformers.runtime import runtimes_of

if TYPE_CHECKING:
    from memgraft.corpus import Corpus

NEXT_TOKENS = 8
"""Most frequent next tokens that a row of ``counts`` is made of."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TokenMixture:
    """For each row the token ids it is made of and their weights, (R, K) int64 and (R, K) float32; 0 where none."""

    tokens: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class RecipientRows:
    """Stands where a bank's controlled rows stand: ``floats(rows)`` returns (U, taps, D) float32.

    ``counts`` has three mixtures one after the other: of all documents, and of those outside each half. A row number
    beyond the bank's ``num_rows`` picks the second or third; only :class:`HalvesCollator` makes such numbers.
    """

    def __init__(self, module: nn.Module, mixtures: TokenMixture, num_taps: int) -> None:
        self.module, self.mixtures, self.num_taps = module, mixtures, num_taps

    def floats(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Values of distinct rows, (U,) -> (U, taps, D) float32, from the weights as they are now."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        tokens = torch.from_numpy(self.mixtures.tokens[rows]).to(weight.device)
        shares = torch.from_numpy(self.mixtures.weights[rows]).to(weight.device)
        with torch.no_grad():
            mixed = (weight[tokens].float() * shares[..., None]).sum(1)
        values: npt.NDArray[np.float32] = mixed[:, None].expand(-1, self.num_taps, -1).contiguous().cpu().numpy()
        return values


def put_rows(
    model: nn.Module, rows: RecipientRows, *, width: int, seed: int, std: float = 0.02, zero: bool = False
) -> None:
    """Makes the graft of ``model`` read ``rows`` of ``width`` channels; its projections are drawn anew to fit.

    With ``zero`` those of values are 0, as a graft that is attached to a trained model starts.
    """
    decoder, _ = find_decoder(model)
    (runtime,) = runtimes_of(decoder).values()
    runtime.controlled = rows  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(seed)
    for layer in graft_layers(model)["default"].values():
        for name in ("memory_key", "memory_value"):
            before = getattr(layer, name)
            if before is None:
                continue
            projection = nn.Linear(width, before.out_features, bias=False)
            with torch.no_grad():
                projection.weight.normal_(0.0, std, generator=generator)
                if zero and name == "memory_value":
                    projection.weight.zero_()
            setattr(layer, name, projection.to(before.weight.device))
        layer.value_dim = width


def key_mixture(bank: Bank) -> TokenMixture:
    """The mean over each key's tokens (NGM, arXiv 2605.16893)."""
    tokens = np.zeros((bank.num_rows, bank.index.max_order), dtype=np.int64)
    weights = np.zeros(tokens.shape, dtype=np.float32)
    for start in range(0, bank.num_rows, _BLOCK):
        stop = min(start + _BLOCK, bank.num_rows)
        part = bank.keys.arrays(start, stop)
        ends = part.offsets.astype(np.int64)
        lengths: npt.NDArray[np.int64] = ends[1:] - ends[:-1]
        rows = np.repeat(np.arange(start, stop), lengths)
        columns = np.arange(len(part.tokens)) - np.repeat(ends[:-1], lengths)
        tokens[rows, columns] = part.tokens
        weights[rows, columns] = np.repeat(1 / lengths, lengths)
    return TokenMixture(tokens, weights)


def halves_of(documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The half, 0 or 1, that each document number belongs to."""
    return documents % 2


def count_mixture(bank: Bank, corpus: "Corpus", *, at_most: int = NEXT_TOKENS) -> TokenMixture:
    """Next-token counts of each row (COUNT, arXiv 2610.20456), three times ``num_rows``: all, outside half 0, half 1.

    A next token is counted for the row that the position before it reads, so for the longest key there; documents end
    a count. In training, a position of a document in one half reads the counts of the other half alone: leaving out
    the one occurrence instead would tell the model which token it was.
    """
    pairs: list[npt.NDArray[np.int64]] = []
    counts: list[npt.NDArray[np.int64]] = []
    vocab = bank.index.vocab_size
    # One token ahead, which is the next one of the last.
    for window in windows_with_lead(corpus, bank.index.max_order - 1, ahead=1):
        tokens, documents = corpus.tokens(window.first, window.stop), window.documents()
        rows, _ = bank.lookup(tokens, cu_seqlens=window.edges)
        here, after = np.s_[window.lead : -1], np.s_[window.lead + 1 :]
        known = (rows[here] >= 0) & (documents[here] == documents[after])
        owner = rows[here][known].astype(np.int64) * 2 + halves_of(documents[here][known])
        found, number = np.unique(owner * vocab + tokens[after][known], return_counts=True)
        pairs.append(found)
        counts.append(number.astype(np.int64))
    joined, place = np.unique(np.concatenate(pairs), return_inverse=True)
    total = np.bincount(place, weights=np.concatenate(counts), minlength=len(joined))
    owner, token = joined // vocab, joined % vocab
    parts = [np.ones(len(owner), dtype=bool), owner % 2 == 1, owner % 2 == 0]
    mixed = [
        _most_frequent(owner[chosen] // 2, token[chosen], total[chosen], bank.num_rows, at_most) for chosen in parts
    ]
    return TokenMixture(np.concatenate([m.tokens for m in mixed]), np.concatenate([m.weights for m in mixed]))


def _most_frequent(
    rows: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float64],
    num_rows: int,
    at_most: int,
) -> TokenMixture:
    """The ``at_most`` most frequent tokens of each row with their shares of these; ties go to the smaller token."""
    order = np.lexsort((tokens, rows))
    rows, tokens, counts = rows[order], tokens[order], counts[order]
    # The same token may come from both halves.
    fresh = np.concatenate(([True], (np.diff(rows) != 0) | (np.diff(tokens) != 0))) if len(rows) else np.zeros(0, bool)
    counts = np.bincount(np.cumsum(fresh) - 1, weights=counts).astype(np.float64) if len(rows) else counts
    rows, tokens = rows[fresh], tokens[fresh]
    order = np.lexsort((tokens, -counts, rows))
    rows, tokens, counts = rows[order], tokens[order], counts[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    kept = rank < at_most
    out = TokenMixture(np.zeros((num_rows, at_most), np.int64), np.zeros((num_rows, at_most), np.float32))
    out.tokens[rows[kept], rank[kept]] = tokens[kept]
    sums = np.bincount(rows[kept], weights=counts[kept], minlength=num_rows)
    out.weights[rows[kept], rank[kept]] = counts[kept] / sums[rows[kept]]
    return out


class HalvesCollator:
    """Moves the rows of training examples to the counts that do not hold their own document's half."""

    def __init__(self, inner: Callable[[list[Any]], Any], num_rows: int, column: str) -> None:
        self.inner, self.num_rows, self.column = inner, num_rows, column

    def __call__(self, features: list[Any]) -> Any:
        """Collates; each feature has the half of every token under ``column``."""
        halves = torch.stack([feature[self.column] for feature in features])
        batch = self.inner([{k: v for k, v in feature.items() if k != self.column} for feature in features])
        memory = batch[KEY]
        moved = memory.rows + (halves.to(memory.rows.dtype) + 1) * self.num_rows
        batch[KEY] = dataclasses.replace(memory, rows=torch.where(memory.rows >= 0, moved, memory.rows))
        return batch


def start_at_donor(model: nn.Module, bank: Bank) -> None:
    """Sets the trainable rows of each site to the bank's values at its tap."""
    (runtime,) = runtimes_of(find_decoder(model)[0]).values()
    for site, layer in graft_layers(model)["default"].items():
        assert layer.rows is not None
        tap = runtime.tap_of_site[site]
        with torch.no_grad():
            for start in range(0, bank.num_rows, _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, bank.num_rows), dtype=np.int32)
                layer.rows.weight[start : start + len(rows)] = torch.from_numpy(bank.floats(rows)[:, tap])


def one_slot(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """Leaves the fallback of the graft one slot a head: every n-gram reads the same embedding."""
    for layer in graft_layers(model)["default"].values():
        fallback = layer.fallback
        assert fallback is not None
        heads = len(fallback.sizes)
        fallback.sizes.fill_(1)
        fallback.offsets.copy_(torch.arange(heads))
        old = fallback.table
        fallback.table = nn.Embedding(heads, old.embedding_dim, device=old.weight.device)
        with torch.no_grad():
            fallback.table.weight.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
        fallback.num_slots = heads


class SiteMlp(nn.Module):
    """An MLP added to the hidden state before a block, with as many parameters as asked, up to a rounding.

    With ``zero`` it adds nothing at the start, as a graft on a trained model.
    """

    def __init__(
        self, hidden_dim: int, num_parameters: int, seed: int, std: float = 0.02, *, zero: bool = False
    ) -> None:
        super().__init__()
        inner = max(1, round((num_parameters - hidden_dim) / (2 * hidden_dim)))
        self.norm = nn.RMSNorm(hidden_dim, eps=1e-6)
        self.up = nn.Linear(hidden_dim, inner, bias=False)
        self.down = nn.Linear(inner, hidden_dim, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for linear in (self.up, self.down):
                linear.weight.normal_(0.0, std, generator=generator)
            if zero:
                self.down.weight.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = hidden + self.down(nn.functional.silu(self.up(self.norm(hidden))))
        return out


def add_mlp(model: nn.Module, site: int, num_parameters: int, seed: int, *, zero: bool = False) -> None:
    """Attaches a :class:`SiteMlp` before block ``site``, under the name ``memgraft``, which is not the recipient's."""
    _, blocks = find_decoder(model)
    mlp = SiteMlp(int(model.config.hidden_size), num_parameters, seed, zero=zero)  # type: ignore[union-attr, arg-type]
    blocks[site].add_module(KEY, mlp)

    def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (mlp(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": mlp(kwargs["hidden_states"])}

    blocks[site].register_forward_pre_hook(before, with_kwargs=True)
