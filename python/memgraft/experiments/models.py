"""The model of each arm and the collator of its batches; what the arm adds to the recipient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from memgraft.bank import Bank
from memgraft.config import GraftConfig
from memgraft.data import GraftCollator
from memgraft.experiments import sources
from memgraft.experiments.arms import ARMS, Arm, Source
from memgraft.experiments.mixture import Mixture, put_mixtures
from memgraft.experiments.recipe import Recipe, build_recipient, weights_fingerprint
from memgraft.experiments.training import choose_trained
from memgraft.experiments.windows import HALVES_COLUMN, SEGMENTS_COLUMN, TokenWindows
from memgraft.integrations.transformers import graft, graft_layers


@dataclass(frozen=True, kw_only=True)
class Material:
    """What all arms share besides the recipe."""

    bank: Bank
    train: TokenWindows
    held_out: TokenWindows
    vocab_size: int
    eos_id: int | None
    tokenizer: Any
    """The recipient's tokenizer or the path of its ``tokenizer.json``; the fallback compresses ids with it."""
    domains: Mapping[str, TokenWindows] = field(default_factory=dict)
    """More held-out text, by a name; each is evaluated by itself."""
    tasks: Path | None = None
    """Folder of task files of the lm-evaluation-harness."""


def plain_collator(features: list[Mapping[str, Tensor]]) -> Any:
    """The default collator for a recipient without a graft: no segments."""
    return default_collate(
        [{k: v for k, v in feature.items() if k not in (SEGMENTS_COLUMN, HALVES_COLUMN)} for feature in features]
    )


def arm_collator(arm: Arm, material: Material) -> Callable[[list[Any]], Any]:
    """The collator of an arm's training batches."""
    if not arm.grafted:
        return plain_collator
    inner = GraftCollator(material.bank, default_collate, column=SEGMENTS_COLUMN)
    if "corpus" in arm.needs:
        return sources.HalvesCollator(inner, material.bank.num_rows, HALVES_COLUMN)

    def without_halves(features: list[Any]) -> Any:
        return inner([{k: v for k, v in feature.items() if k != HALVES_COLUMN} for feature in features])

    return without_halves


def arm_config(arm: Arm, recipe: Recipe, seed: int) -> GraftConfig | None:
    """The graft of an arm, drawn from scratch or an identity on a pretrained recipient; None without one."""
    if not arm.grafted:
        return None
    return GraftConfig(
        sites=recipe.all_sites,
        into=recipe.into,
        taps=recipe.all_taps,
        gate=recipe.gate,
        fallback=recipe.fallback,
        init="scratch" if recipe.recipient is None else "zero",
        control=arm.control,
        seed=seed,
    )


def build_arm(arm: Arm, recipe: Recipe, material: Material, seed: int) -> nn.Module:
    """The arm's model: the recipient of this seed, grafted if the arm is."""
    model = build_recipient(recipe, vocab_size=material.vocab_size, eos_id=material.eos_id, seed=seed)
    config = arm_config(arm, recipe, seed)
    if config is not None:
        model = graft(model, material.bank, config, tokenizer=material.tokenizer)
    if arm.source is not None:
        SOURCES[arm.source](model, recipe, material, seed)
    return choose_trained(model, recipe, seed)


def start_fingerprint(arm: Arm, recipe: Recipe, material: Material, seed: int, model: nn.Module) -> str:
    """Fingerprint of the recipient that an arm starts from; what the arm replaces of it counts as it was."""
    replaced = {}
    if arm.source == "moe":
        plain = build_recipient(recipe, vocab_size=material.vocab_size, eos_id=material.eos_id, seed=seed)
        own = dict(model.named_parameters())
        replaced = {name: parameter for name, parameter in plain.named_parameters() if name not in own}
    return weights_fingerprint(model, replaced)


def _counts(model: nn.Module, recipe: Recipe, material: Material, seed: int) -> None:
    mixture = sources.count_mixture(material.bank, material.train.corpus)
    _mix(model, model.get_output_embeddings(), mixture, recipe, material, seed)  # type: ignore[operator]


def _own_embeddings(model: nn.Module, recipe: Recipe, material: Material, seed: int) -> None:
    mixture = sources.key_mixture(material.bank)
    _mix(model, model.get_input_embeddings(), mixture, recipe, material, seed)  # type: ignore[operator]


