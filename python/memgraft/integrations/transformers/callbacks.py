"""A graft in the Trainer's checkpoints, also where PEFT saves its adapter alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn
from transformers import TrainerCallback

from memgraft.errors import ArgumentError, FingerprintError, GraftError
from memgraft.integrations.transformers.families import find_decoder, unwrap
from memgraft.integrations.transformers.hooks import refuse_adapters_inside
from memgraft.integrations.transformers.loading import settle
from memgraft.integrations.transformers.parameters import has_adapter, mark_trainable
from memgraft.integrations.transformers.runtime import runtimes_of
from memgraft.integrations.transformers.saving import (
    CHECKPOINT_FOLDER,
    MANIFEST_NAME,
    read_graft,
    restore_weights,
    write_graft,
)


class GraftCallback(TrainerCallback):  # type: ignore[misc]
    """Writes a graft into each checkpoint of a ``Trainer`` or ``SFTTrainer`` and brings it back when one resumes.

    Where PEFT wraps the model (``peft_config=`` included) the Trainer saves the adapter alone and PEFT freezes the
    graft: this callback lets it train again and refuses an adapter inside it. `load_graft` reads the checkpoints.

    Args:
        bank_path: where the bank may be found from a checkpoint's ``memgraft/<name>`` folder, recorded as given.
        missing: where training resumes from a checkpoint with an adapter and no graft: ``"refuse"``, or ``"anew"`` to
            let the graft start anew beside the adapter.

    Raises:
        ArgumentError: another ``missing``.
    """

    def __init__(self, bank_path: str | None = None, *, missing: Literal["refuse", "anew"] = "refuse") -> None:
        if missing not in ("refuse", "anew"):
            raise ArgumentError(f"missing: expected 'refuse' or 'anew', found {missing!r}")
        self.bank_path = bank_path
        self.missing = missing

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets the graft train beside an adapter.

        Raises:
            GraftError: the model has no graft, or the adapter was put into it.
        """
        model = kwargs["model"]
        if not _runtimes(model):
            raise GraftError("the model has no graft to save; attach one with graft() before the Trainer is made")
        for runtime in _runtimes(model).values():
            runtime.kept = True
        refuse_adapters_inside(model)
        if has_adapter(model):
            mark_trainable(model, freeze_recipient=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Brings the graft back where training resumes.

        Raises:
            GraftError: the checkpoint that training resumes from cannot be found or holds no graft.
        """
        # DeepSpeed's own checkpoints hold all weights and the optimizer's copies of them.
        if state.global_step and not args.deepspeed:
            self._restore(kwargs["model"], _resumed_from(args, state))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes every graft into the checkpoint that was just written."""
        model = kwargs["model"]
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        if not (args.should_save or sharded or args.deepspeed):
            return
        for name in _runtimes(model):
            write_graft(
                model,
                checkpoint / CHECKPOINT_FOLDER / name,
                name=name,
                bank_path=self.bank_path,
                gather=(lambda tensor: cast(Any, tensor).full_tensor()) if sharded else None,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Brings back the graft of the best checkpoint where the Trainer did so with the rest."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None and not args.deepspeed:
            self._restore(kwargs["model"], Path(state.best_model_checkpoint))

    def _restore(self, model: nn.Module, checkpoint: Path) -> None:
        for name, runtime in _runtimes(model).items():
            folder = checkpoint / CHECKPOINT_FOLDER / name
            if not folder.is_dir():
                if not has_adapter(model):
                    continue  # written without this callback: the Trainer saved and loaded all weights
                if self.missing == "anew":
                    settle(runtime)
                    continue
                raise GraftError(
                    f"{folder / MANIFEST_NAME}: no such file: the checkpoint holds the adapter and no graft {name!r}, "
                    "which would start anew: resume from a checkpoint that GraftCallback wrote, or let it with "
                    "GraftCallback(missing='anew')"
                )
            manifest, weights = read_graft(folder)
            if manifest["bank"]["fingerprint"] != runtime.bank.fingerprint:
                raise FingerprintError(
                    f"{folder}: expected bank {runtime.bank.fingerprint}, found {manifest['bank']['fingerprint']}: the "
                    "checkpoint was trained on another bank"
                )
            restore_weights(model, name, weights, folder)


def _runtimes(model: nn.Module) -> dict[str, Any]:
    return {name: runtime for name, runtime in runtimes_of(find_decoder(unwrap(model))[0]).items() if not runtime.off}


def _resumed_from(args: Any, state: Any) -> Path:
    """The checkpoint whose state the Trainer took up, which it does not tell its callbacks."""
    tried = [args.resume_from_checkpoint] if isinstance(args.resume_from_checkpoint, str) else []
    tried.append(str(Path(args.output_dir) / f"checkpoint-{state.global_step}"))
    for place in tried:
        try:
            written = json.loads((Path(place) / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if written.get("global_step") == state.global_step and written.get("log_history") == state.log_history:
            return Path(place)
    raise GraftError(
        f"training resumes at step {state.global_step} from a checkpoint that is none of {', '.join(tried)}: name it "
        "in TrainingArguments(resume_from_checkpoint=...) too, so that the graft can be read from it"
    )
