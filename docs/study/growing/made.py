"""New keys with rows that no donor gave: made of next-token counts, or of the recipient's own embeddings.

The study's recipients read donor rows, so a row made of something else has to be carried into the donor's space first:
by the linear map that does so best for the base's keys (ridge regression; solved, not trained). It says whether the new
keys need a donor, once some keys have rows of one.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import memgraft
from memgraft.experiments.sources import RecipientRows, TokenMixture, count_mixture, key_mixture

Floats = npt.NDArray[np.float32]
HELD_OUT = 0.1
"""Share of the base's keys that the map is not fitted to; R2 is measured on these."""
MIXTURES: dict[tuple[str, str, str], TokenMixture] = {}
"""By source, bank and text: the same for all recipients."""


class Maker:
    """Makes rows for overlays of one recipient from one source.

    Attributes:
        r2: how much of the variance of the base's rows the map explains, on keys that it was not fitted to.
    """

    def __init__(self, source: str, model: Any, base: memgraft.Bank, text: memgraft.Corpus) -> None:
        self.source, self.base = source, base
        # COUNT (arXiv 2610.20456) mixes rows of the output head, NGM (arXiv 2605.16893) rows of the input embedding.
        self.module = model.get_output_embeddings() if source == "counts" else model.get_input_embeddings()
        features, known = self._features(base, text, 0)
        rows = np.flatnonzero(known)
        wanted = base.floats(rows.astype(np.int32))[:, 0]
        order = np.random.default_rng(0).permutation(len(rows))
        held_out = order[: int(len(order) * HELD_OUT)]
        fitted = order[len(held_out) :]
        self.map = ridge(features[rows[fitted]], wanted[fitted])
        left = wanted[held_out] - self._mapped(features[rows[held_out]])
        self.r2 = float(1 - left.var(axis=0).sum() / wanted[held_out].var(axis=0).sum())

    def _features(self, bank: memgraft.Bank, text: memgraft.Corpus, first: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The recipient's mixture of each row from ``first`` on, and whether the row has one; ``text`` is counted."""
        name = (self.source, bank.fingerprint, text.fingerprint)
        if name not in MIXTURES:
            mixture = count_mixture(bank, text) if self.source == "counts" else key_mixture(bank)
            own = slice(first, bank.num_rows)
            MIXTURES[name] = TokenMixture(mixture.tokens[own], mixture.weights[own])
        mixture = MIXTURES[name]
        rows = np.arange(len(mixture.tokens))
        return RecipientRows(self.module, mixture, 1).floats(rows)[:, 0], mixture.weights.any(1)

    def _mapped(self, features: Floats) -> Floats:
        return np.append(features, np.ones((len(features), 1), np.float32), 1) @ self.map

    @contextmanager
    def overlay(self, path: Path, text: memgraft.Corpus, folder: Path) -> Iterator[memgraft.Bank]:
        """The keys of the overlay at ``path`` with made rows, on the base.

        A key that ``text`` gives no count is left out: COUNT has nothing to say there. What is made lies in ``folder``
        and goes when the block ends.
        """
        keys, stacked = memgraft.Bank.open(path), memgraft.Bank.open([self.base.path, path])
        if self.source == "counts":
            features, known = self._features(stacked, text, self.base.num_rows)
        else:
            features, known = self._features(keys, text, 0)
        rows = np.flatnonzero(known)
        memgraft.Bank.create(
            folder,
            keys=keys.keys.select(rows),
            values=self._mapped(features[rows])[:, None],
            taps=keys.taps,
            dtype=keys.dtype,
            donor=keys.manifest.donor,
            tokenizer=keys.manifest.tokenizer,
        )
        try:
            yield memgraft.Bank.open([self.base.path, folder])
        finally:
            shutil.rmtree(folder)


def ridge(features: Floats, wanted: Floats, weight: float = 1e-3) -> Floats:
    """The map (F + 1, D) from ``features`` (N, F) and a constant to ``wanted`` (N, D) with the least squared error.

    ``weight`` is the penalty as a share of the features' mean square.
    """
    whole = np.append(features, np.ones((len(features), 1), np.float32), 1).astype(np.float64)
    gram = whole.T @ whole
    gram += np.eye(len(gram)) * weight * np.trace(gram) / len(gram)
    found: Floats = np.linalg.solve(gram, whole.T @ wanted.astype(np.float64)).astype(np.float32)
    return found
