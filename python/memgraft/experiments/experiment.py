"""All arms and seeds of an experiment under one budget; finished ones are kept, interrupted ones taken up."""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from memgraft import __version__
from memgraft.assets.cache import directory_beside
from memgraft.bank import Bank
from memgraft.corpus import refuse_overlap, sample_of
from memgraft.corpus.text import load_tokenizer
from memgraft.errors import ConfigError, CorpusError
from memgraft.experiments.arms import ARMS, DEFAULT_ARMS, Arm, arms_named
from memgraft.experiments.measures import bytes_per_token
from memgraft.experiments.models import Material
from memgraft.experiments.plan import make_plan
from memgraft.experiments.recipe import Recipe, Trained, check_recipient, settings_fingerprint
from memgraft.experiments.record import RESULTS_FORMAT_VERSION, RESULTS_NAME, Record
from memgraft.experiments.tasks import check_tasks
from memgraft.experiments.train import Progress, disk_errors, train_arm
from memgraft.experiments.windows import TokenWindows
from memgraft.harvesting.devices import native_compute_dtype
from memgraft.harvesting.gguf import quiet_transformers
from memgraft.mining.origin import mined_from
from memgraft.progress import callback
from memgraft.system import write_beside
from memgraft.tokenizer import facts_of_keys, refuse_other_tokens
from memgraft.tokenizer_file import tokenizer_path

if TYPE_CHECKING:
    from memgraft.corpus import Corpus


