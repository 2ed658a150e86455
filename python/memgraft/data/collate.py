"""A collator that adds each batch's memory to what the inner collator makes."""

import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import default_collate, get_worker_info

from memgraft.bank import Memory, open_memory
from memgraft.bank.annotation import ORDERS_COLUMN, ROWS_COLUMN, has_annotated
from memgraft.bank.overlay import Where
from memgraft.boundaries import MARKS, RAGGED
from memgraft.data.batch import KEY, MemoryBatch
from memgraft.data.dispatch import refuse_if_dispatching
from memgraft.data.handle import ShippedIds
from memgraft.data.masks import UnreadableMask
from memgraft.data.segments import (
    PADDING,
    combine,
    ending_ids,
    from_batch,
    from_columns,
    from_examples,
    lay_out,
    positions_in,
)
from memgraft.errors import ArgumentError, ConfigError

_PADS = "give inner=, a collator that pads and makes tensors: DataCollatorForLanguageModeling(tokenizer, mlm=False)"
"""The way out where torch's own collator stands for one."""


class GraftCollator:
    """Adds ``batch["memgraft"]``: rows by longest match, found in the loader's worker.

    Rows cross to the trainer's process as ids, 5 bytes a token in either mode (an ids tensor in memory has 12);
    `prefetch`, or the grafted model itself, gathers the values there.

    Look-back stops where the batch, or an example of it, says that a document starts: `memgraft.boundaries` lists what
    is understood. Examples that `memgraft.bank.annotation` has annotated bring their rows along.

    Args:
        bank: the bank or its path; pickles by path, so spawned workers open it themselves.
        inner: makes the batch, with ``input_ids (B, T)``; if None torch's ``default_collate``, for tensors of one
            length.
        mode: ``handle`` gives a `MemoryBatch`; ``ids`` one int32 tensor ``(B, T, 3)``, which also survives
            accelerate's ``dispatch_batches=True``.
        eos_id: also end a segment at each EOS (one token or several).
        column: a column of the examples with one segment id per token (taken out before ``inner`` runs).
        threads: lookup threads; 1 suits loader workers.
        annotated: whether the examples bring rows along. True refuses examples that do not, False looks up without a
            word; None warns once where this open bank has annotated a dataset and the columns have gone.

    Raises:
        ConfigError: unknown ``mode``, or an ``inner`` that cannot be called.
        ArgumentError: no bank, or an ``eos_id`` that is no token id.
    """

    def __init__(
        self,
        bank: Memory | Where,
        inner: Callable[[list[Any]], Any] | None = None,
        *,
        mode: Literal["handle", "ids"] = "handle",
        eos_id: int | Sequence[int] | None = None,
        column: str | None = None,
        threads: int = 1,
        annotated: bool | None = None,
    ) -> None:
        if mode not in ("handle", "ids"):
            raise ConfigError(f"mode {mode!r}: expected 'handle' or 'ids'")
        if inner is not None and not callable(inner):
            raise ConfigError(f"inner: expected a collator, that is a function of examples, got {inner!r:.80}")
        self.bank = open_memory(bank)
        self.inner = _stack if inner is None else inner
        self.mode = mode
        if eos_id is not None:
            ending_ids(eos_id)
        self.eos_id = eos_id
        self.column = column
        self.threads = threads
        self.annotated = annotated

    def __repr__(self) -> str:
        """The bank, what makes the batches, and what differs from the default."""
        inner = getattr(self.inner, "__name__", type(self.inner).__name__)
        said = {"eos_id": self.eos_id, "column": self.column, "annotated": self.annotated}
        options = "".join(f", {name}={value!r}" for name, value in said.items() if value is not None)
        return f"GraftCollator({self.bank!r}, inner={inner}, mode={self.mode!r}{options})"

    def __call__(self, features: Sequence[Any]) -> Any:
        """Collates ``features`` and adds their memory.

        Raises:
            ConfigError: handles for a loader that accelerate dispatches.
            ArgumentError: the inner batch has no ``input_ids (B, T)``, or a column does not fit it.
            TokenError: a negative token that is not padding.
        """
        names = [name for name in (self.column, ROWS_COLUMN, ORDERS_COLUMN) if name is not None]
        features, columns = _take(list(features), names)
        if self.column is not None and columns[self.column] is None:
            raise ArgumentError(
                f"column {self.column!r}: not in the examples; the Trainer drops columns that the model's forward "
                "does not name: set remove_unused_columns=False"
            )
        batch = self.inner(features)
        if not isinstance(batch, (Mapping, MutableMapping)) or not isinstance(batch.get("input_ids"), torch.Tensor):
            way_out = f"; {_PADS}" if self.inner is _stack else ""
            expected = "expected a mapping with a tensor input_ids (B, T)"
            raise ArgumentError(f"the inner collator gave {_describe(batch)}: {expected}{way_out}")
        memory = self._memory(batch, features, columns)
        if self.mode == "handle":
            refuse_if_dispatching(self)
            batch[KEY] = memory  # type: ignore[index]
        else:
            in_worker = get_worker_info() is not None
            batch[KEY] = ShippedIds.of(memory) if in_worker else memory.to_ids()  # type: ignore[index]
        return batch

    def _memory(
        self, batch: Mapping[str, Any], features: list[Any], columns: Mapping[str, list[Any] | None]
    ) -> MemoryBatch:
        input_ids = batch["input_ids"]
        shape = (int(input_ids.shape[0]), int(input_ids.shape[1]))
        mask = _where_tokens_lie(batch, features)
        given = from_examples(features, batch, mask, shape)
        if self.column is not None and (column := columns[self.column]) is not None:
            segments = from_columns(column, mask, shape)
            given = segments if given is None else combine(given, segments)
        said = [name for name in batch if MARKS.get(name) in RAGGED and any(name in feature for feature in features)]
        left = {name: value for name, value in batch.items() if name not in said}
        segments = from_batch(left, eos_id=self.eos_id, given=given)
        rows, orders = columns[ROWS_COLUMN], columns[ORDERS_COLUMN]
        if rows is None or orders is None:
            self._miss_annotation()
            return MemoryBatch.look_up(self.bank, input_ids, segments, threads=self.threads)
        laid_orders = lay_out(orders, mask, shape, fill=0, name=ORDERS_COLUMN)
        if bool((laid_orders > positions_in(segments).cpu())[segments.cpu() >= 0].any()):
            raise ArgumentError(
                f"{ORDERS_COLUMN}: a key reaches back over the start of its segment: the examples were cut or merged "
                "after they were annotated; annotate them as they are trained on, or use Annotation.example"
            )
        laid_rows = lay_out(rows, mask, shape, fill=-1, name=ROWS_COLUMN)
        padding = segments.cpu() < 0
        return MemoryBatch(
            rows=torch.where(padding, -1, laid_rows),
            orders=torch.where(padding, 0, laid_orders).to(torch.uint8),
            segments=segments,
            source=(self.bank.fingerprint, self.bank.space),
        )

    def _miss_annotation(self) -> None:
        """Says that examples come without rows where some were found for them."""
        if self.annotated is False or (self.annotated is None and not has_annotated(self.bank)):
            return
        message = (
            f"examples without the columns {ROWS_COLUMN} and {ORDERS_COLUMN} that annotate_dataset gave them: the "
            "Trainer drops columns that the model's forward does not name, set remove_unused_columns=False"
        )
        if self.annotated:
            raise ArgumentError(message)
        self.annotated = False
        warnings.warn(f"{message}; until then rows are looked up again", stacklevel=3)


