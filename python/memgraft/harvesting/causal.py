"""Whether a model may be a donor at all: a decoder that reads from left to right, found out by running it."""

from typing import Any

import torch

from memgraft.errors import DonorError

_TOKENS = 6
_MOVED = {torch.float32: 1e-4, torch.float16: 5e-3}
_MOVED_OTHERS = 3e-2
"""Scores that a later token moves by more than this share of the largest are not causal; rounding moves them less."""


def input_device(model: Any) -> torch.device:
    """Where the model takes its tokens: at its first weights; the CPU where hooks bring these from elsewhere."""
    device: torch.device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


@torch.inference_mode()
def refuse_two_way(model: Any, name: str) -> None:
    """Refuses encoders, and whatever else lets a token change what stands before it.

    A value is the state at a key's last token: of a donor that reads both ways it would be that of the key alone, at
    best, and neither prefixes nor windows could be shared.

    Raises:
        DonorError: the model has an encoder, or a later token moves an earlier position's scores.
    """
    config = model.config
    way_out = "name a causal language model, such as a Llama, Qwen, Gemma or GPT"
    if getattr(config, "is_encoder_decoder", False):
        raise DonorError(
            f"donor {name} ({config.model_type}): expected a decoder alone, found one with an encoder; {way_out}"
        )
    size = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.arange(1, _TOKENS + 1).remainder(size).repeat(2, 1)
    tokens[1, -1] = (tokens[1, -1] + size // 2) % size
    if tokens[0, -1] == tokens[1, -1]:
        return  # a vocabulary of one token
    try:
        scores = model(input_ids=tokens.to(input_device(model)), use_cache=False).logits.float()
    except Exception as error:  # whatever a forward raises that wants more than tokens
        raise DonorError(
            f"donor {name} ({config.model_type}): does not run on tokens alone: {type(error).__name__}: {error}; "
            f"{way_out}"
        ) from error
    before, after = scores[0, :-1], scores[1, :-1]
    moved = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    # Not so where a state is no number: a harvest refuses that by its keys.
    if moved > _MOVED.get(model.get_input_embeddings().weight.dtype, _MOVED_OTHERS):
        raise DonorError(
            f"donor {name} ({config.model_type}): reads both ways, since a token moves the scores before it by "
            f"{moved:.2g} of the largest; {way_out}"
        )
