"""The recipe that all arms share: a recipient from scratch or a pretrained one, what of it trains, its schedule."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from memgraft.config import FallbackConfig, Gate, Into
from memgraft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Trained = Literal["all", "graft", "lora"]
# Settings that came later: left out of what is written while they are as they were before, so that experiments go on.
_LATER = ("sites", "taps", "into", "gate", "recipient", "trained", "lora_rank")
_SIZES = ("width", "num_blocks", "num_heads", "ffn_width")


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
    sites: tuple[int, ...] | None = None
    """Several blocks in place of ``site``."""
    taps: tuple[int, ...] | None = None
    """The bank's tap of each of ``sites``, in place of ``tap``."""
    into: Into = "residual"
    """Where the memory is added, see `memgraft.GraftConfig`."""
    gate: Gate = "plain"
    """The graft's gate; ``"none"`` multiplies by one learned scalar instead."""
    recipient: str | None = None
    """Folder of a pretrained recipient, whose sizes hold then; None draws one from scratch."""
    trained: Trained = "all"
    """With a pretrained recipient: all of it, the graft alone, or the graft beside LoRA."""
    lora_rank: int = 8
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
        for name in ("sites", "taps"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, choices in (("into", Into), ("gate", Gate), ("trained", Trained)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"recipe: {name}: expected one of {get_args(choices)}, found {getattr(self, name)!r}")
        if self.sites is not None and (not self.sites or list(self.sites) != sorted(set(self.sites))):
            raise ConfigError(f"recipe: sites: expected distinct ascending blocks, found {list(self.sites)}")
        if self.taps is not None and len(self.taps) != len(self.sites or ()):
            raise ConfigError(f"recipe: taps: expected one for each of the sites {self.sites}, found {list(self.taps)}")
        if self.recipient is None:
            for site in self.all_sites:
                if not 0 <= site < self.num_blocks:
                    raise ConfigError(
                        f"recipe: site {site}: expected a block from 0 to {self.num_blocks - 1}; give one of these, "
                        "or more blocks"
                    )
            if self.trained != "all":
                raise ConfigError(f"recipe: trained: expected all of a recipient from scratch, found {self.trained!r}")
        else:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            if own := [name for name in _SIZES if getattr(self, name) != defaults[name]]:
                raise ConfigError(f"recipe: {', '.join(own)}: a pretrained recipient has its own sizes; leave them out")
        if self.lora_rank < 1:
            raise ConfigError(f"recipe: lora_rank: expected at least 1, found {self.lora_rank}")
        sizes = (self.seq_len, self.batch_size, 1 if self.curve_windows is None else self.curve_windows)
        if min(*sizes, self.curve_points) < 1 or (self.held_out_windows or 0) < 0:
            raise ConfigError("recipe: expected seq_len, batch_size, curve_windows and curve_points of at least 1")

    @property
    def all_sites(self) -> tuple[int, ...]:
        """The blocks that have a graft."""
        return (self.site,) if self.sites is None else self.sites

    @property
    def all_taps(self) -> tuple[int, ...] | None:
        """The tap of each, None where the bank's order decides."""
        if self.taps is not None:
            return self.taps
        return None if self.tap is None else (self.tap,) * len(self.all_sites)

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
        """Plain JSON values; what was added after the first experiments is there where it differs from its default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in _LATER or value != defaults[name]
        }


def build_recipient(recipe: Recipe, *, vocab_size: int, eos_id: int | None, seed: int) -> "nn.Module":
    """A pretrained causal language model, or a Llama-style one from scratch, whose weights the arguments decide."""
    import torch

    if recipe.recipient is not None:
        from transformers import AutoModelForCausalLM

        pretrained: nn.Module = AutoModelForCausalLM.from_pretrained(recipe.recipient, dtype=torch.float32)
        return pretrained
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


def check_recipient(recipe: Recipe, vocab_size: int) -> None:
    """Refuses a pretrained recipient that the bank or the sites do not fit, by its config alone.

    Raises:
        ConfigError: there is none, it has too few blocks, or its embedding is smaller than the tokenizer.
    """
    if recipe.recipient is None:
        return
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(recipe.recipient).get_text_config(decoder=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"recipe: recipient: expected a transformers folder, found: {error}") from error
    if recipe.all_sites[-1] >= config.num_hidden_layers:
        raise ConfigError(
            f"recipe: site {recipe.all_sites[-1]}: expected a block from 0 to {config.num_hidden_layers - 1} of "
            f"{recipe.recipient}"
        )
    if config.vocab_size < vocab_size:
        raise ConfigError(
            f"recipe: recipient: the embedding of {recipe.recipient} has {config.vocab_size} rows, the keys are of a "
            f"tokenizer of {vocab_size}: mine with the recipient's own tokenizer"
        )


def weights_fingerprint(model: "nn.Module", replaced: "Mapping[str, Tensor] | None" = None) -> str:
    """SHA-256 of the recipient's own weights, graft excluded; equal over the arms of one seed at the start.

    Args:
        model: the arm's model.
        replaced: weights of the recipient, by name, that the arm has put something else in the place of.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted({**dict(model.named_parameters()), **(replaced or {})}.items()):
        if ".memgraft." not in name:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def settings_fingerprint(settings: Any) -> str:
    """SHA-256 of JSON-ready settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