def _where_tokens_lie(batch: Mapping[str, Any], features: list[Any]) -> torch.Tensor | None:
    """The mask that columns of the examples are laid by; None where nothing was padded, or no mask says so."""
    try:
        segments = from_batch({name: batch[name] for name in ("input_ids", "attention_mask") if name in batch})
    except UnreadableMask:
        return None
    lie = segments != PADDING
    for place, feature in enumerate(features if len(features) == len(lie) else []):
        if isinstance(feature, Mapping) and "input_ids" in feature and len(feature["input_ids"]) == lie.shape[1]:
            lie[place] = True  # padded before it was collated: its columns have a number for each place
    return lie


def _take(features: list[Any], names: list[str]) -> tuple[list[Any], dict[str, list[Any] | None]]:
    """The features without ``names``, and those columns (None where no example has them)."""
    columns: dict[str, list[Any] | None] = {}
    mappings = bool(features) and all(isinstance(feature, Mapping) for feature in features)
    for name in names:
        present = [mappings and name in feature for feature in features]
        if any(present) and not all(present):
            raise ArgumentError(f"column {name!r}: in some examples of the batch and not in others")
        columns[name] = [feature[name] for feature in features] if any(present) else None
    if any(column is not None for column in columns.values()):
        features = [{key: value for key, value in feature.items() if key not in names} for feature in features]
    return features, columns


def _stack(features: list[Any]) -> Any:
    """``default_collate`` of torch, whose refusal of examples that differ in length names who pads them."""
    try:
        return default_collate(features)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"the examples do not stack ({error}); {_PADS}") from error


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        ids = batch.get("input_ids")
        if ids is not None and not isinstance(ids, torch.Tensor):
            return f"a mapping whose input_ids are a {type(ids).__name__}"
        return f"a mapping with {', '.join(map(str, batch)) or 'nothing'}"
    return type(batch).__name__
