"""Facts that nobody could know, taught to the study's recipients, alone and in many overlays."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import memgraft
from memgraft.assets import default_donor
from memgraft.harvesting import open_donor
from memgraft.integrations.transformers import load_graft
from memgraft.teaching import Fact, TeachSettings, teach
from memgraft.teaching.measure import damage, recall
from memgraft.teaching.reading import Grafted, Windows, neutral_windows
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
    """All facts in one overlay, in ten, and in a hundred, for each recipient; writes ``out/teaching.json``."""
    base = memgraft.Bank.open(quickstart / "bank")
    neutral = memgraft.Corpus.open(quickstart / "tokens" / "held-out.bin")
    facts = invented(CONFIG["facts"], CONFIG["facts_seed"])
    about: dict[str, Any] = {"config": CONFIG, "bank": base.fingerprint, "torch": torch.__version__}
    runs = finished(out / "teaching.json", about)
    donor = None
    for seed, folder in sorted(recipients(out).items()):
        if any(run["seed"] == seed for run in runs):
            continue
        donor = donor or open_donor(default_donor(), compute_dtype=str(base.manifest.donor["compute_dtype"]))
        model = AutoModelForCausalLM.from_pretrained(folder / "recipient")
        load_graft(model, folder / "graft", bank=base)
        model.to(device).eval()
        options: dict[str, Any] = {"donor": donor, "neutral": neutral, "tokenizer": quickstart / "tokenizer.json"}
        place = out / "taught" / f"seed{seed}"
        reports, overlays = {}, {}
        for name, group in groups(facts).items():
            overlay = place / name
            if not (overlay / "teaching.json").exists():
                shutil.rmtree(overlay, ignore_errors=True)
                teach(model, group, out=overlay, settings=TeachSettings(**CONFIG["teach"]), source=name, **options)
            overlays[name] = memgraft.Bank.open(overlay)
            report = finished_report(overlay)
            reports[name] = {key: report[key] for key in ("facts", "rows", "steps", "recall", "neutral")}
            say(f"seed {seed}, {name}: {report['recall']['taught']}")
        tenths = [overlays[name] for name in overlays if name != "all"]
        stacks = {"10 overlays": tenths, "100 overlays": split(tenths, place / "single")}
        stacked = measured(model, base, neutral, facts, quickstart, stacks)
        runs.append({"seed": seed, "reports": reports, "stacked": stacked})
        write(out / "teaching.json", {**about, "runs": runs})


def finished_report(overlay: Path) -> dict[str, Any]:
    """What `teach` left in the overlay."""
    import json

    report: dict[str, Any] = json.loads((overlay / "teaching.json").read_text())
    return report


def groups(facts: list[Fact]) -> dict[str, list[Fact]]:
    """All facts, and tenths of them."""
    tenth = len(facts) // 10
    return {"all": facts} | {f"part{number}": facts[number * tenth : (number + 1) * tenth] for number in range(10)}


def split(overlays: list[memgraft.Bank], folder: Path) -> list[memgraft.Bank]:
    """The rows of ``overlays`` as ten overlays each, row by row in turn."""
    made = []
    for number, overlay in enumerate(overlays):
        for part in range(10):
            path = folder / f"{number}-{part}"
            rows = np.arange(part, overlay.num_rows, 10)
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
    from memgraft.integrations.transformers.families import find_decoder
    from memgraft.integrations.transformers.runtime import the_runtime
    from memgraft.teaching.facts import spoken
    from memgraft.tokenizer import open_tokenizer

    codec, runtime = open_tokenizer(quickstart / "tokenizer.json"), the_runtime(find_decoder(model)[0], None)
    grafted = Grafted(model, runtime.name, tuple(runtime.eos_ids), next(model.parameters()).device)
    prompts = spoken([(n, one.prompt, one.completion) for n, one in enumerate(facts)], codec, None, "prompt")
    other = [(n, words, one.completion) for n, one in enumerate(facts) for words in one.reworded]
    reworded = spoken(other, codec, None, "reworded prompt")
    found = {}
    for name, overlays in stacks.items():
        memory = memgraft.Bank.open([base.path, *(overlay.path for overlay in overlays)])
        settings = TeachSettings(**CONFIG["teach"])
        windows: Windows = neutral_windows(
            neutral, memory.index, settings.window, settings.neutral_windows, settings.neutral_tokens, settings.seed
        )
        found[name] = {
            "overlays": len(overlays),
            "recall": {"prompts": recall(grafted, memory, prompts), "reworded": recall(grafted, memory, reworded)},
            "neutral": damage(grafted, base, memory, windows.matched),
        }
        say(f"{name}: {found[name]}")
    return found
