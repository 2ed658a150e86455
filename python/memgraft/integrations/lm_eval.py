"""lm-evaluation-harness tasks with the memory on and off.

From Python::

    results = evaluate_on_and_off(model, tokenizer, tasks=["lambada_openai"])

or, after ``import memgraft.integrations.lm_eval`` has registered the model type, by name: ``model="memgraft"`` with
``model_args="pretrained=...,graft=...,bank=...,memory=False"``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from memgraft.bank import Bank
from memgraft.errors import GraftError
from memgraft.integrations.transformers import disabled, load_graft
from memgraft.integrations.transformers.families import find_decoder, unwrap
from memgraft.integrations.transformers.runtime import runtimes_of


@register_model("memgraft")
class GraftLM(HFLM):  # type: ignore[misc]
    """The harness's transformers model with a graft on it.

    Args:
        pretrained: a recipient (grafted or not), or a path to one.
        graft: a folder that ``save_graft`` wrote, attached to the recipient; ``None`` where it carries a graft already.
        bank: path of the bank, where the graft names none.
        memory: run with the memory (default) or without any of it, fallback included.
        options: as for the harness's ``hf`` model.

    Raises:
        GraftError: the recipient has no graft.
    """

    def __init__(
        self, pretrained: Any, *, graft: str | None = None, bank: str | None = None, memory: bool = True, **options: Any
    ) -> None:
        super().__init__(pretrained, **options)
        if graft is not None:
            load_graft(self.model, graft, bank=None if bank is None else Bank.open(bank))
        decoder, _ = find_decoder(unwrap(self.model))
        if not runtimes_of(decoder):
            raise GraftError(
                "the recipient has no graft: pass graft=<folder that save_graft wrote>, or a grafted model"
            )
        self.memory = memory

    def _switch(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.memory else disabled(self.model)

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        with self._switch():
            return super()._model_call(*args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._switch():
            return super()._model_generate(*args, **kwargs)


def evaluate_on_and_off(
    model: Any, tokenizer: Any, *, tasks: Sequence[Any], batch_size: int = 1, **options: Any
) -> dict[str, dict[str, Any]]:
    """Run tasks twice on a grafted model.

    Args:
        model: the grafted model.
        tokenizer: its tokenizer.
        tasks: names or task objects of the harness.
        batch_size: sequences a call.
        options: further arguments of ``lm_eval.simple_evaluate``.

    Returns:
        ``{"on": ..., "off": ...}``: the harness's ``results``, metrics by task.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm, memory in (("on", True), ("off", False)):
        adapter = GraftLM(model, tokenizer=tokenizer, batch_size=batch_size, memory=memory)
        outcome = simple_evaluate(model=adapter, tasks=list(tasks), **options)
        found[arm] = outcome["results"]
    return found