def run_experiment(
    bank: Bank,
    train: "Corpus",
    held_out: "Corpus",
    out: str | Path,
    *,
    tokenizer: Any,
    eos_id: int | None = None,
    recipe: Recipe | None = None,
    arms: Sequence[str] = DEFAULT_ARMS,
    seeds: Sequence[int] = (0,),
    minutes: float = 10.0,
    steps: int | None = None,
    seconds: float | None = None,
    domains: "Mapping[str, Corpus] | None" = None,
    tasks: str | Path | None = None,
    keep: str = "graft",
    write: bool = True,
    overwrite: bool = False,
    command: str | None = None,
    measured: Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
) -> dict[str, Any]:
    """Trains every arm for every seed on the same tokens in one order, evaluates, compares, writes ``results.json``.

    Args:
        bank: the bank of the memory arms; mined from ``train`` alone.
        train: training tokens.
        held_out: tokens of other documents.
        out: the experiment's directory; finished arms in it are kept, arms and seeds can be added.
        tokenizer: the recipient's tokenizer: path of ``tokenizer.json`` or its folder, or the object.
        eos_id: the recipient's end-of-document token.
        recipe: size and schedule of the recipient.
        arms: names from `ARMS`.
        seeds: each seeds weights, graft and token order.
        minutes: wall-clock budget of all training together; the equal number of steps follows from a measurement of
            each arm's own speed, at most four epochs.
        steps: the number of steps itself, instead of ``minutes``.
        seconds: no arm is started later than this; ``unfinished`` lists those left, which the same call takes up.
        domains: more held-out text by a name, such as its kind; every arm is evaluated on each by itself.
        tasks: folder of task files (``.yaml``) of the lm-evaluation-harness; every arm answers all of them.
        keep: the arm whose model (of the first seed) is saved to ``<out>/model``; an empty name saves none.
        write: write ``results.json``.
        overwrite: where ``out`` holds an experiment of other settings, delete its arms instead of refusing.
        command: the command line that asks for this, for the record.
        measured: results of an earlier call on the same text, which then is not looked through again.
        progress: True for bars, or called as ``progress(phase, done, total)``.

    Returns:
        The content of ``results.json``.

    Raises:
        ConfigError: unknown arms, no seed, a budget too small for one step, or ``out`` holds an experiment of other
            settings.
        CorpusError: too little text, or the held-out tokens are those of the training or of the bank's keys, or more
            than a tenth of them is in documents of the training.
    """
    started = time.monotonic()
    progress = callback(progress)
    recipe = Recipe() if recipe is None else recipe
    chosen = arms_named(arms)
    if keep in arms and ARMS[keep].source is not None:
        raise ConfigError(f"keep: arm {keep!r} has rows that a saved graft does not hold; keep another arm")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds: expected distinct seeds, found {list(seeds)}")
    if "moe" in arms and recipe.recipient is not None:
        raise ConfigError("arms: 'moe' replaces MLPs that a pretrained recipient has trained; leave it out")
    check_recipient(recipe, bank.index.vocab_size)
    domains = domains or {}
    asked = None if tasks is None else check_tasks(Path(tasks))
    material = _material(bank, train, held_out, domains, recipe, tokenizer, eos_id)
    material = dataclasses.replace(material, tasks=None if tasks is None else Path(tasks))
    out = Path(out)
    bf16 = native_compute_dtype("cuda" if torch.cuda.is_available() else None) == "bfloat16"
    shared = {
        "recipe": recipe.to_dict(),
        "bank": bank.fingerprint,
        "train": material.train.fingerprint,
        "held_out": material.held_out.fingerprint,
        "vocab_size": material.vocab_size,
        "bf16": bf16,
        "version": __version__,
        **({"domains": {name: windows.fingerprint for name, windows in material.domains.items()}} if domains else {}),
        **({} if asked is None else {"tasks": asked}),
    }
    budget = {**shared, "minutes": None if steps else minutes, "steps": steps}
    others = _holds_others(out, budget)
    if others is not None and not overwrite:
        raise ConfigError(others)
    # Looking through the text takes longer than all before it, and may refuse before anything is deleted.
    text = {name: measured[name] for name in _MEASURES if measured} or _measure(
        bank, train, held_out, domains, material
    )
    if others is not None:
        _delete(out)
    settings = {**budget, "arms": list(arms), "seeds": list(seeds)}
    plan = make_plan(out / "plan.json", settings, budget, chosen, recipe, material, bf16, progress)
    record = Record(
        out=out,
        order=[(seed, arm) for seed in seeds for arm in chosen],
        material=material,
        facts={
            "format_version": RESULTS_FORMAT_VERSION,
            "settings": settings,
            "plan": plan,
            **({} if command is None else {"command": command}),
            **text,
            "tokens_per_arm": plan["steps"] * recipe.tokens_per_step,
        },
    )

    def own(seed: int, arm: Arm) -> tuple[Path, dict[str, Any], Path | None]:
        saved = out / "model" if arm.name == keep and seed == seeds[0] else None
        return out / f"{arm.name}-seed{seed}", {**shared, "arm": arm.name, "seed": seed, "steps": plan["steps"]}, saved

    for seed, arm in record.order:
        if (result := _finished(*own(seed, arm))) is not None:
            record.add(seed, arm, result)
    for seed, arm in record.unfinished:
        if seconds is not None and time.monotonic() - started >= seconds:
            break
        folder, its, saved = own(seed, arm)
        record.add(seed, arm, _train_one(folder, its, arm, recipe, material, seed, bf16, saved, progress))
        # A long comparison can be looked at, and reported, before its last arm is trained.
        if write and record.unfinished:
            record.write()
    return record.write() if write and record.found else record.report()


_MEASURES = ("overlap", "unigram_loss", "bytes_per_token")
"""What results say of the text, whatever is trained."""


def _measure(
    bank: Bank, train: "Corpus", held_out: "Corpus", domains: "Mapping[str, Corpus]", material: Material
) -> dict[str, Any]:
    """`_MEASURES` of the text.

    Raises:
        CorpusError: held-out text is that of the training, or of the keys.
    """
    shared_text = refuse_overlap(train, held_out, "the training corpus", "the held-out corpus")
    for name, corpus in domains.items():
        refuse_overlap(train, corpus, "the training corpus", f"the corpus of domain {name!r}")
    if (sample := sample_of(bank.keys)) is not None:
        for what, corpus in {"the held-out corpus": held_out, **domains}.items():
            if not _two_sides(bank.keys.metadata.get("split"), corpus.split_facts):
                sample.refuse(corpus, what)
    return {
        "overlap": shared_text.facts(),
        "unigram_loss": unigram_loss(train, held_out, material.vocab_size),
        "bytes_per_token": bytes_per_token(material.held_out, material.tokenizer),
    }


