"""Which text keys were mined from, as far as their metadata says."""

from collections.abc import Mapping
from typing import Any

from memgraft.corpus import Corpus, corpora_of
from memgraft.errors import ArgumentError, FingerprintError
from memgraft.keyset import KeySet


def split_of_keys(keys: KeySet, corpus: Corpus) -> tuple[Corpus, Corpus] | None:
    """Training and held-out part of ``corpus`` as they were when ``keys`` were mined from the former.

    None where the keys were not mined from a split of this corpus.
    """
    split = keys.metadata.get("split")
    if not split or split["of"] != corpus.fingerprint:
        return None
    return corpus.split(held_out=split["held_out"], seed=split["seed"])


def mined_from(metadata: Mapping[str, Any], corpus: Corpus) -> bool | None:
    """Whether keys with this ``metadata`` were mined from documents of ``corpus``; None where they do not say.

    True for the corpus itself, for one that the mined part was split off, for a part of the mined one, and for parts of
    one corpus that are not the two sides of one split. Documents that two unrelated corpora share are seen by
    ``coverage(mined=...)`` alone.
    """
    mined = corpora_of(metadata)
    if not mined:
        return None
    theirs, ours = metadata.get("split") or {}, corpus.split_facts or {}
    if corpus.fingerprint in (*mined, theirs.get("of")) or ours.get("of") in mined:
        return True
    if not ours or ours["of"] != theirs.get("of"):
        return False
    same_split = all(ours[name] == theirs[name] for name in ("held_out", "seed"))
    return not (same_split and ours["part"] != theirs["part"])


def mined_part(metadata: Mapping[str, Any], corpus: Corpus) -> Corpus:
    """The documents that keys with this ``metadata`` were mined from: ``corpus``, or the training part of it.

    Raises:
        FingerprintError: they were mined from another corpus.
    """
    mined, split = (metadata.get("corpus") or {}).get("fingerprint"), metadata.get("split") or {}
    if mined not in (None, corpus.fingerprint) and split.get("of") != corpus.fingerprint:
        whole = ", or the whole that it was split off" if split else ""
        raise FingerprintError(
            f"{corpus.paths[0]}: expected the corpus {mined} that the keys were mined from, "
            f"found {corpus.fingerprint}; name that corpus{whole}"
        )
    if split.get("of") == corpus.fingerprint:
        return corpus.split(held_out=split["held_out"], seed=split["seed"])[0]
    return corpus


def held_out_part(keys: KeySet, corpus: Corpus, held_out: Corpus | None) -> Corpus:
    """The text of a probe's exam: ``held_out``, or what was held out when ``keys`` were mined from ``corpus``.

    Raises:
        ArgumentError: nothing was held out, and nothing is given.
        FingerprintError: what is given was mined, or ``corpus`` is another than the mined one.
    """
    mined = mined_part(keys.metadata, corpus)
    if held_out is None:
        split = keys.metadata.get("split") or {}
        if split.get("of") != corpus.fingerprint:
            found = "the mined part alone" if split else "keys that were mined from all of it"
            raise ArgumentError(
                f"{corpus.paths[0]}: expected the whole corpus whose split the keys were mined from, which tells what "
                f"was held out, found {found}; give the whole, or held_out="
            )
        return corpus.split(held_out=split["held_out"], seed=split["seed"])[1]
    if held_out.fingerprint == mined.fingerprint or mined_from(keys.metadata, held_out):
        raise FingerprintError(
            f"{held_out.paths[0]}: expected documents that the keys were not mined from, found some that they were; "
            "name text that was held out"
        )
    return held_out
