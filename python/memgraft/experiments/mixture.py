"""The paper's baseline: a mixture of experts in the place of a block's MLP.

Two experts of half the MLP's width are active at every position, so that the FLOPs of a forward are those of the MLP
and of the router; the number of experts makes up as many parameters as the graft adds. The block is that of Mixtral in
transformers. The load-balancing loss of Switch Transformer (arXiv 2101.03961, equations 4 to 6) is added to the
training loss with Mixtral's coefficient; evaluation is of the logits alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from memgraft.data import KEY
from memgraft.errors import ConfigError
from memgraft.integrations.transformers.families import find_decoder

ACTIVE = 2
BALANCE = 0.001
"""Coefficient of the load-balancing loss: Mixtral's default."""
FARTHEST = 0.1
"""Largest share by which the parameters of mixture and graft may differ."""


class Mixture(nn.Module):
    """Stands where an MLP stood; transformers' block is its child ``memgraft``, which is not the recipient's.

    Args:
        hidden_dim: width D of the recipient.
        inner_dim: width of the MLP that it replaces, even.
        num_experts: experts of half that width.
        replaced: parameters of the MLP that it replaces.
        seed: draws the weights.
        std: their standard deviation.
    """

    def __init__(
        self, hidden_dim: int, inner_dim: int, num_experts: int, *, replaced: int, seed: int, std: float = 0.02
    ) -> None:
        super().__init__()
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        config = MixtralConfig(
            hidden_size=hidden_dim,
            intermediate_size=inner_dim // ACTIVE,
            num_local_experts=num_experts,
            num_experts_per_tok=ACTIVE,
        )
        config._experts_implementation = "eager"
        self.num_experts, self.replaced = num_experts, replaced
        block = MixtralSparseMoeBlock(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(block.named_parameters()):
                parameter.normal_(0.0, std, generator=generator)
        self.add_module(KEY, block)
        self.router_logits: Tensor | None = None
        block.gate.register_forward_hook(self._keep_router)

    def _keep_router(self, _module: nn.Module, _args: Any, outputs: Any) -> None:
        self.router_logits = outputs[0]

    @property
    def num_parameters(self) -> dict[str, int]:
        """What it has beside the MLP that it replaces: ``dense``, of the router, and ``sparse``, of the experts."""
        block: Any = self._modules[KEY]
        dense = sum(p.numel() for p in block.gate.parameters())
        return {"dense": dense, "sparse": sum(p.numel() for p in self.parameters()) - dense - self.replaced}

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        block: Any = self._modules[KEY]
        out: Tensor = block(hidden)
        return out


def num_experts_for(target: int, hidden_dim: int, inner_dim: int) -> int:
    """The experts whose parameters, with the router's and without those of the MLP, come closest to ``target``.

    Raises:
        ConfigError: they cannot come close, or the MLP's width is odd.
    """
    if inner_dim % ACTIVE:
        raise ConfigError(f"arm 'moe': expected an ffn_width divisible by {ACTIVE}, found {inner_dim}")
    mlp, expert = 3 * hidden_dim * inner_dim, 3 * hidden_dim * (inner_dim // ACTIVE) + hidden_dim
    number = max(ACTIVE, round((target + mlp) / expert))
    found = number * expert - mlp
    if abs(found - target) > FARTHEST * target:
        raise ConfigError(
            f"arm 'moe': {number} experts of width {inner_dim // ACTIVE} add {found:,} parameters, the graft "
            f"{target:,}, more than {100 * FARTHEST:.0f} % apart: they cannot be matched. Take a larger table_size or "
            "a smaller ffn_width, or leave the arm out"
        )
    return number


def put_mixtures(model: nn.Module, sites: tuple[int, ...], target: int, seed: int) -> None:
    """Replaces the MLPs of ``sites`` by mixtures that together add about ``target`` parameters.

    Raises:
        ConfigError: the parameters cannot be matched.
    """
    _, blocks = find_decoder(model)
    config: Any = model.config
    width, inner = int(config.hidden_size), int(config.intermediate_size)
    number = num_experts_for(target // len(sites), width, inner)
    mixtures = []
    for site in sites:
        block: Any = blocks[site]
        replaced = sum(p.numel() for p in block.mlp.parameters())
        mixtures.append(Mixture(width, inner, number, replaced=replaced, seed=seed + site))
        block.mlp = mixtures[-1]
    model.register_forward_hook(_Balanced(mixtures))


class _Balanced:
    """Adds the load-balancing loss to the loss of a model in training."""

    def __init__(self, mixtures: list[Mixture]) -> None:
        self.mixtures = mixtures

    def __call__(self, module: nn.Module, _args: Any, outputs: Any) -> Any:
        """Changes the outputs in place."""
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        if module.training and outputs.loss is not None:
            for mixture in self.mixtures:
                assert mixture.router_logits is not None
                balance = load_balancing_loss_func((mixture.router_logits,), mixture.num_experts, ACTIVE)
                outputs.loss = outputs.loss + BALANCE * balance
        for mixture in self.mixtures:
            mixture.router_logits = None
        return outputs
