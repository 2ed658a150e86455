"""``prepare_inputs_for_generation`` of a grafted model."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

from memgraft.errors import GraftError
from memgraft.integrations.transformers.families import vocab_size_of
from memgraft.integrations.transformers.hooks import (
    KWARG,
    NO_CONTINUOUS_BATCHING,
    cache_in,
    is_off,
    refuse_paged,
)
from memgraft.integrations.transformers.runtime import runtimes_of
from memgraft.integrations.transformers.side_input import prepare

METHOD = "prepare_inputs_for_generation"
BATCHING = ("generate_batch", "init_continuous_batching")


class PrepareInputs:
    """Stands in for the model's method and adds the memory of the step's new tokens.

    Here the padding mask is still two-dimensional and nothing is compiled yet. A module-level class, so that a grafted
    model pickles; a deep copy of the model gets a copy bound to it.

    Args:
        model: the model whose method this is.
        decoder: its decoder.
        replaced: what the instance had in its place, or ``None`` for its class's method.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module, replaced: Any) -> None:
        self.model = model
        self.decoder = decoder
        self.replaced = replaced
        # generate() validates its arguments against the signature.
        self.__signature__ = inspect.signature(self._original())

    def _original(self) -> Any:
        if self.replaced is not None:
            return self.replaced
        return functools.partial(getattr(type(self.model), METHOD), self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The model's inputs with ``memgraft`` added."""
        inputs: dict[str, Any] = self._original()(*args, **kwargs)
        if is_off(self.decoder, inputs.get(KWARG)):
            inputs[KWARG] = False
            return inputs
        refuse_paged(inputs)
        input_ids = inputs.get("input_ids")
        if input_ids is None:
            raise GraftError(
                "generate(inputs_embeds=...) gives no token ids for the prompt, and the memory is looked up by them: "
                "generate from input_ids, or inside disabled(model)"
            )
        # The inputs may hold a mask of four dimensions by now; the caller's has two.
        arguments = self.__signature__.bind_partial(*args, **kwargs).arguments
        mask = arguments.get("attention_mask", kwargs.get("attention_mask"))
        inputs[KWARG] = prepare(
            runtimes_of(self.decoder),
            input_ids,
            vocab_size=vocab_size_of(self.decoder),
            given=inputs.get(KWARG),
            attention_mask=mask,
            position_ids=None,
            cu_seqlens=None,
            cache=cache_in(inputs),
            use_cache=bool(inputs.get("use_cache", kwargs.get("use_cache"))),
        )
        return inputs


class RefuseBatching:
    """Stands in for the methods that start continuous batching, whose own thread turns an error into empty answers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, also inside ``disabled()``: the thread would not know of it."""
        raise GraftError(NO_CONTINUOUS_BATCHING)


def install(model: nn.Module, decoder: nn.Module) -> None:
    """Patch the instance; nothing to do for a model without generation or one that is patched."""
    for name in BATCHING:
        if hasattr(type(model), name) and name not in model.__dict__:
            model.__dict__[name] = RefuseBatching()
    if hasattr(type(model), METHOD) and not isinstance(model.__dict__.get(METHOD), PrepareInputs):
        model.__dict__[METHOD] = PrepareInputs(model, decoder, model.__dict__.get(METHOD))


def uninstall(model: nn.Module) -> None:
    """Undo :func:`install`."""
    for name in BATCHING:
        if isinstance(model.__dict__.get(name), RefuseBatching):
            del model.__dict__[name]
    patch = model.__dict__.get(METHOD)
    if isinstance(patch, PrepareInputs):
        del model.__dict__[METHOD]
        if patch.replaced is not None:
            model.__dict__[METHOD] = patch.replaced
