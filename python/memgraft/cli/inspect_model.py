"""``memgraft inspect MODEL --text``: what a trained graft does to a text, token by token."""

import sys
from pathlib import Path
from typing import Any

from memgraft.cli import common, records
from memgraft.errors import ArgumentError
from memgraft.names import TOOL


def run(
    path: Path,
    graft: Path,
    *,
    text: str,
    recipient: Path | None,
    bank: str | None,
    tokenizer: Path | None,
    html: Path | None,
    json: bool,
) -> None:
    """Print what each token of ``text`` finds, the gates, and what the row changes.

    Args:
        path: what the user named: a graft, or a folder with ``graft/`` and ``recipient/`` as `memgraft train` keeps.
        graft: its graft folder.
        text: the text.
        recipient: the recipient's folder, where it is not beside the graft.
        bank: the bank (several with commas), where the graft names none.
        tokenizer: its tokenizer, where the recipient's folder and the bank have none.
        html: also write a page there.
        json: print one JSON object.

    Raises:
        ArgumentError: no recipient is named or found, or no tokenizer.
        FingerprintError: the tokenizer is not the one that the bank's keys were made with.
    """
    folder = recipient or path / "recipient"
    if not (folder / "config.json").is_file():
        raise ArgumentError(f"{path}: expected the recipient at {folder}, found none; give --recipient")
    from memgraft.bank import open_memory_of
    from memgraft.keyed import decoder
    from memgraft.tokenizer_file import TOKENIZER_NAME, load_tokenizer_file

    # Before the imports, which take seconds.
    memory = open_memory_of(graft, records.read_json(graft / "graft.json")["bank"], bank)
    places = [tokenizer, folder / TOKENIZER_NAME, getattr(memory, "tokenizer_path", None)]
    chosen = next((place for place in places if place is not None and (place == tokenizer or place.is_file())), None)
    if chosen is None:
        raise ArgumentError(f"{path}: expected {folder / TOKENIZER_NAME}, found none; give --tokenizer")
    opened = load_tokenizer_file(chosen)
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from memgraft.harvesting.gguf import quiet_transformers
    from memgraft.integrations.transformers import explain, load_graft

    fast = PreTrainedTokenizerFast(tokenizer_object=opened)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder)
    load_graft(model, graft, bank=bank, tokenizer=fast, rows="same" if bank is None else "any")
    explained = explain(model, text, tokenizer=fast)
    ids = [one.token for one in explained]
    texts = decoder(fast)([[token] for token in ids])
    matches = decoder(fast)([ids[place - one.order + 1 : place + 1] for place, one in enumerate(explained)])
    tokens = []
    for one, spelled, match in zip(explained, texts, matches, strict=True):
        facts: dict[str, Any] = {"token": one.token, "text": spelled, "order": one.order}
        facts["match"] = match if one.order else None
        facts |= {"row": one.row, "bank": one.bank, "gate": one.gate, "injected": one.injected, "effect": one.effect}
        tokens.append(facts)
    if html is not None:
        from memgraft.bank.files import write_text
        from memgraft.report import tokens_page

        write_text(html, tokens_page(text, tokens, tool=TOOL))
    if json:
        common.emit({"text": text, "tokens": tokens}, json=True)
        return
    _print(tokens)


def _print(tokens: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("token", "order", "longest match", "bank", "gate", "injected norm", "effect (nats)"):
        table.add_column(name, justify="left" if name in ("token", "longest match", "bank") else "right")
    for one in tokens:
        gate, norm = (" ".join(f"{value:.3f}" for value in one[key].values()) for key in ("gate", "injected"))
        match = Text("miss", style="dim") if one["match"] is None else Text(repr(one["match"]), style="bold")
        table.add_row(
            Text(repr(one["text"])),
            str(one["order"] or "-"),
            match,
            "" if one["bank"] is None else Path(one["bank"]).name,
            gate,
            norm,
            "" if one["effect"] is None else f"{one['effect']:+.4f}",
        )
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    common.log("effect: what the row adds to the log-probability of the next token of the text")