def _holds_others(out: Path, budget: dict[str, Any]) -> str | None:
    """Why a folder with an experiment of other settings is refused; None where there is none."""
    found = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((out / "plan.json").read_text())
    if found is None or found.get("settings") == budget:
        return None
    there = found.get("settings") or {}
    names = sorted(name for name in budget if there.get(name) != budget[name])
    differ = "; ".join(_difference(name, there.get(name), budget[name]) for name in names)
    return (
        f"{out}: holds an experiment of other settings ({differ}); finished arms are not deleted. Use those "
        "settings, another --out, or --overwrite (overwrite=True) to start anew"
    )


def _delete(out: Path) -> None:
    """Deletes the plan and the arms of the experiment in ``out``."""
    for mark in out.glob("*-seed*/settings.json"):
        shutil.rmtree(mark.parent)
    (out / "plan.json").unlink()
    (out / RESULTS_NAME).unlink(missing_ok=True)


def _difference(name: str, there: Any, asked: Any) -> str:
    """One setting that differs, in words; of a recipe the fields that do."""
    if isinstance(there, dict) and isinstance(asked, dict):
        return ", ".join(
            f"{field}: there {there.get(field)}, asked {asked.get(field)}"
            for field in sorted({*there, *asked})
            if there.get(field) != asked.get(field)
        )
    return f"{name}: there {there}, asked {asked}"


def unigram_loss(train: "Corpus", held_out: "Corpus", vocab_size: int) -> float:
    """Held-out loss in nats of a model that knows only how often each token is in ``train``, one added to each count.

    What an arm must be clearly below before its differences say anything.
    """
    block = 1 << 22
    counts = np.zeros((2, vocab_size), dtype=np.int64)
    for number, corpus in enumerate((train, held_out)):
        for start in range(0, corpus.num_tokens, block):
            tokens = corpus.tokens(start, min(start + block, corpus.num_tokens))
            counts[number] += np.bincount(tokens, minlength=vocab_size)[:vocab_size]
    logs = np.log((counts[0] + 1) / (counts[0].sum() + vocab_size))
    return float(-(counts[1] * logs).sum() / max(1, counts[1].sum()))