def _mix(
    model: nn.Module, module: nn.Module, mixture: sources.TokenMixture, recipe: Recipe, material: Material, seed: int
) -> None:
    rows = sources.RecipientRows(module, mixture, len(material.bank.taps))
    width = int(module.weight.shape[1])  # type: ignore[index]
    sources.put_rows(model, rows, width=width, seed=seed, zero=recipe.recipient is not None)


def _donor_start(model: nn.Module, recipe: Recipe, material: Material, seed: int) -> None:
    sources.start_at_donor(model, material.bank)


def _one_slot(model: nn.Module, recipe: Recipe, material: Material, seed: int) -> None:
    sources.one_slot(model, seed)


def _mlp(model: nn.Module, recipe: Recipe, material: Material, seed: int) -> None:
    share = _of_graft(recipe, material, seed)["dense"] // len(recipe.all_sites)
    for site in recipe.all_sites:
        sources.add_mlp(model, site, share, seed + site - recipe.all_sites[0], zero=recipe.recipient is not None)


def _moe(model: nn.Module, recipe: Recipe, material: Material, seed: int) -> None:
    put_mixtures(model, recipe.all_sites, sum(_of_graft(recipe, material, seed).values()), seed)


def _of_graft(recipe: Recipe, material: Material, seed: int) -> dict[str, int]:
    """What the graft of this recipe adds."""
    return added_parameters(build_arm(ARMS["graft"], recipe, material, seed))


SOURCES: dict[Source, Callable[[nn.Module, Recipe, Material, int], None]] = {
    "counts": _counts,
    "own_embeddings": _own_embeddings,
    "donor_start": _donor_start,
    "one_slot": _one_slot,
    "mlp": _mlp,
    "moe": _moe,
}
"""Puts what an arm reads in the place of donor rows, or beside the recipient: by :attr:`Arm.source`."""


def added_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters beside the recipient's: ``dense`` ones, used at every position, and ``table`` rows.

    Experts of a mixture count as a table, less the MLP that they replace: a position reads as many as that one had.
    """
    found = {"dense": 0, "table": 0}
    for module in model.modules():
        if isinstance(module, Mixture):
            found["dense"] += module.num_parameters["dense"]
            found["table"] += module.num_parameters["sparse"]
    for name, parameter in model.named_parameters():
        if ".memgraft." in name and ".mlp.memgraft." not in name:
            table = name.endswith((".fallback.table.weight", ".rows.weight"))
            found["table" if table else "dense"] += parameter.numel()
    return found


def costs(arm: Arm, model: nn.Module, material: Material) -> dict[str, Any]:
    """What the arm adds to the recipient: parameters, FLOPs and bytes read a token.

    FLOPs are two for each dense parameter of a forward, an upper bound: a position goes through the projections of its
    row or of the fallback, not both. Bytes are the row of the bank at a hit, and the fallback's slots at a miss.
    """
    added = added_parameters(model)
    slots = 0
    for layers in graft_layers(model).values():
        for layer in layers.values():
            if layer.fallback is not None:
                slots += 4 * len(layer.fallback.sizes) * layer.fallback.table.embedding_dim
    return {
        "dense_parameters": added["dense"],
        "table_parameters": added["table"],
        "flops_per_token": 2 * added["dense"],
        "training_flops_per_token": training_flops(model, added["table"], material.train.seq_len),
        "bank_bytes_per_hit": material.bank.bytes_per_row if arm.from_bank else 0,
        "table_bytes_per_miss": slots,
    }


def training_flops(model: nn.Module, table: int, seq_len: int) -> int:
    """FLOPs of training on one token, tables left out: six a trained parameter, and attention over half the window.

    A frozen parameter has four: none for its own gradient. A model with nothing to train costs nothing.

    Source: the estimate of Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with its term for attention.
    """
    dense = sum(parameter.numel() for parameter in model.parameters()) - table
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    if all(not parameter.requires_grad for parameter in model.parameters()):
        return 0
    config: Any = model.config
    return 6 * dense - 2 * frozen + 6 * int(config.num_hidden_layers) * seq_len * int(config.hidden_size)
