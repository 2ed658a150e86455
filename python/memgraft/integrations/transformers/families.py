"""Where a transformers model keeps its decoder layers, and whether a side input reaches them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from torch import nn

from memgraft.errors import ArgumentError, GraftError

# Model types that our tests compare with the full forward, mode by mode.
TESTED_FAMILIES = (
    "apertus", "arcee", "bamba", "biogpt", "bitnet", "cohere", "cohere2", "cwm", "deepseek_v2", "deepseek_v3",
    "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon_h1", "flex_olmo", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "granite", "granitemoe",
    "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jamba", "lfm2", "llama",
    "llama4_text", "minimax_m2", "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3", "olmoe",
    "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe",
    "qwen3_next", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
)  # fmt: skip
RULE = (
    "A causal language model works when its decoder loops over a ModuleList of layers and passes **kwargs to each; "
    f"tested families: {', '.join(TESTED_FAMILIES)}; most others that are written like Llama work too. Known not to: "
    "bloom, falcon, gemma3n, gpt_neo, mamba, mpt, rwkv (before transformers 5.24 also codegen and gptj)"
)


@dataclasses.dataclass(frozen=True)
class Recipient:
    """The parts of a model that a graft touches.

    Attributes:
        model: the innermost model with a head (adapter wrappers stripped).
        decoder: the module that owns the layers and receives ``input_ids``.
        layers: its decoder layers, without the wrappers around each.
        hidden_dim: width D.
        vocab_size: rows of the embedding.
        streams: residual streams of its hidden state, (B, T, S, D) if more than one.
        forward_names: parameter names of the decoder's forward, in order.
    """

    model: nn.Module
    decoder: nn.Module
    layers: list[nn.Module]
    hidden_dim: int
    vocab_size: int
    streams: int
    forward_names: tuple[str, ...]


# Where wrappers keep what they wrap: torch.compile, activation checkpointing and offloading, FSDP 1; and whose one
# child is called ``module``: DDP, DataParallel, DeepSpeed's engine, FSDP 1 again.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")


def look_through(module: nn.Module) -> nn.Module:
    """The module inside any wrappers: known ones, and those that have one child and no weights of their own."""
    while True:
        children = dict(module.named_children())
        wrapped = next((children[name] for name in _WRAPPED if name in children), None)
        if wrapped is None and len(children) == 1 and _is_bare(module):
            (wrapped,) = children.values()
        if wrapped is None:
            return module
        module = wrapped


def _is_bare(module: nn.Module) -> bool:
    containers = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    has_weights = any(True for _ in module.parameters(recurse=False))
    return not (has_weights or isinstance(module, containers) or hasattr(type(module), "config_class"))


def unwrap(model: nn.Module) -> nn.Module:
    """Strips wrappers around the whole model: PEFT, DDP, FSDP, DeepSpeed, ``torch.compile``, one's own.

    Raises:
        ArgumentError: no model.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"recipient: expected a model, got a {type(model).__name__}; AutoModelForCausalLM.from_pretrained opens one"
        )
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            further = inner.get_base_model()
        elif getattr(type(inner), "config_class", None) is not None:
            further = inner
        else:
            further = look_through(inner)
        if further is inner:
            unwrapped: nn.Module = inner
            return unwrapped
        inner = further


def find_decoder(model: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The module that owns the decoder layers, and those layers without the wrappers around each.

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
            f"{RULE}"
        )
    decoder, layers = found[0]
    return decoder, [look_through(layer) for layer in layers]


def vocab_size_of(decoder: nn.Module) -> int:
    """Rows of the embedding as it is now: ``resize_token_embeddings`` may have changed it since the graft."""
    get: Any = getattr(decoder, "get_input_embeddings", None)
    try:
        embedding = None if get is None else get()
    except NotImplementedError:
        embedding = None
    rows = getattr(embedding, "num_embeddings", None)
    return int(text_config(decoder).vocab_size if rows is None else rows)


def inspect_recipient(model: nn.Module) -> Recipient:
    """Finds what a graft attaches to.

    Raises:
        GraftError: an encoder-decoder, a family whose layers get no kwargs, or no decoder layers found.
    """
    model = unwrap(model)
    name = type(model).__name__
    config = text_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise GraftError(f"{name} is an encoder-decoder. {RULE}")
    decoder, layers = find_decoder(model)
    if not layers_receive_kwargs(type(decoder)):
        raise GraftError(
            f"{name} ({getattr(config, 'model_type', '?')}): {type(decoder).__name__}.forward passes no **kwargs to "
            f"its layers, so a side input cannot reach them. {RULE}"
        )
    if getattr(config, "altup_num_inputs", None) is not None:
        raise GraftError(f"{name} keeps several residual streams in front of the batch (AltUp). {RULE}")
    names = tuple(inspect.signature(decoder.forward).parameters)
    if "input_ids" not in names:
        raise GraftError(f"{name}: {type(decoder).__name__}.forward takes no input_ids. {RULE}")
    return Recipient(
        model=model,
        decoder=decoder,
        layers=layers,
        hidden_dim=int(config.hidden_size),
        vocab_size=vocab_size_of(decoder),
        # Hyper-connections, as DeepSeek-V4 names them.
        streams=int(getattr(config, "hc_mult", None) or 1),
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
        raise GraftError(f"{type(model).__name__} has no config: expected a transformers model. {RULE}")
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
