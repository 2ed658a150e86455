"""The quickstart: every part of memgraft once, through the public API, on real text with a real donor.

text -> held-out documents -> recipient tokenizer -> tokens -> mined keys -> donor values -> bank -> coverage ->
four arms -> sample -> report. Each phase is a call a user can make; `Phases` only remembers which of them are done.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memgraft
from memgraft.assets import DEFAULT_CORPUS, DEFAULT_DONOR, default_corpus, default_donor
from memgraft.assets.cache import sha256_file, sha256_tree
from memgraft.controls import DEFAULT_ARMS
from memgraft.errors import ArgumentError, StorageError
from memgraft.harvesting.asked import refuse_donor
from memgraft.progress import Progress
from memgraft.quickstart import text
from memgraft.quickstart.phases import Phases

_DEPTH = 0.8
"""The tap, as a share of the donor's blocks."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a quickstart may be asked. The defaults fit two cores and fifteen minutes after the downloads."""

    corpus: Path | None = None
    """A folder of text; None: the default corpus."""
    donor: str | None = None
    """A transformers folder, a ``.gguf`` file or a hub id; None: the default donor."""
    out: Path = Path("quickstart")
    minutes: float = 8.0
    steps: int | None = None
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = DEFAULT_ARMS
    vocab_size: int = 8192
    orders: tuple[int, ...] = (2, 3, 4)
    budget: int = 90_000
    tap: int | None = None
    """Donor depth; None: four fifths of the donor's blocks, see docs/study/probe."""
    prefix: str | None = None
    """What stands before every key in the donor, see `memgraft.harvest`; None: a newline, where the donor has it."""
    held_out: float = 0.05
    recipe: dict[str, Any] | None = None
    """Fields of `memgraft.experiments.Recipe` that differ from its defaults."""


