"""``generate`` and ``prepare_inputs_for_generation`` of a grafted model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from memgraft.errors import GraftError
from memgraft.integrations.transformers.families import vocab_size_of
from memgraft.integrations.transformers.hooks import (
    KWARG,
    NO_CONTINUOUS_BATCHING,
    cache_in,
    is_off,
    refuse_paged,
    said_in,
    switch_off,
)
from memgraft.integrations.transformers.memories import is_memory, refuse_unopened, requested, requesting
from memgraft.integrations.transformers.runtime import runtimes_of
from memgraft.integrations.transformers.side_input import prepare

GENERATE = "generate"
METHOD = "prepare_inputs_for_generation"
BATCHING = ("generate_batch", "init_continuous_batching")


class _StandIn:
    """Stands in for a method of a grafted model. A module-level class, so that the model pickles.

    Args:
        model: the model whose method this is.
        decoder: its decoder.
        replaced: what the instance had in its place, or ``None`` for its class's method.
    """

    method: ClassVar[str]

    def __init__(self, model: nn.Module, decoder: nn.Module, replaced: Any) -> None:
        self.model = model
        self.decoder = decoder
        self.replaced = replaced

    def _original(self) -> Any:
        if self.replaced is not None:
            return self.replaced
        return functools.partial(getattr(type(self.model), self.method), self.model)


class PrepareInputs(_StandIn):
    """Stands in for ``prepare_inputs_for_generation`` and adds the memory of the step's new tokens.

    Here the padding mask is still two-dimensional and nothing is compiled yet. A deep copy of the model gets a copy
    bound to it.
    """

    method = METHOD

    def __init__(self, model: nn.Module, decoder: nn.Module, replaced: Any) -> None:
        super().__init__(model, decoder, replaced)
        # generate() validates its arguments against the signature.
        self.__signature__ = inspect.signature(self._original())

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
        said = {**said_in(kwargs), "attention_mask": arguments.get("attention_mask", kwargs.get("attention_mask"))}
        # generate() counts positions itself, from the mask.
        said.pop("position_ids", None)
        given = inputs.get(KWARG)
        inputs[KWARG] = prepare(
            runtimes_of(self.decoder),
            input_ids,
            given=requested(self.decoder) if given is None else given,
            said=said,
            cache=cache_in(inputs),
            use_cache=bool(inputs.get("use_cache", kwargs.get("use_cache"))),
            vocab_size=vocab_size_of(self.decoder),
        )
        return inputs


class Generate(_StandIn):
    """Stands in for the model's ``generate`` and takes a memory, one for each row, or False, as ``memgraft=``."""

    method = GENERATE

    @property
    def __signature__(self) -> inspect.Signature:
        # Made when it is asked for: the defaults in it need not pickle, and a grafted model must.
        return inspect.signature(self._original())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own method gives, reading the memory that the call names, or none where it says False.

        Raises:
            GraftError: ``memgraft=`` is something else.
        """
        given = kwargs.pop(KWARG, None)
        if given is None:
            return self._original()(*args, **kwargs)
        if given is False:
            with switch_off(self.decoder):
                return self._original()(*args, **kwargs)
        refuse_unopened(given)
        if not (is_memory(given) or (isinstance(given, Mapping) and all(map(is_memory, given.values())))):
            raise GraftError(
                "memgraft: generate() takes an open bank, a list of them for the rows of the batch, or False for no "
                f"memory, found {type(given).__name__}"
            )
        with requesting(self.decoder, given):
            return self._original()(*args, **kwargs)


class RefuseBatching:
    """Stands in for the methods that start continuous batching, whose own thread turns an error into empty answers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses, also inside ``disabled()``: the thread would not know of it."""
        raise GraftError(NO_CONTINUOUS_BATCHING)


_PATCHES: dict[str, type[PrepareInputs | Generate]] = {METHOD: PrepareInputs, GENERATE: Generate}


def install(model: nn.Module, decoder: nn.Module) -> None:
    """Patches the instance; nothing to do for a model without generation or one that is patched."""
    for name in BATCHING:
        if hasattr(type(model), name) and name not in model.__dict__:
            model.__dict__[name] = RefuseBatching()
    for name, kind in _PATCHES.items():
        if hasattr(type(model), name) and not isinstance(model.__dict__.get(name), kind):
            model.__dict__[name] = kind(model, decoder, model.__dict__.get(name))


def uninstall(model: nn.Module) -> None:
    """Undoes :func:`install`."""
    for name in BATCHING:
        if isinstance(model.__dict__.get(name), RefuseBatching):
            del model.__dict__[name]
    for name, kind in _PATCHES.items():
        patch = model.__dict__.get(name)
        if isinstance(patch, kind):
            del model.__dict__[name]
            if patch.replaced is not None:
                model.__dict__[name] = patch.replaced
