"""A graft and a PEFT adapter on one model.

PEFT refuses tuner types that are not its own, so a graft is PEFT-style and not a PEFT tuner. Attach either first, keep
PEFT out of the graft layers, and let them train again after ``get_peft_model``, which freezes all that it does
not know::

    graft(model, bank, config)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", exclude_modules=EXCLUDE_MODULES))
    mark_trainable(model)

``save_pretrained`` of the wrapped model writes the adapter alone; :func:`memgraft.torch.save_graft` writes the graft,
and :class:`memgraft.torch.GraftCallback` does so for every checkpoint of a Trainer and brings it back at a resume.
"""

from __future__ import annotations

from memgraft.integrations.transformers import mark_trainable

# A regular expression for LoraConfig(exclude_modules=...): everything inside a graft layer.
EXCLUDE_MODULES = r".*\.memgraft\..*"

__all__ = ["EXCLUDE_MODULES", "mark_trainable"]
