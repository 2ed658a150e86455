"""``memgraft inspect``: what is in an artifact, and what a text finds in it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memgraft.cli import artifacts, common, inspect_model, records
from memgraft.cli.health import print_health
from memgraft.errors import ArgumentError, FingerprintError

REPLACEMENT = "\ufffd"
"""What stands where bytes are no whole character."""

if TYPE_CHECKING:
    from memgraft import Bank, KeySet, NgramIndex

Spell = Callable[[Sequence[int]], str]


@common.verb
@artifacts.reads_corpora
def run(
    reading: artifacts.Reading,
    path: Annotated[Path, typer.Argument(help="A bank, keys, index, part, graft, annotation, experiment or corpus.")],
    text: Annotated[
        str | None, typer.Option("--text", help="Show, token by token, the longest match in this text.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Show so many of the most frequent keys.")] = 0,
    dropped: Annotated[
        int, typer.Option("--dropped", min=0, help="Show so many keys that were mined and not harvested, and why.")
    ] = 0,
    recipient: Annotated[
        Path | None, typer.Option("--recipient", help="The recipient of a graft, where it is not beside it.")
    ] = None,
    bank_path: Annotated[
        str | None, typer.Option("--bank", help="The bank of a graft (several: commas), where the graft names none.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="With a graft and --text: also write what is shown as one HTML file.")
    ] = None,
    threads: common.ThreadsOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over the file of --html; default: refuse.")
    ] = False,
    json: common.JsonOption = False,
) -> None:
    """Show the facts of an artifact; with --text, what each of its tokens finds, and what a graft does with it."""
    if text is not None and (graft := records.graft_of(path)) is not None:
        page = (
            None
            if html is None
            else artifacts.check_output(html, overwrite=overwrite, endings=(".html", ".htm"), option="--html")
        )
        inspect_model.run(
            path,
            graft,
            text=text,
            recipient=recipient,
            bank=bank_path,
            tokenizer=reading.tokenizer,
            html=page,
            json=json,
        )
        return
    if recipient is not None or bank_path is not None or html is not None:
        if not path.exists():
            artifacts.kind_of(path)  # says so
        raise ArgumentError(f"{path}: --recipient, --bank and --html are for a graft with --text")
    kind = artifacts.kind_of(path)
    if dropped and kind != "bank":
        raise ArgumentError(f"{path}: expected a bank for --dropped, found {kind}")
    if kind in records.RECORDS:
        if text is not None or rows:
            raise ArgumentError(f"{path}: expected a bank, index.mgi or keys.mgk for --text and --rows, found {kind}")
        facts = records.record_facts(path, kind)
        common.emit({"kind": kind, **facts}, json=json, title=f"{kind.capitalize()} {path}")
        return
    if kind == "corpus":
        if text is not None or rows:
            raise ArgumentError(f"{path}: expected a bank, index.mgi or keys.mgk for --text and --rows, found a corpus")
        opened = reading.open(path)
        common.emit(corpus_facts(opened), json=json, title=f"Corpus {path}")
        return
    index, bank, keys = artifacts.open_index(path)
    given = reading.tokenizer
    loaded = None
    if text is not None or given is not None or rows or dropped:
        needed = text is not None or given is not None
        loaded = load_recipient_tokenizer(path, given, bank, keys, needed=needed)
    if text is not None:
        matches = match_text(index, loaded, text, bank)
        if json:
            common.emit({"text": text, "tokens": matches}, json=True)
        else:
            print_matches(matches)
        return
    facts = index_facts(index, bank, keys)
    spell = None if loaded is None else artifacts.speller(loaded)
    if rows:
        facts["top_keys"] = [key_facts(index, row, spell, bank) for row in range(min(rows, len(index)))]
    if dropped and bank is not None:
        facts["dropped_keys"] = dropped_facts(bank, dropped, spell)
    if json:
        common.emit(facts, json=True)
        return
    gone = facts.pop("dropped_keys", [])
    top = facts.pop("top_keys", [])
    if bank is not None:
        from memgraft.bank.health import health_warnings

        for line in health_warnings(facts["rows"], facts["all_rows"]):
            common.log(f"warning: {line}")
    health = facts.pop("rows", None), facts.pop("all_rows", None)
    common.emit(facts, json=False, title=str(path))
    if health[0]:
        print_health(*health)
    if top:
        print_keys(top)
    if gone:
        print_keys(gone)
    elif dropped:
        common.log("no key was dropped" if not facts["dropped"] else "the bank counts its dropped keys, and lists none")


def corpus_facts(corpus: Any) -> dict[str, Any]:
    """The facts of a corpus."""
    lengths = corpus.document_starts[1:] - corpus.document_starts[:-1]
    return {
        "kind": "corpus",
        "format": corpus.format,
        "files": [str(path) for path in corpus.paths],
        "dtype": str(corpus.dtype),
        "num_tokens": corpus.num_tokens,
        "num_documents": corpus.num_documents,
        "longest_document": int(lengths.max()),
        "empty_documents": int((lengths == 0).sum()),
        "vocab_size": corpus.vocab_size,
        "eos_id": corpus.eos_id,
        "tokenizer": corpus.tokenizer,
        "fingerprint": corpus.fingerprint,
    }


def index_facts(index: "NgramIndex", bank: "Bank | None", keys: "KeySet | None") -> dict[str, Any]:
    """The facts of a bank, index or key set."""
    facts: dict[str, Any] = {"kind": "keys" if bank is None else "bank", "num_keys": len(index)}
    facts["num_keys_by_order"] = index.num_keys_by_order
    facts["vocab_size"] = index.vocab_size
    if bank is not None:
        from memgraft.bank.health import bank_health, whole_health

        manifest = bank.manifest
        facts |= {
            **({"banks": banks_of(bank)} if len(bank.layers) > 1 else {}),
            "taps": bank.taps,
            "value_dim": bank.value_dim,
            "dtype": str(bank.dtype),
            "bytes_per_row": bank.bytes_per_row,
            "value_bytes": bank.bytes_per_row * bank.num_rows,
            "dropped": manifest.dropped,
            "donor": {name: value for name, value in manifest.donor.items() if name != "rows_by_donor_length"},
            "rows": bank_health(bank),
            "all_rows": whole_health(bank),
            "tokenizer": manifest.tokenizer,
            "written_by": manifest.tool,
            "fingerprint": bank.fingerprint,
        }
    elif index.path is not None:
        facts |= {"kind": "index", "bytes": index.path.stat().st_size, "fingerprint": index.fingerprint}
    facts["keyset"] = index.keyset_fingerprint
    if keys is not None:
        facts["reserved"] = keys.reserved
        facts |= {name: value for name, value in keys.metadata.items() if name not in facts}
    return facts


def banks_of(bank: "Bank") -> list[dict[str, Any]]:
    """The banks of a stack, from the base up."""
    return [
        {"path": str(layer.path), "first_row": layer.first_row, "num_rows": len(layer.rows)} for layer in bank.layers
    ]


def origin_facts(bank: "Bank", row: int) -> dict[str, Any]:
    """The bank a row is of, its corpus and its donor; empty where all rows are of one.

    In a stack that is the layer, and in brackets the bank that the row was harvested into, if that is another.
    """
    if len(bank.layers) == 1 and "sources" not in bank.manifest.corpus:
        return {}
    origin = bank.origin_of(row)
    corpus = origin["corpus"].get("corpus", origin["corpus"])
    name, layer = origin["bank"], bank.layer_of(row).path.name
    if len(bank.layers) > 1 and layer != name:
        name = f"{layer} ({name})"
    return {"bank": name, "corpus": corpus.get("fingerprint"), "donor": origin["donor"].get("name")}


def key_facts(index: "NgramIndex", row: int, spell: Spell | None, bank: "Bank | None" = None) -> dict[str, Any]:
    """One row: its key, count, its origin in a bank of several, and text where a tokenizer is at hand."""
    key = index.key(row)
    facts: dict[str, Any] = {"row": row, "order": len(key), "count": index.count(row), "key": list(key)}
    if spell is not None:
        facts["text"] = spell(key)
    return facts | (origin_facts(bank, row) if bank is not None else {})


def dropped_facts(bank: "Bank", at_most: int, spell: Spell | None) -> list[dict[str, Any]]:
    """The most frequent keys that were not harvested: reason, count, key, and text where a tokenizer is at hand."""
    facts = []
    for entry in bank.dropped_keys()[:at_most]:
        text = {} if spell is None else {"text": spell(entry["key"])}
        facts.append(
            {"reason": entry["reason"], "order": len(entry["key"]), **entry, "key": list(entry["key"]), **text}
        )
    return facts


def load_recipient_tokenizer(
    path: Path, given: Path | None, bank: "Bank | None", keys: "KeySet | None", *, needed: bool = True
) -> Any:
    """The tokenizer given, or the one in the bank or beside, checked against what the keys were mined with.

    Where it is not ``needed``, none is found without an error.

    Raises:
        ArgumentError: none is given and none is found.
        FingerprintError: it is not the one the keys were mined with.
    """
    from memgraft.corpus.vocabulary import load_tokenizer
    from memgraft.tokenizer import differs_from, facts_of_keys, open_tokenizer

    facts = bank.manifest.tokenizer if bank is not None else {}
    folder = bank.path if bank is not None else path.parent if path.is_file() else path
    inside = bank.tokenizer_path if bank is not None else None
    candidates = [inside or folder / "tokenizer.json", folder.parent / "tokenizer.json"]
    chosen = given or next((found for found in candidates if found.is_file()), None)
    if chosen is None and not needed:
        return None
    if chosen is None:
        raise ArgumentError(f"{path}: expected a tokenizer.json beside it, found none; give --tokenizer")
    if not facts.get("fingerprint"):
        facts = facts_of_keys(keys.metadata if keys is not None else {}, facts)
    difference = differs_from(open_tokenizer(chosen), facts)
    if difference and not needed:
        return None
    if difference:
        raise FingerprintError(
            f"{chosen}: expected the tokenizer that {path} was made with: {difference}; give that one with --tokenizer"
        )
    return load_tokenizer(chosen)


def match_text(index: "NgramIndex", tokenizer: Any, text: str, bank: "Bank | None" = None) -> list[dict[str, Any]]:
    """Token by token: its text, and the longest match that ends there."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids, spans = encoding.ids, encoding.offsets  # each access makes a list
    if not ids:
        raise ArgumentError(f"text: expected text with at least one token, got {text!r}")
    rows, orders = index.lookup(ids)
    spell = artifacts.speller(tokenizer)
    matches = []
    for place, (token, row, order) in enumerate(zip(ids, rows.tolist(), orders.tolist(), strict=True)):
        match: dict[str, Any] = {"token": token, "text": token_text(spell, text, ids, spans, place), "order": order}
        if row >= 0:
            key = index.key(row)
            decoded = spell(key)
            # A key may begin or end inside a character; then the text tells what the bytes alone do not.
            seen = text[spans[place - order + 1][0] : spans[place][1]]
            match["match"] = seen if REPLACEMENT in decoded else decoded
            match |= {"row": row, "count": index.count(row), "key": list(key)}
            match |= origin_facts(bank, row) if bank is not None else {}
        else:
            match["row"] = None
        matches.append(match)
    return matches


