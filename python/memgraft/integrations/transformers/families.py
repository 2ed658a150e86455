"""Where a transformers model keeps its decoder layers, and whether a side input reaches them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from torch import nn

from memgraft.errors import GraftError

# Model types whose every mode is compared with the full forward by our tests.
TESTED_FAMILIES = ("deepseek_v3", "gemma3_text", "gpt2", "gpt_neox", "llama", "mixtral", "olmo2", "qwen3")
_RULE = (
    "A causal language model works when its decoder loops over a ModuleList of layers and passes **kwargs to each; "
    f"tested families: {', '.join(TESTED_FAMILIES)}; most others that are written like Llama work too. Known not to: "
    "bloom, codegen, falcon, gpt_neo, gptj, mamba, mpt, rwkv"
)


@dataclasses.dataclass(frozen=True)
class Recipient:
    """The parts of a model that a graft touches.

    Attributes:
        model: the innermost model with a head (adapter wrappers stripped).
        decoder: the module that owns the layers and receives ``input_ids``.
        layers: its decoder layers.
        hidden_dim: width D.
        vocab_size: rows of the embedding.
        forward_names: parameter names of the decoder's forward, in order.
    """

    model: nn.Module
    decoder: nn.Module
    layers: nn.ModuleList
    hidden_dim: int
    vocab_size: int
    forward_names: tuple[str, ...]


def unwrap(model: nn.Module) -> nn.Module:
    """Strip PEFT, DDP and ``torch.compile`` wrappers."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif type(inner).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = inner.module
        else:
            unwrapped: nn.Module = inner
            return unwrapped


def find_decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The module that owns the decoder layers, and those layers.

    Raises:
        GraftError: none found, or more than one candidate.
    """
    config = text_config(model)
    num_layers = getattr(config, "num_hidden_layers", None)
    get_decoder: Any = getattr(model, "get_decoder", None)
    start: nn.Module = (get_decoder() if get_decoder is not None else None) or model
    found = [
        (module, child)
        for module in start.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers and name in ("layers", "h", "blocks", "layer")
    ]
    if len(found) != 1:
        raise GraftError(
            f"{type(model).__name__}: expected one ModuleList of {num_layers} decoder layers, found {len(found)}. "
            f"{_RULE}"
        )
    return found[0]


def inspect_recipient(model: nn.Module) -> Recipient:
    """Find what a graft attaches to.

    Raises:
        GraftError: an encoder-decoder, a family whose layers get no kwargs, or no decoder layers found.
    """
    model = unwrap(model)
    name = type(model).__name__
    config = text_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise GraftError(f"{name} is an encoder-decoder. {_RULE}")
    decoder, layers = find_decoder(model)
    if not layers_receive_kwargs(type(decoder)):
        raise GraftError(
            f"{name} ({getattr(config, 'model_type', '?')}): {type(decoder).__name__}.forward passes no **kwargs to "
            f"its layers, so a side input cannot reach them. {_RULE}"
        )
    names = tuple(inspect.signature(decoder.forward).parameters)
    if "input_ids" not in names:
        raise GraftError(f"{name}: {type(decoder).__name__}.forward takes no input_ids. {_RULE}")
    return Recipient(
        model=model,
        decoder=decoder,
        layers=layers,
        hidden_dim=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        forward_names=names,
    )


def layers_receive_kwargs(decoder_type: type[nn.Module]) -> bool:
    """Whether the decoder's forward calls each layer of its loop with ``**kwargs``, by its source.

    The layer hooks check again at every call, so a wrong yes is still an error and never a silent no.
    """
    forward = inspect.unwrap(decoder_type.forward)
    if "kwargs" not in {p.name for p in inspect.signature(forward).parameters.values() if p.kind is p.VAR_KEYWORD}:
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError):
        return True  # no source at hand: left to the check at run time
    for loop in (node for node in ast.walk(tree) if isinstance(node, ast.For)):
        targets = {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}
        for call in (node for node in ast.walk(loop) if isinstance(node, ast.Call)):
            by_name = isinstance(call.func, ast.Name) and call.func.id in targets
            if by_name and any(keyword.arg is None for keyword in call.keywords):
                return True
    return False


def text_config(model: nn.Module) -> Any:
    """The language model's part of a model's config.

    Raises:
        GraftError: not a transformers model.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise GraftError(f"{type(model).__name__} has no config: expected a transformers model. {_RULE}")
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
