"""Which weights of an arm's model train: all, the graft's alone, or the graft's beside LoRA."""

import torch
from torch import nn

from memgraft.data import KEY
from memgraft.experiments.recipe import Recipe


def choose_trained(model: nn.Module, recipe: Recipe, seed: int) -> nn.Module:
    """The model with what the recipe trains switched on; wrapped by PEFT where that is LoRA.

    What an arm adds (a graft, or an MLP in its place) trains in any case.
    """
    if recipe.trained == "all":
        return model
    if recipe.trained == "lora":
        from peft import LoraConfig, get_peft_model
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        from memgraft.integrations.peft import EXCLUDE_MODULES

        kind = model.config.model_type  # type: ignore[union-attr]
        settings = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=2 * recipe.lora_rank,
            target_modules=None if kind in KNOWN else "all-linear",
            # PEFT warns of a pattern that meets nothing, as in the arm without memory.
            exclude_modules=EXCLUDE_MODULES if any(f".{KEY}." in name for name, _ in model.named_modules()) else None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(model, settings)
    for name, parameter in model.named_parameters():
        if f".{KEY}." in name:
            parameter.requires_grad_(True)
        elif recipe.trained == "graft":
            parameter.requires_grad_(False)
    return model


def trains(model: nn.Module) -> bool:
    """Whether anything of it does: an arm without memory has nothing, where the graft alone trains."""
    return any(parameter.requires_grad for parameter in model.parameters())