def token_text(spell: Spell, text: str, ids: list[int], spans: list[tuple[int, int]], place: int) -> str:
    """The text of one token; of one that is part of a character, the character and which part."""
    decoded = spell([ids[place]])
    span = spans[place]
    piece = text[span[0] : span[1]]
    if REPLACEMENT not in decoded or REPLACEMENT in piece:
        return decoded
    first = last = place
    while first > 0 and spans[first - 1] == span:
        first -= 1
    while last + 1 < len(ids) and spans[last + 1] == span:
        last += 1
    return piece if first == last else f"{piece} ({place - first + 1} of {last - first + 1})"


def print_keys(keys: list[dict[str, Any]]) -> None:
    """A table of keys: the most frequent ones by row, or dropped ones by reason."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    first = "row" if "row" in keys[0] else "reason"
    for name in (first, "order", "count"):
        table.add_column(name, justify="right" if name != "reason" else "left")
    table.add_column("key")
    several = any("bank" in key for key in keys)
    if several:
        table.add_column("bank")
    for key in keys:
        shown = repr(key["text"]) if "text" in key else " ".join(map(str, key["key"]))
        origin = [key["bank"]] if several else []
        table.add_row(str(key[first]), str(key["order"]), str(key["count"]), Text(shown), *origin)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def print_matches(matches: list[dict[str, Any]]) -> None:
    """A table of :func:`match_text`'s answer."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("token", "left"),
        ("order", "right"),
        ("longest match", "left"),
        ("count", "right"),
        ("row", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    several = any("bank" in match for match in matches)
    if several:
        table.add_column("bank")
    hits = 0
    for match in matches:
        token = Text(repr(match["text"]))
        if match["row"] is None:
            table.add_row(token, "-", Text("miss", style="dim"), "", "")
            continue
        hits += 1
        table.add_row(
            token,
            str(match["order"]),
            Text(repr(match["match"]), style="bold"),
            str(match["count"]),
            str(match["row"]),
            *([match["bank"]] if several else []),
        )
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    common.log(f"{hits} of {len(matches)} tokens have a match; left to the fallback: {len(matches) - hits}")
