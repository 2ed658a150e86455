"""Memory into the values of a block's attention: behind the projection that makes them, before heads and the cache.

The block's own hook knows the call's memory, the projection's hook knows the values. What the first one hands to the
second lies in one place for each thread, for as long as the block runs.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memgraft.data.handle import KEY
from memgraft.errors import GraftError
from memgraft.nn.graft_layer import GraftLayer

# (hidden, values) -> the values with the memory of every graft of the block in them.
Write = Callable[[Tensor], Tensor]
# Attention classes with one projection for queries, keys and values, in this order and not interleaved by head.
_FUSED = {"GPT2Attention": "c_attn", "Phi3Attention": "qkv_proj"}


@dataclasses.dataclass(frozen=True)
class ValueProjection:
    """Where a block makes its attention's values.

    Attributes:
        module: the projection.
        name: its path in the block.
        start: first output channel that is a value; those after it all are.
        width: channels that are values: heads of keys and values times the head's width.
    """

    module: nn.Module
    name: str
    start: int
    width: int


def value_projection(block: nn.Module, site: int) -> ValueProjection:
    """Finds it.

    Raises:
        GraftError: the block has no attention with such a projection, or it lies inside another one.
    """
    found = [
        (name, _innermost(module))
        for name, module in block.named_modules()
        if name.rpartition(".")[2] == "v_proj" and KEY not in name.split(".")
    ]
    if len(found) == 1:
        name, module = found[0]
        if width := _outputs(module):
            return ValueProjection(module, name, 0, width)
    elif not found:
        fused = [
            (f"{name}.{_FUSED[type(part).__name__]}", part)
            for name, part in block.named_modules()
            if type(part).__name__ in _FUSED
        ]
        if len(fused) == 1:
            name, attention = fused[0]
            module = _innermost(getattr(attention, _FUSED[type(attention).__name__]))
            outputs, config = _outputs(module), attention.config
            if type(attention).__name__ == "GPT2Attention":
                width = int(config.hidden_size)
            else:
                width = int(config.num_key_value_heads) * int(attention.head_dim)
            if outputs > 2 * width:
                return ValueProjection(module, name, outputs - width, width)
    kinds = sorted({type(module).__name__ for name, module in block.named_children() if name != KEY})
    raise GraftError(
        f'into="values", block {site} ({type(block).__name__}: {", ".join(kinds)}): expected one projection called '
        f"v_proj, or that of GPT-2 or Phi-3, found {len(found)}: its values are made otherwise (latent or linear "
        'attention, a projection interleaved by head). Choose other sites, or into="residual"'
    )


def _innermost(module: nn.Module) -> nn.Module:
    """The projection inside an adapter, which merging the adapter leaves in place."""
    inner = getattr(module, "base_layer", None)
    return _innermost(inner) if isinstance(inner, nn.Module) else module


def _outputs(module: nn.Module) -> int:
    """Output channels; GPT-2's Conv1D calls them nf."""
    found = getattr(module, "out_features", None) or getattr(module, "nf", None)
    return int(found) if isinstance(found, int) else 0


def writes_values(grafts: nn.Module | None, through: Callable[[nn.Module], nn.Module]) -> bool:
    """Whether one of a block's graft layers writes into its values."""
    return grafts is not None and any(_target(layer, through) for layer in grafts.children())


def _target(layer: nn.Module, through: Callable[[nn.Module], nn.Module]) -> bool:
    inner = layer if isinstance(layer, GraftLayer) else through(layer)
    return isinstance(inner, GraftLayer) and inner.target_dim is not None


class _Place(threading.local):
    """What a block has handed to its projection and has not been fetched."""

    waiting: tuple[int, Write | None] | None = None


class _TracedPlace:
    """The same for calls that a compiler traces, in one thread at a time: it cannot follow a thread's own."""

    waiting: tuple[int, Write | None] | None = None


_place, _traced = _Place(), _TracedPlace()