def _material(
    bank: Bank,
    train: "Corpus",
    held_out: "Corpus",
    domains: "Mapping[str, Corpus]",
    recipe: Recipe,
    tokenizer: Any,
    eos_id: int | None,
) -> Material:
    if train.fingerprint == held_out.fingerprint:
        raise CorpusError(f"the held-out corpus is the training corpus (fingerprint {train.fingerprint}); name another")
    for name, corpus in {
        "the held-out corpus": held_out,
        **{f"domain {key!r}": c for key, c in domains.items()},
    }.items():
        if mined_from(bank.keys.metadata, corpus):
            raise CorpusError(
                f"the bank's keys were mined from {name} (fingerprint {corpus.fingerprint}), or from documents of it; "
                "hold out what the keys do not come from, or mine the training corpus and harvest again"
            )
    for corpus in (train, held_out, *domains.values()):
        refuse_other_tokens(facts_of_keys(bank.keys.metadata, bank.manifest.tokenizer), corpus)
    windows = TokenWindows(train, recipe.seq_len)
    if len(windows) < recipe.batch_size:
        raise CorpusError(
            f"training corpus of {train.num_tokens} tokens: expected at least one step of {recipe.tokens_per_step}; "
            "use more text, or a smaller batch_size or seq_len"
        )
    return Material(
        bank=bank,
        train=windows,
        held_out=TokenWindows(held_out, recipe.seq_len),
        vocab_size=bank.index.vocab_size,
        eos_id=eos_id,
        tokenizer=tokenizer_path(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer,
        domains={name: TokenWindows(corpus, recipe.seq_len) for name, corpus in domains.items()},
    )


def _two_sides(mined: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> bool:
    """Whether these are of one split, whose sides may both hold what occurs twice in a text."""
    return bool(mined and ours and all(mined[name] == ours[name] for name in ("of", "held_out", "seed")))


def _finished(folder: Path, settings: dict[str, Any], saved: Path | None) -> dict[str, Any] | None:
    """The result of an arm that was finished under these settings, None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        if result.get("settings_fingerprint") == settings_fingerprint(settings) and (saved is None or saved.is_dir()):
            return result
    return None


def _train_one(
    folder: Path,
    settings: dict[str, Any],
    arm: Arm,
    recipe: Recipe,
    material: Material,
    seed: int,
    bf16: bool,
    saved: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Trains one arm, from its checkpoint where it has one, and writes its result."""
    mark = folder / "settings.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(mark.read_text()) != settings:
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_beside(mark, json.dumps(settings, sort_keys=True).encode())
    with quiet_transformers():
        model, result = train_arm(
            arm, recipe, material, seed=seed, steps=settings["steps"], folder=folder, bf16=bf16, progress=progress
        )
        if saved is not None:
            save_model(
                model,
                saved,
                grafted=arm.grafted,
                tokenizer=material.tokenizer,
                bank=material.bank,
                trained=recipe.trained,
            )
    result["settings_fingerprint"] = settings_fingerprint(settings)
    write_beside(folder / "result.json", (json.dumps(result) + "\n").encode())
    return result


def _from(folder: Path, bank: Bank | None) -> str | None:
    """The path of a bank seen from ``folder``; None for a stack of banks, which have several."""
    if bank is None or len(bank.paths) != 1:
        return None
    return os.path.relpath(bank.paths[0].resolve(), folder.resolve())


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    grafted: bool,
    tokenizer: Any = None,
    bank: Bank | None = None,
    trained: Trained = "all",
) -> None:
    """Saves a trained recipient to ``<folder>/recipient`` and its graft to ``<folder>/graft``; the graft comes off.

    Of a recipient that did not train itself its LoRA adapter is saved, to ``<folder>/adapter``, or nothing. The graft
    names the path of ``bank``, from its own folder, where the graft reads that bank.
    """
    from memgraft.integrations.transformers import detach
    from memgraft.integrations.transformers.saving import write_graft

    with disk_errors(folder), directory_beside(folder) as building:
        if grafted:
            write_graft(model, building.resolve() / "graft", bank_path=_from(folder / "graft", bank))
            detach(model)
        if trained != "all":
            if trained == "lora":
                model.save_pretrained(building / "adapter")  # type: ignore[operator]
            return
        model.save_pretrained(building / "recipient")  # type: ignore[operator]
        if isinstance(tokenizer, (str, Path)):
            _save_tokenizer(tokenizer_path(tokenizer), building / "recipient", model.config)


def _save_tokenizer(source: Path, folder: Path, config: Any) -> None:
    """Copies ``tokenizer.json`` and the file beside it from which transformers has the roles of special tokens.

    Where there is none it is made of ``config``'s: without it the tokenizer has no EOS, and nothing to pad with.
    """
    shutil.copyfile(source, folder / "tokenizer.json")
    facts = source.with_name("tokenizer_config.json")
    if facts.is_file():
        shutil.copyfile(facts, folder / facts.name)
        return
    tokenizer = load_tokenizer(source)
    ids = {role: getattr(config, f"{role}_id", None) for role in ("bos_token", "eos_token", "pad_token")}
    tokens = {role: tokenizer.id_to_token(token) for role, token in ids.items() if isinstance(token, int)}
    known = {role: token for role, token in tokens.items() if token is not None}
    written = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **known}, indent=2) + "\n"
    write_beside(folder / facts.name, written.encode())
