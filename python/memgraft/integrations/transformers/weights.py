"""A graft's weights as whole tensors, whatever holds parts of them elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from memgraft.errors import GraftError
from memgraft.integrations.transformers.attach import graft_layers
from memgraft.integrations.transformers.runtime import GraftRuntime
from memgraft.nn.graft_layer import GraftLayer

Gather = Callable[[Tensor], Tensor]


def whole_weights(recipient: nn.Module, runtime: GraftRuntime, gather: Gather | None) -> dict[str, Tensor]:
    """Every tensor of a graft by ``sites.<site>.<name in the layer>``, on the CPU.

    DeepSpeed ZeRO-3 parameters are gathered and weights that accelerate offloaded are fetched here.

    Raises:
        GraftError: a tensor is missing, sharded, on the meta device or of another shape than it was made with.
    """
    weights: dict[str, Tensor] = {}
    for site, layer in graft_layers(recipient, runtime.name).get(runtime.name, {}).items():
        with _gathered(layer), _fetched(layer):
            for name, tensor in layer.state_dict().items():
                key = f"sites.{site}.{name}"
                weights[key] = _whole(key, tensor, gather)
    _check(weights, runtime.shapes, "save")
    return weights


def copy_weights(recipient: nn.Module, runtime: GraftRuntime, weights: Mapping[str, Tensor]) -> None:
    """Copies whole tensors, by the same names, into a graft's layers.

    Raises:
        GraftError: a weight of the model is sharded or on the meta device.
    """
    for site, layer in graft_layers(recipient, runtime.name).get(runtime.name, {}).items():
        with _gathered(layer, write=True):
            state = {f"sites.{site}.{name}": tensor for name, tensor in layer.state_dict().items()}
            shapes = {key: tuple(tensor.shape) for key, tensor in weights.items() if key in state}
            _check({key: _whole(key, tensor, None) for key, tensor in state.items()}, shapes, "load")
            with torch.no_grad():
                for key, tensor in state.items():
                    tensor.copy_(weights[key])


def _whole(key: str, tensor: Tensor, gather: Gather | None) -> Tensor:
    if hasattr(tensor, "full_tensor"):
        if gather is None:
            raise GraftError(f"{key} is sharded: pass save_graft(..., gather=lambda p: p.full_tensor()), on every rank")
        tensor = gather(tensor)
    if tensor.device.type == "meta":
        raise GraftError(f"{key} is on the meta device and nothing brings it: load the model's weights first")
    return tensor.detach().cpu().contiguous()


def _check(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], verb: str) -> None:
    missing = sorted(set(expected) - set(found))
    if missing:
        raise GraftError(
            f"cannot {verb} the graft: {', '.join(missing)} cannot be found (FSDP with use_orig_params=False keeps "
            "weights in one flat tensor): wrap the call in FullyShardedDataParallel.summon_full_params(model), on "
            "every rank"
        )
    for key, tensor in found.items():
        if key in expected and tuple(tensor.shape) != tuple(expected[key]):
            raise GraftError(
                f"cannot {verb} the graft: {key}: expected shape {tuple(expected[key])}, found {tuple(tensor.shape)}: "
                "something holds the weights in parts. Call it with them gathered, on every rank: inside "
                "deepspeed.zero.GatheredParameters(model.parameters()) or FullyShardedDataParallel."
                "summon_full_params(model)"
            )


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, also where DeepSpeed's ZeRO-3 holds a part of it and shows none."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def size_of(parameter: Tensor) -> int:
    """Numbers in a parameter, also where ZeRO-3 holds a part of it."""
    return math.prod(whole_shape(parameter))


@contextlib.contextmanager
def _gathered(layer: GraftLayer, *, write: bool = False) -> Iterator[None]:
    """DeepSpeed's ZeRO-3 keeps parameters of size 0 outside its own context; what is written, rank 0 gives to all."""
    scattered = [p for p in layer.parameters() if hasattr(p, "ds_id") and p.numel() == 0]
    if not scattered or importlib.util.find_spec("deepspeed") is None:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(scattered, modifier_rank=0 if write else None):
        yield


@contextlib.contextmanager
def _fetched(layer: GraftLayer) -> Iterator[None]:
    """Accelerate keeps offloaded weights on the meta device between calls."""
    hooked = [module for module in layer.modules() if hasattr(module, "_hf_hook")]
    with contextlib.ExitStack() as stack:
        if hooked:
            from accelerate.utils import align_module_device

            for module in hooked:
                stack.enter_context(align_module_device(module, torch.device("cpu")))
        yield
