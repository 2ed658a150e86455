"""What of a grafted model is trained, and how."""

from __future__ import annotations

from typing import Any

from torch import nn

from memgraft.errors import GraftError
from memgraft.integrations.transformers.attach import graft_layers
from memgraft.integrations.transformers.families import find_decoder, unwrap
from memgraft.integrations.transformers.loading import settle
from memgraft.integrations.transformers.runtime import runtimes_of
from memgraft.integrations.transformers.weights import size_of, whole_shape

# Engram: Adam at five times the rate, no decay, for the hash tables (docs/METHOD.md, section 5).
TABLE_LR_FACTOR = 5.0


def mark_trainable(recipient: nn.Module, *, freeze_recipient: bool = True, name: str | None = None) -> None:
    """Lets the graft's weights train; call it after ``get_peft_model``, which freezes what it does not know.

    Args:
        recipient: the grafted model, wrapped or not.
        freeze_recipient: freeze everything else, except what another adapter (a PEFT one) trains.
        name: one graft; all without it.

    Raises:
        GraftError: there is no graft, or a wrapper hides it.
    """
    grafted = graft_layers(recipient, name)
    runtimes = runtimes_of(find_decoder(unwrap(recipient))[0])
    if not runtimes:
        raise GraftError("the model has no graft to train; attach one with graft()")
    refuse_flat(recipient)
    ours = {
        id(parameter) for layers in grafted.values() for layer in layers.values() for parameter in layer.parameters()
    }
    adapted = has_adapter(recipient)
    for parameter in recipient.parameters():
        if id(parameter) in ours:
            parameter.requires_grad_(True)
        elif freeze_recipient and not adapted:
            parameter.requires_grad_(False)
    for key in grafted:
        settle(runtimes[key])


def refuse_flat(recipient: nn.Module) -> None:
    """Refuses a model whose graft's weights a wrapper has merged into tensors of its own.

    Raises:
        GraftError: it has; as FullyShardedDataParallel does with ``use_orig_params=False``.
    """
    for layers in graft_layers(recipient).values():
        for layer in layers.values():
            merged = any(isinstance(module, (nn.Linear, nn.Embedding)) for module in layer.modules())
            if merged and next(layer.parameters(), None) is None:
                raise GraftError(
                    "the graft's weights are part of a wrapper's flat parameters and cannot be told from the "
                    "recipient's: wrap with FullyShardedDataParallel(use_orig_params=True), or use fully_shard"
                )


def has_adapter(recipient: nn.Module) -> bool:
    """Whether PEFT has put an adapter into the model and so decided what else of it trains.

    ``get_peft_model`` wraps the model, transformers' own ``add_adapter`` changes its layers in place; DDP and the like
    hide both from ``hasattr``.
    """
    return any(
        hasattr(module, "peft_config") or any(kind.__name__ == "BaseTunerLayer" for kind in type(module).__mro__)
        for module in recipient.modules()
    )


def optimizer_groups(
    recipient: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    table_lr_factor: float = TABLE_LR_FACTOR,
    rowwise: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: decayed weights, undecayed ones, and tables at their own rate.

    Norms, biases, the convolution and scalars take no decay; hash tables (and trained rows) take none either and
    ``table_lr_factor`` times the rate.

    Args:
        recipient: the grafted model; only parameters that train are listed.
        lr: learning rate.
        weight_decay: for matrices of recipient and graft.
        table_lr_factor: see above.
        rowwise: mark the tables for :class:`memgraft.nn.RowwiseAdamW`.

    Raises:
        GraftError: a wrapper has merged the graft's weights with the recipient's.
    """
    refuse_flat(recipient)
    tables: set[int] = set()
    undecayed: set[int] = set()
    for layers in graft_layers(recipient).values():
        for layer in layers.values():
            if layer.fallback is not None:
                tables.add(id(layer.fallback.table.weight))
            if layer.rows is not None:
                tables.add(id(layer.rows.weight))
            small = [part for part in (layer.key_norm, layer.query_norm, layer.conv) if part is not None]
            undecayed.update(id(parameter) for module in small for parameter in module.parameters())
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "tables": []}
    for parameter in recipient.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            groups["tables"].append(parameter)
        elif id(parameter) in undecayed or len(whole_shape(parameter)) < 2:
            groups["no_decay"].append(parameter)
        else:
            groups["decay"].append(parameter)
    settings: dict[str, dict[str, Any]] = {
        "decay": {"lr": lr, "weight_decay": weight_decay},
        "no_decay": {"lr": lr, "weight_decay": 0.0},
        "tables": {"lr": lr * table_lr_factor, "weight_decay": 0.0},
    }
    if rowwise:
        settings["tables"]["rowwise"] = True
    return [{"params": params, "name": key, **settings[key]} for key, params in groups.items() if params]


def parameter_counts(recipient: nn.Module) -> dict[str, int]:
    """Numbers of weights, all and trainable, and the grafts' share.

    Returns:
        ``trainable``, ``all``; of the grafts ``projections`` (with norms and convolution), ``fallback`` (tables),
        ``bank_rows``, ``bytes_per_hit`` (bank bytes that one hit reads).

    Raises:
        GraftError: a wrapper has merged the graft's weights with the recipient's.
    """
    refuse_flat(recipient)
    decoder, _ = find_decoder(unwrap(recipient))
    fallback = total = 0
    for layers in graft_layers(recipient).values():
        for layer in layers.values():
            total += sum(map(size_of, layer.parameters()))
            if layer.fallback is not None:
                fallback += size_of(layer.fallback.table.weight)
    runtimes = runtimes_of(decoder).values()
    return {
        "trainable": sum(size_of(p) for p in recipient.parameters() if p.requires_grad),
        "all": sum(map(size_of, recipient.parameters())),
        "projections": total - fallback,
        "fallback": fallback,
        "bank_rows": sum(runtime.bank.num_rows for runtime in runtimes),
        "bytes_per_hit": sum(runtime.bank.bytes_per_row for runtime in runtimes),
    }


def print_trainable_parameters(recipient: nn.Module) -> None:
    """Prints the counts of :func:`parameter_counts`; the bank's rows are not parameters and counted apart."""
    counts = parameter_counts(recipient)
    share = 100.0 * counts["trainable"] / max(counts["all"], 1)
    print(  # noqa: T201
        f"trainable params: {counts['trainable']:,} || all params: {counts['all']:,} || trainable%: {share:.4f}\n"
        f"graft: {counts['projections']:,} in projections, norms and convolution; {counts['fallback']:,} in fallback "
        f"tables\nbank (frozen, not a parameter): {counts['bank_rows']:,} rows, {counts['bytes_per_hit']:,} bytes per "
        "hit"
    )
