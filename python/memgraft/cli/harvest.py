"""``memgraft harvest``: run the donor over a key set and write the bank."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli.artifacts import Reading, check_folder, reads_corpora
from memgraft.cli.common import (
    VALUE_DTYPE_HELP,
    JsonOption,
    ThreadsOption,
    emit,
    keeps,
    log,
    need,
    progress,
    storage_type,
    verb,
    warnings_told,
)
from memgraft.cli.health import print_health
from memgraft.cli.sizes import parse_range
from memgraft.errors import ArgumentError

AUTO_CONTEXTS = (2, 12)
"""Contexts and prefixes that --auto tries where none are given; what a donor does not have is left out."""
AUTO_PREFIXES = ("auto", "none", "bos", "\n")


@verb
@reads_corpora
def run(
    reading: Reading,
    keys: Annotated[Path, typer.Argument(help="The key set, keys.mgk.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="The recipient's tokenizer.json, or its folder.")],
    donor: Annotated[str, typer.Option("--donor", help="A transformers folder, a .gguf file, or a hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bank directory to be.")],
    taps: Annotated[
        str | None, typer.Option("--taps", help="Donor depths, e.g. 8 or 8,24; r is after r blocks. --auto takes one.")
    ] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Choose tap, prefix and contexts by a probe on --corpus (see 'memgraft probe')."),
    ] = False,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="With --auto: other documents; default: what 'mine --held-out' held out."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="With --auto: time for the probe.")] = 10.0,
    value_dtype: Annotated[str, typer.Option(help=VALUE_DTYPE_HELP)] = "bf16",
    compute_dtype: Annotated[str, typer.Option(help="The donor's run: auto, float32, bfloat16 or float16.")] = "auto",
    prefix: Annotated[
        str,
        typer.Option(help=r"What stands before every key in the donor: auto, none, bos, or text (\n is a newline)."),
    ] = "auto",
    prepend_bos: Annotated[bool, typer.Option("--prepend-bos", help="Put the donor's BOS before each key.")] = False,
    contexts: Annotated[
        str | None,
        typer.Option(help="K,L: the mean over up to K occurrences in --corpus, each behind up to L tokens."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option("--corpus", help="With --contexts or --auto: the corpus that the keys were mined from."),
    ] = None,
    round_trip: Annotated[
        str, typer.Option(help="Keep keys whose 'text' is stable, or also whose 'ids' are.")
    ] = "text",
    batch_tokens: Annotated[int, typer.Option(min=1, help="Donor tokens per batch.")] = 1024,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Rows kept at a time.")] = 2048,
    share_prefixes: Annotated[
        bool, typer.Option("--share-prefixes/--no-share-prefixes", help="Run beginnings that keys share once.")
    ] = True,
    memory: Annotated[
        str, typer.Option(help="Working memory of judging, sorting and searching; --dry-run says what comes besides.")
    ] = "2GiB",
    rank: Annotated[
        int | None, typer.Option(help="This process among --world; default: what torchrun or Slurm set.")
    ] = None,
    world: Annotated[int | None, typer.Option(help="Processes that harvest this bank together.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a card if there is one.")] = None,
    device_map: Annotated[
        str | None, typer.Option("--device-map", help="auto: spread the donor over all cards and the memory.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Take up an interrupted harvest of the same settings.")] = True,
    keep_tokenizer: Annotated[
        bool, typer.Option("--keep-tokenizer/--no-keep-tokenizer", help="Copy the tokenizer into the bank.")
    ] = True,
    threads: ThreadsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge the keys, time a sample, write nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Run the donor over the keys, once, and write the bank. An interrupted harvest is taken up where it stopped."""
    from memgraft.bank.health import bank_health, whole_health
    from memgraft.keyset import KeySet
    from memgraft.mining.origin import held_out_part

    need("torch", "torch")
    need("transformers", "transformers")
    from memgraft.harvesting.asked import check_asked, recipient_codec
    from memgraft.harvesting.finished import refuse_other, refuse_other_begun
    from memgraft.harvesting.ranks import Rank

    depths = parse_taps(taps)
    if depths is None and not auto:
        raise ArgumentError("--taps: expected donor depths such as 8 or 8,24, got none; give them, or --auto")
    if auto and (dry_run or not corpus or not resume):
        raise ArgumentError("--auto: expected --corpus, and neither --dry-run nor --no-resume; see 'memgraft probe'")
    if held_out is not None and not auto:
        raise ArgumentError("--held-out: expected with --auto, whose probe is examined on it; leave it out")
    if not dry_run:
        check_folder(out)
    around = parse_contexts(contexts)
    stored, reading = meant_types(value_dtype, reading, for_corpus=bool(corpus))
    keyset, opening = KeySet.open(keys), replace(reading, tokenizer=tokenizer)
    options: dict[str, Any] = {
        "recipient_tokenizer": tokenizer,
        "donor": donor,
        "taps": depths,
        "dtype": stored,
        "compute_dtype": compute_dtype,
        "prefix": prefix.replace("\\n", "\n"),
        "prepend_bos": prepend_bos,
        "contexts": around,
        "round_trip": round_trip,
        "share_prefixes": share_prefixes,
        "batch_tokens": batch_tokens,
        "device": donor_device(device, device_map),
        "memory": memory,
    }
    # A probe takes a corpus without contexts, too.
    check_asked(**options, corpus=None if auto and around is None else corpus or None, chunk_rows=chunk_rows)
    codec = recipient_codec(keyset, tokenizer)
    if out.exists() and not auto and not dry_run:
        refuse_other(out, {"dtype": stored, "taps": depths})
    if depths is not None and resume and not dry_run:
        refuse_other_begun(out, stored, depths)
    place, begun = Rank.find(rank, world), Path(f"{out}.partial")
    options["corpus"] = opening.open(corpus, made=keyset) if corpus else None
    exam = None if held_out is None else opening.open(held_out, made=keyset)
    if auto and not out.exists() and not begun.exists():
        held_out_part(keyset, options["corpus"], exam)
    # Torch comes once nothing is left to refuse without it.
    from memgraft.harvesting import harvest, plan_harvest

    if dry_run:
        with progress("keys") as report:
            plan = plan_harvest(keyset, **options, chunk_rows=chunk_rows, progress=report)
        facts = {
            "num_keys": plan.num_keys,
            "num_rows": plan.num_rows,
            "dropped": plan.dropped,
            "prefix": prefix_facts(plan.prefix.facts()) if plan.prefix else None,
            "value_bytes": plan.num_bytes,
            "donor_tokens": plan.num_donor_tokens,
            "distinct_prefixes": plan.num_prefixes,
            "prefixes_shared": plan.sharing.shared if plan.sharing else None,
            "keys_per_second": round(plan.keys_per_second, 1),
            "seconds": round(plan.seconds, 1),
            "memory_bytes": plan.memory["most"],
            "memory_of": {name: number for name, number in plan.memory.items() if name != "most"},
        }
        emit(facts, json=json, title="a harvest would make")
        return
    if auto:
        from memgraft.probing import choose_settings

        keeps(
            f"what a probe has chosen is in {out}.partial; the same command goes on from there",
            begun,
            out,
        )
        shared = ("corpus", "compute_dtype", "device", "batch_tokens")
        with progress("keys") as report:
            chosen = choose_settings(
                keyset,
                out,
                recipient_tokenizer=codec,
                donors=[donor],
                taps=depths,
                prefixes=AUTO_PREFIXES if options["prefix"] == "auto" else [options["prefix"]],
                contexts=[None, around or AUTO_CONTEXTS],
                dtypes=[options["dtype"]],
                held_out=exam,
                minutes=minutes,
                progress=report,
                note=log,
                **{name: options[name] for name in shared},
            )
        log(f"chosen by the probe: {chosen.probe['chosen']}")
        options |= {"taps": chosen.taps, "prefix": chosen.prefix, "contexts": chosen.contexts, "probe": chosen.probe}
        options["corpus"] = options["corpus"] if chosen.contexts else None
    options |= {"keep_tokenizer": keep_tokenizer, "rank": rank, "world_size": world, "note": log}
    keeps(f"what is finished is in {out}.partial; the same command goes on from there", begun, out)
    finished = out.exists()
    with warnings_told(), progress("keys", noted=("donor",)) as report:
        bank = harvest(
            keyset,
            **options,
            out=out,
            chunk_rows=chunk_rows,
            resume=resume,
            progress=report,
        )
    if place.rank != 0:  # of many processes one prints what they made
        return
    if finished:
        log(f"{out} was finished before; nothing was harvested")
    groups, whole = bank_health(bank), whole_health(bank)
    manifest = bank.manifest
    facts = {
        "bank": str(out),
        "fingerprint": bank.fingerprint,
        "num_rows": bank.num_rows,
        "taps": list(bank.taps),
        "value_dim": bank.value_dim,
        "dtype": manifest.dtype,
        "value_bytes": bank.num_rows * bank.bytes_per_row,
        "dropped": dict(manifest.dropped),
        "donor": manifest.donor["name"],
        "prefix": prefix_facts(manifest.donor),
        "contexts": manifest.donor.get("contexts"),
        "chosen_by_probe": (manifest.donor.get("probe") or {}).get("chosen"),
        "windows": manifest.donor.get("num_windows"),
        "donor_tokens": manifest.donor.get("num_donor_tokens"),
        "distinct_prefixes": manifest.donor.get("num_prefixes"),
        "prefixes_shared": manifest.donor.get("shared_prefixes"),
        "storage": manifest.donor.get("storage"),
        "rows": groups,
        "all_rows": whole,
    }
    if json:
        emit(facts, json=True)
        return
    del facts["rows"], facts["all_rows"]
    emit({name: fact for name, fact in facts.items() if fact is not None}, json=False, title="bank")
    print_health(groups, whole)


