"""Facts that nobody could know, taught to the study's recipients, alone and in many overlays."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import memgraft
from memgraft.assets import default_donor
from memgraft.bank.stacked import StackedIndex
from memgraft.harvesting import open_donor
from memgraft.integrations.transformers import load_graft
from memgraft.integrations.transformers.families import find_decoder
from memgraft.integrations.transformers.runtime import the_runtime
from memgraft.teaching import Fact, TeachSettings, teach
from memgraft.teaching.facts import spoken
from memgraft.teaching.measure import damage, recall
from memgraft.teaching.reading import Grafted, neutral_windows
from memgraft.tokenizer import open_tokenizer
from run import CONFIG, finished, recipients, say, write

SYLLABLES = (
    "ba ce dri fo gul hae ji kor lan mo nue pra quo rit sel tov uz vin wex yor zem".split()  # noqa: SIM905 - shorter to read
)
RELATIONS = {
    "The capital of {} is": (
        "city",
        ("It is well known that the capital of {} is", "Everybody says the capital of {} is"),
    ),
    "The founder of {} was": (
        "person",
        ("In the old days the founder of {} was", "They wrote that the founder of {} was"),
    ),
    "The main river of {} is the": ("city", ("On every map the main river of {} is the",)),
    "The people of {} speak": ("city", ("Since then the people of {} speak",)),
}


def invented(number: int, seed: int) -> list[Fact]:
    """So many facts about places that do not exist, the same for one seed."""
    generator = random.Random(seed)

    def name() -> str:
        return "".join(generator.choice(SYLLABLES) for _ in range(generator.randint(2, 3))).capitalize()

    facts: dict[str, Fact] = {}
    while len(facts) < number:
        template = list(RELATIONS)[len(facts) % len(RELATIONS)]
        place = name()
        completion = f" {name()}" if RELATIONS[template][0] == "city" else f" {name()} {name()}"
        prompt = template.format(place)
        reworded = tuple(other.format(place) for other in RELATIONS[template][1])
        facts[prompt] = Fact(prompt=prompt, completion=completion, reworded=reworded)
    return list(facts.values())


def teach_facts(quickstart: Path, out: Path, device: str) -> None:
    """All facts in one overlay, and its rows dealt out to ten and to a hundred; writes ``out/teaching.json``."""
    base = memgraft.Bank.open(quickstart / "bank")
    neutral = memgraft.Corpus.open(quickstart / "tokens" / "held-out.bin")
    facts = invented(CONFIG["facts"], CONFIG["facts_seed"])
    about: dict[str, Any] = {"config": CONFIG, "bank": base.fingerprint, "torch": torch.__version__}
    runs = finished(out / "teaching.json", about)
    donor = None
    for seed, folder in sorted(recipients(out).items()):
        if any(run["seed"] == seed for run in runs):
            continue
        model = AutoModelForCausalLM.from_pretrained(folder / "recipient")
        load_graft(model, folder / "graft", bank=base)
        model.to(device).eval()
        options: dict[str, Any] = {"neutral": neutral, "tokenizer": quickstart / "tokenizer.json", "source": "invented"}
        place = out / "taught" / f"seed{seed}"
        if not (place / "all" / "teaching.json").exists():
            donor = donor or open_donor(default_donor(), compute_dtype=str(base.manifest.donor["compute_dtype"]))
            settings = TeachSettings(**CONFIG["teach"])
            teach(model, facts, out=place / "all", settings=settings, donor=donor, **options)
        report = json.loads((place / "all" / "teaching.json").read_text())
        reports = {
            "all": {key: report[key] for key in ("facts", "rows", "rows_by_order", "steps", "recall", "neutral")}
        }
        say(f"seed {seed}: {report['recall']['taught']}")
        whole = memgraft.Bank.open(place / "all")
        stacks = {f"{number} overlays": split(whole, number, place / f"{number}") for number in CONFIG["stacks"]}
        stacked = measured(model, base, neutral, facts, quickstart, stacks)
        runs.append({"seed": seed, "reports": reports, "stacked": stacked})
        write(out / "teaching.json", {**about, "runs": runs})


def split(overlay: memgraft.Bank, number: int, folder: Path) -> list[memgraft.Bank]:
    """The rows of ``overlay`` dealt out to so many overlays."""
    made = []
    for part in range(number):
        path, rows = folder / str(part), np.arange(part, overlay.num_rows, number)
        if not (path / "bank.json").exists():
            memgraft.Bank.create(
                path,
                keys=overlay.keys.select(rows),
                values=overlay.floats(rows),
                taps=overlay.taps,
                dtype=overlay.dtype,
                donor=overlay.manifest.donor,
                tokenizer=overlay.manifest.tokenizer,
            )
        made.append(memgraft.Bank.open(path))
    return made


def measured(
    model: Any,
    base: memgraft.Bank,
    neutral: memgraft.Corpus,
    facts: list[Fact],
    quickstart: Path,
    stacks: dict[str, list[memgraft.Bank]],
) -> dict[str, Any]:
    """Recall of all facts and damage, for each stack."""
    codec, runtime = open_tokenizer(quickstart / "tokenizer.json"), the_runtime(find_decoder(model)[0], None)
    grafted = Grafted(model, runtime.name, tuple(runtime.eos_ids), next(model.parameters()).device)
    prompts = spoken([(n, one.prompt, one.completion) for n, one in enumerate(facts)], codec, None, "prompt")
    other = [(n, words, one.completion) for n, one in enumerate(facts) for words in one.reworded]
    reworded = spoken(other, codec, None, "reworded prompt")
    found = {}
    for name, overlays in stacks.items():
        memory = memgraft.Bank.open([base.path, *(overlay.path for overlay in overlays)])
        settings = TeachSettings(**CONFIG["teach"])
        new = StackedIndex([overlay.index for overlay in overlays])
        windows = neutral_windows(
            neutral, new, settings.window, settings.neutral_windows, settings.neutral_tokens, settings.seed
        )
        found[name] = {
            "overlays": len(overlays),
            "recall": {"prompts": recall(grafted, memory, prompts), "reworded": recall(grafted, memory, reworded)},
            "windows_with_matches": windows.num_matched,
            "neutral": damage(grafted, base, memory, [*windows.matched, *windows.plain]),
        }
        say(f"{name}: {found[name]}")
    return found
