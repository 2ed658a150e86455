"""lm-evaluation-harness tasks with the memory on and off.

From Python::

    results = evaluate_on_and_off(model, tokenizer, tasks=["lambada_openai"])

or, after ``import memgraft.integrations.lm_eval`` has registered the model type, by name: ``model="memgraft"`` with
``model_args="pretrained=...,graft=...,bank=...,memory=False"``. On the command line
``python -m memgraft.integrations.lm_eval`` is the harness's own ``lm_eval`` with ``--model memgraft`` known to it.

The harness caches answers by request alone: a cache that holds those of another arm (memory on or off, another graft or
bank) is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from memgraft.errors import GraftError
from memgraft.integrations.transformers import disabled, graft_state_dict, load_graft
from memgraft.integrations.transformers.families import find_decoder, unwrap
from memgraft.integrations.transformers.runtime import runtimes_of

_ARM_KEY = "memgraft-arm"


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
            load_graft(self.model, graft, bank=bank)
        decoder, _ = find_decoder(unwrap(self.model))
        if not runtimes_of(decoder):
            raise GraftError(
                "the recipient has no graft: pass graft=<folder that save_graft wrote>, or a grafted model"
            )
        self.memory = memory

    @property
    def arm(self) -> str:
        """What answers: ``off``, or ``on`` with a fingerprint of the grafts and their banks."""
        return f"on-{grafts_fingerprint(self.model)}" if self.memory else "off"

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Takes the harness's cache, if it is this arm's or empty.

        Raises:
            GraftError: the cache holds answers of another arm.
        """
        super().set_cache_hook(cache_hook)
        answers = cache_hook.dbdict
        if answers is None:
            return
        found = answers.get(_ARM_KEY)
        if found != self.arm and (found is not None or len(answers)):
            raise GraftError(
                f"use_cache: the cache holds answers of {found or 'a model that names no arm'}, this is {self.arm}: "
                "give each arm a path of its own (evaluate_on_and_off does)"
            )
        answers[_ARM_KEY] = self.arm

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
    """Runs tasks twice on a grafted model.

    Args:
        model: the grafted model.
        tokenizer: its tokenizer.
        tasks: names or task objects of the harness.
        batch_size: sequences a call.
        options: further arguments of ``lm_eval.simple_evaluate``; ``use_cache`` becomes a path for each arm.

    Returns:
        ``{"on": ..., "off": ...}``: the harness's ``results``, metrics by task.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm, memory in (("on", True), ("off", False)):
        adapter = GraftLM(model, tokenizer=tokenizer, batch_size=batch_size, memory=memory)
        chosen = dict(options)
        if chosen.get("use_cache"):
            chosen["use_cache"] = f"{chosen['use_cache']}-{adapter.arm}"
        outcome = simple_evaluate(model=adapter, tasks=list(tasks), **chosen)
        found[arm] = outcome["results"]
    return found


def grafts_fingerprint(model: Any) -> str:
    """Sixteen hex digits of the weights and banks of a model's grafts."""
    digest = hashlib.sha256()
    runtimes = runtimes_of(find_decoder(unwrap(model))[0])
    for name, runtime in sorted(runtimes.items()):
        digest.update(f"{name} {runtime.bank.fingerprint} {runtime.config.to_json()}".encode())
        for key, tensor in sorted(graft_state_dict(model, name).items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
