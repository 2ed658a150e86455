"""The probe itself: a linear softmax from a key's value to the next token, and what stands beside it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from memgraft.probing.hits import Hits, IntArray

FloatArray = npt.NDArray[np.float32]
_EPS = 1e-6
_STRENGTHS = tuple(2.0**power for power in range(11))
"""Tokens of unigram prior that the counts of a key are interpolated with; leaving one out picks one."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a linear softmax is fitted: AdamW, the rate falling to nothing.

    Attributes:
        num_classes: most frequent next tokens that are classes of their own; all others are one more class, and differ
            by their frequency inside it.
        num_hits: training hits, drawn for each seed.
        epochs: passes over them.
        batch_hits: hits a step.
        learning_rate: of the first step.
        weight_decay: of the weights, not of the class offsets.
    """

    num_classes: int = 1024
    num_hits: int = 60_000
    epochs: int = 4
    batch_hits: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Next tokens as classes.

    Attributes:
        of_token: (vocabulary,) the class of each token.
        log_prior: (classes,) log of each class's share of the training hits.
        log_inside: (vocabulary,) log of each token's share of its class.
    """

    of_token: IntArray
    log_prior: FloatArray
    log_inside: FloatArray

    @classmethod
    def of(cls, targets: IntArray, vocab_size: int, num_classes: int) -> "Classes":
        """The ``num_classes`` most frequent of ``targets``, and the others."""
        counts = np.bincount(targets, minlength=vocab_size)
        top = np.argsort(-counts, kind="stable")[: min(num_classes, vocab_size)]
        of_token = np.full(vocab_size, len(top), np.int64)
        of_token[top] = np.arange(len(top))
        shares = (counts + 0.5) / (counts + 0.5).sum()
        inside = np.bincount(of_token, weights=shares)
        return cls(
            of_token=of_token,
            log_prior=np.log(inside).astype(np.float32),
            log_inside=np.log(shares / inside[of_token]).astype(np.float32),
        )


def normalised(values: FloatArray, how: str) -> FloatArray:
    """(N, V) values as the projection reads them."""
    if how == "none":
        return values
    scale = np.sqrt(np.square(values, dtype=np.float64).mean(axis=1, keepdims=True) + _EPS)
    scaled: FloatArray = (values / scale).astype(np.float32)
    return scaled


def softmax_losses(
    values: FloatArray, training: Hits, exam: Hits, classes: Classes, fit: Fit, *, seed: int, device: str = "cpu"
) -> FloatArray:
    """The loss of each exam hit in nats, (E,), under a linear softmax fitted on training hits.

    The same seed draws the same hits in the same order, whatever the values.

    Args:
        values: (N, V) one row a key, normalised.
        training: hits on these rows.
        exam: hits on these rows.
        classes: of the next tokens.
        fit: how it is fitted.
        seed: of the draw and the order of hits.
        device: where it is fitted.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(training))[: fit.num_hits]
    rows = training.rows[chosen]
    # Channels of one size: a few of a donor's are a hundred times larger than the others.
    centre = values[rows].mean(axis=0, dtype=np.float64)
    spread = values[rows].std(axis=0, dtype=np.float64)
    features = torch.from_numpy(((values - centre) / (spread + _EPS)).astype(np.float32)).to(device)
    targets = torch.from_numpy(classes.of_token[training.targets[chosen]]).to(device)
    weight = torch.zeros((len(classes.log_prior), values.shape[1]), device=device, requires_grad=True)
    offset = torch.from_numpy(classes.log_prior.copy()).to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": fit.weight_decay}, {"params": [offset], "weight_decay": 0.0}],
        lr=fit.learning_rate,
    )
    steps_per_epoch = -(-len(rows) // fit.batch_hits)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps_per_epoch * fit.epochs)
    for _ in range(fit.epochs):
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), fit.batch_hits):
            batch = order[start : start + fit.batch_hits]
            # A key that is hit several times in a batch is computed once.
            different, place = np.unique(rows[batch], return_inverse=True)
            scores = torch.log_softmax(features[torch.from_numpy(different).to(device)] @ weight.T + offset, dim=1)
            loss = -scores[torch.from_numpy(place).to(device), targets[torch.from_numpy(batch).to(device)]].mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    wanted = classes.of_token[exam.targets]
    different, place = np.unique(exam.rows, return_inverse=True)
    losses = np.empty(len(exam), np.float32)
    with torch.no_grad():
        for start in range(0, len(different), fit.batch_hits):
            part = torch.from_numpy(different[start : start + fit.batch_hits]).to(device)
            predicted = torch.log_softmax(features[part] @ weight.T + offset, dim=1).cpu().numpy()
            mine = np.flatnonzero((place >= start) & (place < start + len(part)))
            losses[mine] = -predicted[place[mine] - start, wanted[mine]]
    return losses - classes.log_inside[exam.targets]


def unigram_losses(exam: Hits, classes: Classes) -> FloatArray:
    """The loss of each exam hit by the frequency of its next token among training hits alone."""
    return -(classes.log_prior[classes.of_token[exam.targets]] + classes.log_inside[exam.targets])


def count_losses(training: Hits, exam: Hits, classes: Classes) -> tuple[FloatArray, float]:
    """The loss of each exam hit by the next tokens counted after its key, interpolated with their frequency.

    Returns:
        Losses (E,), and the tokens of prior: those under which training hits, each left out of its own count, are
        likeliest.
    """
    width = len(classes.log_prior)
    prior = np.exp(classes.log_prior.astype(np.float64))
    pairs, counts = np.unique(training.rows * width + classes.of_token[training.targets], return_counts=True)
    num_rows = int(max(training.rows.max(initial=-1), exam.rows.max(initial=-1))) + 1
    totals = np.bincount(training.rows, minlength=num_rows)

    def counted(hits: Hits) -> tuple[IntArray, IntArray, IntArray]:
        wanted = classes.of_token[hits.targets]
        key = hits.rows * width + wanted
        place = np.minimum(np.searchsorted(pairs, key), len(pairs) - 1)
        return np.where(pairs[place] == key, counts[place], 0), totals[hits.rows], wanted

    seen, total, wanted = counted(training)
    likelihoods = [
        np.log((seen - 1 + strength * prior[wanted]) / (total - 1 + strength)).mean() for strength in _STRENGTHS
    ]
    strength = _STRENGTHS[int(np.argmax(likelihoods))]
    seen, total, wanted = counted(exam)
    losses = -np.log((seen + strength * prior[wanted]) / (total + strength)) - classes.log_inside[exam.targets]
    return losses.astype(np.float32), strength


def difference_interval(
    losses: FloatArray, others: FloatArray, documents: IntArray, seed: int = 0
) -> tuple[float, float]:
    """95 % of the mean of ``losses - others`` over exam hits, by drawing documents with replacement."""
    _, document = np.unique(documents, return_inverse=True)
    sums = np.bincount(document, weights=losses.astype(np.float64) - others)
    sizes = np.bincount(document).astype(np.float64)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=1000)
    low, high = np.quantile((draws @ sums) / np.maximum(draws @ sizes, 1.0), (0.025, 0.975))
    return float(low), float(high)
