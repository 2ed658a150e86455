"""What accelerate makes of a loader, and the one combination that cannot work: dispatching and handles.

With ``dispatch_batches=True`` (its default for an ``IterableDataset``) one process reads, and each batch is cut
along its first dimension and sent to the others. Tensors can be cut; a `MemoryBatch` cannot.
"""

import sys
from typing import Any

from memgraft.errors import ConfigError

SHARD, DISPATCHER = "DataLoaderShard", "DataLoaderDispatcher"


def prepared_by_accelerate(loader: Any) -> str | None:
    """The name of accelerate's loader class that ``loader`` is, if it is one."""
    names = [base.__name__ for base in type(loader).__mro__ if base.__module__.startswith("accelerate.")]
    return next((name for name in names if name in (SHARD, DISPATCHER)), None)


def collator_of(loader: Any) -> Any:
    """The collator of ``loader``, out of the wrapper that transformers puts around it to drop columns."""
    collator = getattr(loader, "collate_fn", None)
    while (inner := getattr(collator, "data_collator", None)) is not None:
        collator = inner
    return collator


def refuse_dispatched_handles(loader: Any) -> None:
    """Refuses a loader that dispatches what a `GraftCollator` in handle mode makes.

    Raises:
        ConfigError: it does.
    """
    if prepared_by_accelerate(loader) == DISPATCHER and getattr(collator_of(loader), "mode", None) == "handle":
        raise ConfigError(
            "accelerate's dispatch_batches=True (the default for an IterableDataset) cannot cut a MemoryBatch: use "
            "GraftCollator(mode='ids'), or dispatch_batches=False"
        )


def refuse_if_dispatching(collator: Any = None) -> None:
    """`refuse_dispatched_handles` for the loader that accelerate iterates at this moment, if it does.

    Called where handles are made and where they arrive, because accelerate asks no collator before it cuts batches.

    Args:
        collator: asks only about the loader of this collator; any handle collator by default.

    Raises:
        ConfigError: as above.
    """
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is None:
        return
    active = accelerate.GradientState().active_dataloader
    if active is not None and (collator is None or collator_of(active) is collator):
        refuse_dispatched_handles(active)
