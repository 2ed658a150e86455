"""The recipe that all arms share: a Llama-style recipient from scratch, its size, its schedule."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memgraft.config import FallbackConfig
from memgraft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run but the arm, the seed and the number of steps."""

    width: int = 256
    num_blocks: int = 5
    num_heads: int = 4
    ffn_width: int = 688
    seq_len: int = 256
    batch_size: int = 8
    """Windows per step."""
    peak_lr: float = 1e-3
    warmup: float = 0.05
    """Part of the steps that warms up; a cosine follows."""
    weight_decay: float = 0.1
    site: int = 1
    """The graft is added before this block, 0-based."""
    tap: int | None = None
    """The bank's tap that feeds the site; None where the bank has one."""
    table_size: int = 16384
    fallback_dim: int = 128
    held_out_windows: int | None = None
    """Windows of the final evaluation; 0 takes all, None sizes it by the training (see :meth:`evaluation`)."""
    curve_windows: int | None = None
    """Windows of each point of the held-out curve; None sizes it by the training."""
    curve_points: int = 10
    compile: bool = False
    """Train through ``torch.compile``: worth it on a GPU from some minutes an arm on."""

    def __post_init__(self) -> None:
        """Validates.

        Raises:
            ConfigError: a size is out of range.
        """
        if self.width % self.num_heads or self.num_heads < 1:
            raise ConfigError(
                f"recipe: expected a width divisible by the heads, found {self.width} and {self.num_heads}"
            )
        if not 0 <= self.site < self.num_blocks:
            raise ConfigError(f"recipe: site {self.site}: expected a block from 0 to {self.num_blocks - 1}")
        sizes = (self.seq_len, self.batch_size, 1 if self.curve_windows is None else self.curve_windows)
        if min(*sizes, self.curve_points) < 1 or (self.held_out_windows or 0) < 0:
            raise ConfigError("recipe: expected seq_len, batch_size, curve_windows and curve_points of at least 1")

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step."""
        return self.seq_len * self.batch_size

    def evaluation(self, steps: int) -> tuple[int, int]:
        """Windows of the final evaluation and of each curve point, for a training of ``steps``.

        A forward costs about a third of a training step's share of the same window. So the default evaluates at most
        0.3 windows for each one trained: a tenth of the time. Two thirds of these go to the final evaluation, at most
        400 windows; the curve has at most 24 a point. Neither goes below 8 and 2.
        """
        windows = 0.3 * steps * self.batch_size
        final = self.held_out_windows
        curve = self.curve_windows
        return (
            max(8, min(400, int(windows * 2 / 3))) if final is None else final,
            max(2, min(24, int(windows / 3 / self.curve_points))) if curve is None else curve,
        )

    @property
    def fallback(self) -> FallbackConfig:
        """The hashed fallback of the arms that have one."""
        return FallbackConfig(table_size=self.table_size, dim=self.fallback_dim)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def build_recipient(recipe: Recipe, *, vocab_size: int, eos_id: int | None, seed: int) -> nn.Module:
    """A Llama-style causal language model from scratch; its weights depend on the arguments alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.width,
        intermediate_size=recipe.ffn_width,
        num_hidden_layers=recipe.num_blocks,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=max(512, recipe.seq_len),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = LlamaForCausalLM(config)
    return model


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the recipient's own weights, graft excluded; equal over the arms of one seed at the start."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".memgraft." not in name:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def settings_fingerprint(settings: Any) -> str:
    """SHA-256 of JSON-ready settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