def _here() -> Any:
    return _traced if torch.compiler.is_compiling() else _place


def hand_over(site: int, write: Write | None) -> None:
    """Leaves for the projection of block ``site`` what it will do to its values; ``None``: nothing, in this call."""
    _here().waiting = (site, write)


_CHECKPOINT = "_gradient_checkpointing_func"


def recomputes(block: nn.Module) -> bool:
    """Whether transformers will run a block's forward, without its hooks, once more in the backward."""
    return bool(getattr(block, "gradient_checkpointing", False)) and block.training and torch.is_grad_enabled()


def follow_recomputation(block: nn.Module) -> None:
    """Lets what is handed over in this call be handed over again when the block's forward is computed again.

    Raises:
        GraftError: reentrant checkpointing, which gives no gradients to what its function does not take as an argument.
    """
    inner = getattr(block, _CHECKPOINT, None)
    if inner is not None and recomputes(block) and not isinstance(inner, _Recomputed):
        if getattr(inner, "keywords", {}).get("use_reentrant"):
            raise GraftError(
                'into="values" needs checkpointing that is not reentrant: give gradient_checkpointing_kwargs='
                '{"use_reentrant": False}'
            )
        setattr(block, _CHECKPOINT, _Recomputed(inner))


class _Recomputed:
    """Stands in for a block's checkpointing function.

    Args:
        inner: that function.
    """

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs ``forward`` now and in the backward, each time with what waits now."""
        place = _here()
        waiting, place.waiting = place.waiting, None
        if waiting is not None:
            forward = functools.partial(_handing_over, waiting, forward)
        return self.inner(forward, *args, **kwargs)


def _handing_over(waiting: tuple[int, Write | None], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    hand_over(*waiting)
    return forward(*args, **kwargs)


class ValueHook:
    """Forward hook of the projection.

    Args:
        site: number of its block.
        start: first channel of its output that is a value.
    """

    def __init__(self, site: int, start: int) -> None:
        self.site, self.start = site, start

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The output with the memory in its values."""
        place = _here()
        waiting, place.waiting = place.waiting, None
        if waiting is None or waiting[0] != self.site:
            raise GraftError(
                f"block {self.site}: its attention's values were computed twice in one call, or outside of the block's "
                'own call (a checkpoint around a part of the block): into="values" needs whole blocks. Use '
                'into="residual"'
            )
        write: Write | None = waiting[1]
        if write is None:
            return output
        if self.start == 0:
            return write(output)
        return torch.cat([output[..., : self.start], write(output[..., self.start :])], dim=-1)


class BlockEndHook:
    """Forward hook of the block: what its projection did not fetch would be lost in silence.

    Args:
        site: number of the block.
    """

    def __init__(self, site: int) -> None:
        self.site = site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Refuses."""
        place = _here()
        waiting, place.waiting = place.waiting, None
        if waiting is not None and waiting[1] is not None:
            raise GraftError(
                f"block {self.site} ({type(module).__name__}) ran without its projection of values (it shares another "
                'block\'s, or a wrapper computes it): use into="residual", or other sites'
            )


def install(block: nn.Module, site: int) -> None:
    """Puts both hooks into a block, once."""
    if any(isinstance(hook, BlockEndHook) for hook in block._forward_hooks.values()):
        return
    projection = value_projection(block, site)
    projection.module.register_forward_hook(ValueHook(site, projection.start))
    block.register_forward_hook(BlockEndHook(site))


def uninstall(block: nn.Module) -> None:
    """Takes them out."""
    for module, key in list(_hooks(block)):
        del module._forward_hooks[key]
    if isinstance(checkpoint := getattr(block, _CHECKPOINT, None), _Recomputed):
        setattr(block, _CHECKPOINT, checkpoint.inner)


def _hooks(block: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    for module in block.modules():
        for key, hook in module._forward_hooks.items():
            if isinstance(hook, ValueHook | BlockEndHook):
                yield module, key
