"""The same invented facts, taught to a pretrained recipient, whose head can give any token.

Recipient and donor are the quickstart's donor, SmolLM2-135M. Few keys of its own tokenizer make the base bank; a graft
is attached late and trained alone for some steps, so that it writes something; the recipient stays as it is.
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from taught import grafted, invented, measured, split
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import memgraft
from memgraft.assets import default_donor
from memgraft.config import GraftConfig
from memgraft.data import MemoryBatch
from memgraft.experiments.windows import SEGMENTS_COLUMN, TokenWindows
from memgraft.harvesting import donor_folder, harvest, open_donor
from memgraft.integrations.transformers import graft, load_graft, mark_trainable, save_graft
from memgraft.teaching import TeachSettings, teach
from memgraft.teaching.measure import damage
from memgraft.tokenizer import open_tokenizer
from run import CONFIG, finished, say, write

EOS = "<|endoftext|>"
REAL = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "It is well known that the capital of Japan is Tokyo.",
    "The founder of Microsoft was Bill Gates, and the founder of Apple was Steve Jobs.",
    "They wrote that the founder of Rome was Romulus.",
    "The main river of Egypt is the Nile, and the main river of Hungary is the Danube.",
    "On every map the main river of Brazil is the Amazon.",
    "The people of Brazil speak Portuguese, and the people of Austria speak German.",
    "Since then the people of Mexico speak Spanish.",
)
"""True statements in the words of the invented ones."""


def teach_pretrained(quickstart: Path, out: Path, device: str) -> None:
    """Bank, graft, facts in one overlay and dealt out to ten and to a hundred; writes ``out/pretrained.json``."""
    chosen = CONFIG["pretrained"]
    work, folder = out / "pretrained", Path(donor_folder(default_donor()))
    work.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"config": chosen, "torch": torch.__version__}
    runs = finished(out / "pretrained.json", about)
    if runs:
        return
    corpora = {part: corpus(quickstart, work, part, chosen["documents"][part]) for part in ("training", "held-out")}
    donor = open_donor(default_donor(), compute_dtype="float32", device=device)
    if not (work / "bank" / "bank.json").exists():
        keys = memgraft.mine(
            corpora["training"], orders=tuple(chosen["orders"]), budget=chosen["keys"], memory="1GiB", threads=1
        )
        harvest(
            keys,
            recipient_tokenizer=folder / "tokenizer.json",
            donor=donor,
            taps=(chosen["tap"],),
            prefix=chosen["prefix"],
            out=work / "bank",
        )
    base = memgraft.Bank.open(work / "bank")
    about["bank"] = base.fingerprint
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    model.requires_grad_(False)
    if not (work / "graft" / "graft.json").exists():
        config = GraftConfig(fallback=None, **chosen["graft"])
        graft(model, base, config)
        write(work / "training.json", train_graft(model, base, corpora["training"], chosen["training"], device))
        save_graft(model, work / "graft")
    else:
        load_graft(model, work / "graft", bank=base)
    facts = invented(CONFIG["facts"], CONFIG["facts_seed"])
    settings = TeachSettings(**chosen["teach"])
    if not (work / "all" / "teaching.json").exists():
        began = time.process_time()
        teach(
            model,
            facts,
            out=work / "all",
            settings=settings,
            donor=donor,
            neutral=corpora["held-out"],
            tokenizer=folder / "tokenizer.json",
            source="invented",
            progress=lambda *where: say(" ".join(map(str, where))) if where[1] % 10 == 0 else None,
        )
        say(f"taught in {time.process_time() - began:.0f} s of processor time")
    report = json.loads((work / "all" / "teaching.json").read_text())
    whole = memgraft.Bank.open(work / "all")
    stacks = {f"{number} overlays": split(whole, number, work / f"{number}") for number in CONFIG["stacks"]}
    stacked = measured(model, base, corpora["held-out"], facts, folder / "tokenizer.json", settings, stacks)
    other = [fact.prompt + fact.completion + "." for fact in invented(CONFIG["facts"], CONFIG["facts_seed"] + 1)]
    near = {"invented": other, "real": list(REAL)}
    beside = {name: harm(model, base, whole, texts, folder / "tokenizer.json") for name, texts in near.items()}
    kept = ("facts", "places", "rows", "rows_by_order", "steps", "losses", "recall", "neutral", "keys_in_neutral_text")
    told = {"all": {key: report[key] for key in kept}}
    trained = json.loads((work / "training.json").read_text())
    write(
        out / "pretrained.json",
        {**about, "runs": [{"seed": 0, "training": trained, "reports": told, "stacked": stacked, "beside": beside}]},
    )


def harm(model: Any, base: memgraft.Bank, overlay: memgraft.Bank, texts: list[str], tokenizer: Path) -> dict[str, Any]:
    """What the overlay does to statements that nobody taught, each a text of its own."""
    memory = memgraft.Bank.open([base.path, overlay.path])
    found = damage(grafted(model), base, memory, [tuple(ids) for ids in open_tokenizer(tokenizer).encode(texts)])
    say(f"statements beside: {found}")
    return {"texts": len(texts), **found}


def corpus(quickstart: Path, work: Path, part: str, number: int) -> memgraft.Corpus:
    """The first documents of the quickstart's text in the pretrained model's tokens."""
    if not (work / f"{part}.bin").exists():
        with (quickstart / "text" / f"{part}.jsonl").open() as lines:
            (work / f"{part}.jsonl").write_text("".join(itertools.islice(lines, number)))
        tokenizer = Path(donor_folder(default_donor())) / "tokenizer.json"
        memgraft.tokenize_folder(work / f"{part}.jsonl", tokenizer, work / part, eos=EOS)
    return memgraft.Corpus.open(work / f"{part}.bin")


def train_graft(
    model: Any, base: memgraft.Bank, text: memgraft.Corpus, settings: dict[str, Any], device: str
) -> dict[str, Any]:
    """Adam on the graft's weights alone; the loss of each step."""
    windows = TokenWindows(text, settings["window"])
    generator = np.random.default_rng(0)
    order = generator.permutation(len(windows))
    mark_trainable(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(parameters, lr=settings["learning_rate"], betas=(0.9, 0.95))
    losses, began = [], time.process_time()
    for step in range(settings["steps"]):
        size = settings["batch_size"]
        examples = [windows[int(number)] for number in order[step * size : (step + 1) * size]]
        tokens = torch.stack([one["input_ids"] for one in examples])
        segments = torch.stack([one[SEGMENTS_COLUMN] for one in examples])
        memory = MemoryBatch.look_up(base, tokens, segments).stage(base).to(device)
        tokens = tokens.to(device)
        logits = model(tokens, use_cache=False, memgraft=memory).logits
        loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(round(float(loss.detach()), 5))
        if step % 5 == 0:
            say(f"graft, step {step}: {losses[-1]:.4f}, {time.process_time() - began:.0f} s of processor time")
    model.requires_grad_(False)
    return {"losses": losses, "weights": sum(parameter.numel() for parameter in parameters)}