def run(
    options: Options, *, progress: Progress | None = None, log: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Runs the quickstart, or what of it is not done yet, and writes ``report.html`` and ``report.json``.

    Returns:
        The report's facts.

    Raises:
        DownloadError: something is to be fetched and cannot be.
        MemgraftError: whatever a phase refuses.
    """
    if options.corpus is not None and not options.corpus.exists():
        raise ArgumentError(
            f"--corpus {options.corpus}: expected a folder of text (.txt, .md, .jsonl), found nothing there"
        )
    if options.donor is not None:
        refuse_donor(options.donor, None if options.tap is None else (options.tap,))
    _writable(options.out)
    phases = Phases(options.out, log)
    corpus = options.corpus or default_corpus(progress)
    donor = options.donor or str(default_donor(progress))
    donor_files = _donor_files(donor, progress)
    tokens = _tokens(phases, options, corpus, progress)
    bank = _bank(phases, options, tokens, donor, donor_files, progress)
    coverage = _coverage(phases, options, tokens, bank, progress)
    experiment = _train(phases, options, tokens, bank, progress)
    shown = _show(phases, options, tokens, bank, experiment)
    return _report(phases, options, corpus, tokens, bank, coverage, experiment, shown)


def _donor_files(donor: str, progress: Progress | None) -> Path:
    """The donor's transformers folder: converted, where it is a GGUF file, the first time."""
    from memgraft.harvesting import donor_folder

    if progress is not None:
        progress("open donor", 0, 1)
    folder = donor_folder(donor)
    if progress is not None:
        progress("open donor", 1, 1)
    return folder


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {out}: cannot be made ({error.strerror}); name a directory you may write") from error


def _tokens(phases: Phases, options: Options, corpus: Path, progress: Progress | None) -> dict[str, Any]:
    """Splits, trains the recipient's tokenizer on the training part, tokenises both parts."""
    out = options.out

    def split() -> dict[str, Any]:
        if options.corpus is not None and (told := text.unread(corpus)):
            phases.log(told)
        training, held_out = text.hold_out(text.document_groups(corpus), options.held_out)
        text.write_documents(out / "text" / "training.jsonl", training)
        text.write_documents(out / "text" / "held-out.jsonl", held_out)
        return {
            "training_documents": len(training),
            "held_out_documents": len(held_out),
            "characters": sum(map(len, training)) + sum(map(len, held_out)),
            "fingerprint": sha256_tree(out / "text"),
        }

    source = text.source_fingerprint(corpus)
    parts = phases.run("split", {"corpus": source, "held_out": options.held_out}, ["text"], split)

    def tokenizer() -> dict[str, Any]:
        size = text.train_tokenizer(
            out / "text" / "training.jsonl", out / "tokenizer.json", vocab_size=options.vocab_size, progress=progress
        )
        return {"vocab_size": size, "fingerprint": sha256_file(out / "tokenizer.json")}

    inputs = {"text": parts["fingerprint"], "vocab_size": options.vocab_size}
    trained = phases.run("tokenizer", inputs, ["tokenizer.json"], tokenizer)

    def tokenize() -> dict[str, Any]:
        facts: dict[str, Any] = {}
        (out / "tokens").mkdir(exist_ok=True)
        for part in ("training", "held-out"):
            path = memgraft.tokenize_folder(
                out / "text" / f"{part}.jsonl",
                out / "tokenizer.json",
                out / "tokens" / part,
                eos=text.EOS,
                progress=progress,
            )
            opened = memgraft.Corpus.open(path)
            facts[part] = {
                "path": str(path.relative_to(out)),
                "num_tokens": opened.num_tokens,
                "num_documents": opened.num_documents,
                "fingerprint": opened.fingerprint,
            }
        return facts

    inputs = {"text": parts["fingerprint"], "tokenizer": trained["fingerprint"]}
    tokens = phases.run("tokens", inputs, ["tokens"], tokenize)
    return {"split": parts, "tokenizer": trained, **tokens}


def _bank(
    phases: Phases, options: Options, tokens: dict[str, Any], donor: str, donor_files: Path, progress: Progress | None
) -> dict[str, Any]:
    """Mines the training part, harvests the donor."""
    out = options.out

    def mine() -> dict[str, Any]:
        keys = memgraft.mine(
            memgraft.Corpus.open(out / tokens["training"]["path"]),
            orders=options.orders,
            budget=options.budget,
            vocab_size=tokens["tokenizer"]["vocab_size"],
            temporary=out,
            progress=progress,
        )
        keys.save(out / "keys.mgk")
        return {"num_keys": len(keys), "fingerprint": keys.fingerprint}

    inputs = {
        "tokens": tokens["training"]["fingerprint"],
        "orders": options.orders,
        "budget": options.budget,
        "vocab_size": tokens["tokenizer"]["vocab_size"],
    }
    mined = phases.run("keys", inputs, ["keys.mgk"], mine)

    from memgraft.harvesting import folder_fingerprint, open_donor

    watch = _Rate(progress)

    def harvest() -> dict[str, Any]:
        opened = open_donor(donor)
        bank = memgraft.harvest(
            memgraft.KeySet.open(out / "keys.mgk"),
            recipient_tokenizer=out / "tokenizer.json",
            donor=opened,
            taps=(options.tap if options.tap is not None else max(1, round(_DEPTH * opened.num_blocks)),),
            out=out / "bank",
            prefix=options.prefix if options.prefix is not None else _newline(opened.tokenizer),
            progress=watch,
        )
        bank.verify()
        return {"fingerprint": bank.fingerprint, "num_rows": bank.num_rows, "keys_per_second": watch.rate}

    inputs = {
        "keys": mined["fingerprint"],
        "donor": folder_fingerprint(donor_files),
        "tap": f"{_DEPTH} of the blocks" if options.tap is None else options.tap,
        "prefix": "newline or auto" if options.prefix is None else options.prefix,
    }
    return {**phases.run("harvest", inputs, ["bank"], harvest, partial=["bank.partial"]), "donor": Path(donor).name}


def _newline(tokenizer: Any) -> str:
    """A newline as a prefix; ``"auto"`` where the donor's tokenizer has no tokens for it."""
    (ids,) = tokenizer.encode(["\n"])
    return "\n" if ids and tokenizer.unknown not in ids else "auto"


class _Rate:
    """Passes progress on and keeps the rate of the donor's run, of this process alone."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.first: tuple[int, float] | None = None
        self.rate: float | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase == "donor":
            now = time.perf_counter()
            if self.first is None:
                self.first = (done, now)
            elif done > self.first[0]:
                self.rate = round((done - self.first[0]) / (now - self.first[1]), 1)
        if self.progress is not None:
            self.progress(phase, done, total)


def _coverage(
    phases: Phases, options: Options, tokens: dict[str, Any], bank: dict[str, Any], progress: Progress | None
) -> dict[str, Any]:
    out = options.out

    def cover() -> dict[str, Any]:
        opened = memgraft.Bank.open(out / "bank")
        return {
            f"{part} text": dict(memgraft.coverage(opened, memgraft.Corpus.open(out / tokens[part]["path"])))
            for part in ("training", "held-out")
        }

    inputs = {"bank": bank["fingerprint"], **{part: tokens[part]["fingerprint"] for part in ("training", "held-out")}}
    return phases.run("coverage", inputs, [], cover)


def _train(
    phases: Phases, options: Options, tokens: dict[str, Any], bank: dict[str, Any], progress: Progress | None
) -> dict[str, Any]:
    out = options.out

    def train() -> dict[str, Any]:
        from memgraft.experiments import Comparison, Recipe

        comparison = Comparison(
            bank=out / "bank",
            train=out / tokens["training"]["path"],
            held_out=out / tokens["held-out"]["path"],
            out=out / "experiment",
            tokenizer=out / "tokenizer.json",
            recipe=Recipe(**(options.recipe or {})),
            arms=options.arms,
            seeds=options.seeds,
            minutes=options.minutes,
            steps=options.steps,
        )
        # The phase is run anew only for other inputs.
        return comparison.run(overwrite=True, progress=progress)

    inputs = {
        "bank": bank["fingerprint"],
        **{part: tokens[part]["fingerprint"] for part in ("training", "held-out")},
        "arms": options.arms,
        "seeds": options.seeds,
        "minutes": options.minutes,
        "steps": options.steps,
        "recipe": options.recipe,
    }
    outputs = ["experiment/results.json"] + (["experiment/model"] if "graft" in options.arms else [])
    return phases.run("train", inputs, outputs, train)


def _show(
    phases: Phases, options: Options, tokens: dict[str, Any], bank: dict[str, Any], experiment: dict[str, Any]
) -> dict[str, Any]:
    """Generates a sample with the KV cache and reads the gates."""
    out = options.out
    grafted = [result for result in experiment["arms"] if result["arm"] == "graft"]
    if not grafted:
        return {}

    def show() -> dict[str, Any]:
        from memgraft.quickstart.sample import gates, load_recipient, sample

        opened = memgraft.Bank.open(out / "bank")
        model = load_recipient(out / "experiment" / "model", opened)
        held_out = memgraft.Corpus.open(out / tokens["held-out"]["path"])
        prompt = text.first_words(text.json_lines(out / "text" / "held-out.jsonl")[0]["text"])
        seq_len = experiment["settings"]["recipe"]["seq_len"]
        return {
            "sample": sample(model, opened, out / "tokenizer.json", prompt, new_tokens=min(96, seq_len)),
            "gates": gates(model, opened, held_out, seq_len=seq_len),
        }

    inputs = {"bank": bank["fingerprint"], "graft": [result["settings_fingerprint"] for result in grafted]}
    return phases.run("sample", inputs, [], show)


def _report(
    phases: Phases,
    options: Options,
    corpus: Path,
    tokens: dict[str, Any],
    bank: dict[str, Any],
    coverage: dict[str, Any],
    experiment: dict[str, Any],
    shown: dict[str, Any],
) -> dict[str, Any]:
    from memgraft.report import bank_facts, build_facts, provenance, write_report

    opened = memgraft.Bank.open(options.out / "bank")
    default_text = "; ".join(f"{package.requirement}: {package.licence}" for package in DEFAULT_CORPUS)
    split, tokenizer = tokens["split"], tokens["tokenizer"]
    recipe = experiment["settings"]["recipe"]
    material = {
        "text": str(corpus) if options.corpus else default_text,
        "documents": f"{split['training_documents']:,} for training, {split['held_out_documents']:,} held out",
        "tokens": f"{tokens['training']['num_tokens']:,} for training, {tokens['held-out']['num_tokens']:,} held out",
        "recipient tokenizer": f"byte-level BPE of {tokenizer['vocab_size']:,} tokens, from the training documents",
        "donor": options.donor or f"{DEFAULT_DONOR.requirement}: {DEFAULT_DONOR.licence}",
        "recipient": f"Llama-style from scratch: width {recipe['width']}, {recipe['num_blocks']} blocks, "
        f"graft before block {recipe['site']} (0-based)",
        "training": f"{experiment['plan']['steps']} steps of {recipe['seq_len'] * recipe['batch_size']:,} tokens "
        f"per arm, peak rate {recipe['peak_lr']}, hash tables at five times that",
    }
    material |= {name: fact for name, fact in provenance(opened, experiment).items() if name not in material}
    facts = build_facts(
        bank=bank_facts(opened, keys_per_second=bank["keys_per_second"]),
        coverage={"training text": coverage["training text"], "held-out text": coverage["held-out text"]},
        experiment=experiment,
        gates=shown.get("gates"),
        sample=shown.get("sample"),
        material=material,
        seconds=phases.seconds,
        title="A grafted model, measured",
        subtitle=f"memgraft quickstart · donor {bank['donor']}",
    )
    write_report(options.out, facts)
    return facts


def parse_arms(arms: Sequence[str]) -> tuple[str, ...]:
    """Arms as given on a command line, commas or repeated."""
    return tuple(name for entry in arms for name in entry.split(",") if name)