def meant_types(value_dtype: str, reading: Reading, *, for_corpus: bool) -> tuple[str, Reading]:
    """The storage type, and how the corpus is read: ``--dtype`` is its tokens' type, and once was the storage type.

    Raises:
        ArgumentError: there is no such type.
    """
    from memgraft.bank.dtypes import DTYPES

    if for_corpus and reading.dtype not in (None, "fp8", *DTYPES):
        return storage_type(value_dtype), reading
    return storage_type(value_dtype, reading.dtype), replace(reading, dtype=None)


def donor_device(device: str | None, device_map: str | None) -> str | None:
    """The device of ``--device``, or ``"auto"`` of ``--device-map``.

    Raises:
        ArgumentError: both, or another map.
    """
    if device_map is None:
        return device
    if device_map != "auto" or device is not None:
        raise ArgumentError(f"--device-map {device_map}: expected auto, and no --device beside it")
    return device_map


def parse_taps(text: str | None) -> tuple[int, ...] | None:
    """``"2,8,16"``.

    Raises:
        ArgumentError: not a list of numbers.
    """
    if text is None:
        return None
    try:
        return tuple(parse_range("--taps", text))
    except ArgumentError:
        raise ArgumentError(f"--taps {text}: expected numbers of blocks such as 8 or 8,24") from None


def parse_contexts(text: str | None, form: str = "K,L such as 2,12") -> tuple[int, int] | None:
    """``"2,12"`` or ``"2:12"``: up to 2 occurrences behind up to 12 tokens.

    Args:
        text: what was given.
        form: how the verb takes them, for the message.

    Raises:
        ArgumentError: not two whole numbers.
    """
    if text is None:
        return None
    try:
        occurrences, left = (int(number) for number in text.replace(":", ",").split(","))
    except ValueError:
        raise ArgumentError(
            f"--contexts {text}: expected two whole numbers {form}: occurrences and tokens of left context"
        ) from None
    return occurrences, left


def prefix_facts(donor: Mapping[str, Any]) -> str:
    """What stands before every key, in a few words, from the facts of a donor."""
    name, ids = donor["prefix_name"], donor["prefix"]
    probe = donor.get("prefix_probe") or {}
    measured = ", ".join(f"{other} {cosine:.3f}" for other, cosine in sorted(probe.items(), key=lambda item: item[1]))
    return f"{name} {list(ids)}" + (f", by mean cosine of single words: {measured}" if measured else "")
