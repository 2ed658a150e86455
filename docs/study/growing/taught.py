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
from memgraft.teaching.reading import Grafted, Padded, log_probs, neutral_windows
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
        place, settings = out / "taught" / f"seed{seed}", TeachSettings(**CONFIG["teach"])
        if not (place / "all" / "teaching.json").exists():
            donor = donor or open_donor(default_donor(), compute_dtype=str(base.manifest.donor["compute_dtype"]))
            teach(model, facts, out=place / "all", settings=settings, donor=donor, **options)
        report = json.loads((place / "all" / "teaching.json").read_text())
        reports = {
            "all": {key: report[key] for key in ("facts", "rows", "rows_by_order", "steps", "recall", "neutral")}
        }
        say(f"seed {seed}: {report['recall']['taught']}")
        whole = memgraft.Bank.open(place / "all")
        stacks = {f"{number} overlays": split(whole, number, place / f"{number}") for number in CONFIG["stacks"]}
        stacked = measured(model, base, neutral, facts, quickstart / "tokenizer.json", settings, stacks)
        runs.append({"seed": seed, "reports": reports, "stacked": stacked})
        write(out / "teaching.json", {**about, "runs": runs})


def grafted(model: Any) -> Grafted:
    """The model with what a call of its graft needs."""
    runtime = the_runtime(find_decoder(model)[0], None)
    return Grafted(model, runtime.name, tuple(runtime.eos_ids), next(model.parameters()).device)


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
    tokenizer: Path,
    settings: TeachSettings,
    stacks: dict[str, list[memgraft.Bank]],
) -> dict[str, Any]:
    """Recall of all facts and damage, for each stack."""
    codec, module = open_tokenizer(tokenizer), grafted(model)
    prompts = spoken([(n, one.prompt, one.completion) for n, one in enumerate(facts)], codec, None, "prompt")
    other = [(n, words, one.completion) for n, one in enumerate(facts) for words in one.reworded]
    reworded = spoken(other, codec, None, "reworded prompt")
    found = {}
    for name, overlays in stacks.items():
        memory = memgraft.Bank.open([base.path, *(overlay.path for overlay in overlays)])
        new = StackedIndex([overlay.index for overlay in overlays])
        windows = neutral_windows(
            neutral, new, settings.window, settings.neutral_windows, settings.neutral_tokens, settings.seed
        )
        found[name] = {
            "overlays": len(overlays),
            "recall": {"prompts": recall(module, memory, prompts), "reworded": recall(module, memory, reworded)},
            "windows_with_matches": windows.num_matched,
            "neutral": damage(module, base, memory, [*windows.matched, *windows.plain]),
        }
        say(f"{name}: {found[name]}")
    return found


def ceilings(quickstart: Path, out: Path) -> None:
    """By place in the completions: what base and taught rows say, and the most that any last state could; ceiling.json.

    A recipient says a token by its last state alone: norm, then head. So the state that suits a token best, found by
    gradient, bounds what rows can teach, whatever they hold and wherever they are read.
    """
    base = memgraft.Bank.open(quickstart / "bank")
    codec, facts = open_tokenizer(quickstart / "tokenizer.json"), invented(CONFIG["facts"], CONFIG["facts_seed"])
    statements = spoken([(number, fact.prompt, fact.completion) for number, fact in enumerate(facts)], codec, None, "")
    runs = []
    for seed, folder in sorted(recipients(out).items()):
        model = AutoModelForCausalLM.from_pretrained(folder / "recipient")
        load_graft(model, folder / "graft", bank=base)
        model.eval()
        overlay = out / "taught" / f"seed{seed}" / "all"
        memories = {"base": base}
        if (overlay / "bank.json").exists():
            memories["taught"] = memgraft.Bank.open([base.path, overlay])
        said = {arm: by_place(model, memory, statements) for arm, memory in memories.items()}
        best = best_of_any_state(model, sorted({token for one in statements for token in one.completion}))
        said["any last state"] = [
            [best[one.completion[place]] for one in statements if place < len(one.completion)]
            for place in range(len(said["base"]))
        ]
        told = {
            arm: [{"mean": float(np.mean(at)), "best": max(at), "tokens": len(at)} for at in places]
            for arm, places in said.items()
        }
        runs.append({"seed": seed, "log_prob_by_place": told})
        say(f"seed {seed}: " + ", ".join(f"{arm} {places[0]['mean']:.2f}" for arm, places in told.items()))
        write(out / "ceiling.json", {"config": CONFIG, "bank": base.fingerprint, "runs": runs})


@torch.no_grad()
def by_place(model: Any, memory: memgraft.Bank, statements: list[Any]) -> list[list[float]]:
    """Log-probabilities of the completions' first tokens, their second, and so on, in nats."""
    module = grafted(model)
    places: list[list[float]] = [[] for _ in range(max(len(one.completion) for one in statements))]
    for start in range(0, len(statements), CONFIG["teach"]["batch_size"]):
        some = statements[start : start + CONFIG["teach"]["batch_size"]]
        padded = Padded.of([one.ids for one in some], module.eos_ids)
        found, _ = log_probs(module.logits(padded, memory), some)
        for row, one in zip(found.tolist(), some, strict=True):
            for place in range(len(one.completion)):
                places[place].append(row[place])
    return places


def best_of_any_state(model: Any, tokens: list[int], steps: int = 400) -> dict[int, float]:
    """The largest log-probability of each token over all last hidden states, by Adam from random ones."""
    chosen, norm, head = torch.tensor(tokens), find_decoder(model)[0].norm, model.get_output_embeddings()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(tokens), model.config.hidden_size, generator=generator).requires_grad_()
    adam = torch.optim.Adam([states], lr=0.05)
    said = torch.zeros(len(tokens))
    for _ in range(steps):
        said = head(norm(states)).log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        adam.zero_grad()
        (-said.mean()).backward()
        adam.step()
    return dict(zip(tokens, said.detach().tolist(), strict=True))
