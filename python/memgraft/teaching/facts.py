"""Statements to teach: a prompt, how it goes on, and the same prompt in other words."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgraft.errors import ArgumentError, FormatError, StorageError
from memgraft.tokenizer import TextCodec

_NAMES = {"prompt", "completion", "reworded"}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One statement.

    Attributes:
        prompt: what comes before.
        completion: what the model is to say next, with the space that it begins with.
        reworded: other prompts that ask for the same; never trained on, only measured.
    """

    prompt: str
    completion: str
    reworded: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The line of a facts file that says it."""
        return {"prompt": self.prompt, "completion": self.completion, "reworded": list(self.reworded)}


def read_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """The statements of a file of JSON lines: ``{"prompt": …, "completion": …, "reworded": […]}``.

    Empty lines are left out, and so is a line that repeats another; ``reworded`` may be missing.

    Raises:
        StorageError: the file cannot be read.
        FormatError: a line is something else; names file and line.
        ArgumentError: no line, or two lines that contradict each other.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: expected JSON lines in UTF-8, found {error}") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}; name a file of JSON lines") from error
    facts = [_fact(f"{path}: line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    return checked(facts, str(path))


def _fact(where: str, line: str) -> Fact:
    example = '{"prompt": "The capital of Zembla is", "completion": " Onhava"}'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise FormatError(f"{where}: expected a JSON object like {example}, found no JSON: {error}") from None
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: expected a JSON object like {example}, found {type(entry).__name__}")
    if unknown := sorted(set(entry) - _NAMES):
        raise FormatError(f"{where}: expected prompt, completion and reworded, found {', '.join(unknown)} too")
    for name in ("prompt", "completion"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise FormatError(f"{where}: expected a text as {name}, found {entry.get(name)!r}; such as {example}")
    reworded = entry.get("reworded", [])
    if not isinstance(reworded, list) or not all(isinstance(one, str) and one.strip() for one in reworded):
        raise FormatError(f"{where}: expected a list of texts as reworded, found {reworded!r}")
    return Fact(prompt=entry["prompt"], completion=entry["completion"], reworded=tuple(reworded))


def checked(facts: Iterable[Fact], where: str = "facts") -> list[Fact]:
    """The statements without repetitions, those of one prompt as one.

    Raises:
        ArgumentError: none, a text is missing, or two of one prompt go on differently.
    """
    by_prompt: dict[str, Fact] = {}
    for number, fact in enumerate(facts, start=1):
        if not isinstance(fact, Fact):
            raise ArgumentError(
                f"{where}: expected a list of memgraft.teaching.Fact, found {type(fact).__name__}; "
                "Fact(prompt=, completion=) makes one, memgraft.teaching.read_facts reads a file of them"
            )
        for name in ("prompt", "completion"):
            if not getattr(fact, name).strip():
                raise ArgumentError(f"{where}: fact {number}: expected a text as {name}, found none")
        before = by_prompt.get(fact.prompt)
        if before is not None and before.completion != fact.completion:
            raise ArgumentError(
                f"{where}: {fact.prompt!r} goes on with {before.completion!r} and with {fact.completion!r}: a prompt "
                "has one completion; remove one of the two"
            )
        others = () if before is None else before.reworded
        by_prompt[fact.prompt] = Fact(
            prompt=fact.prompt,
            completion=fact.completion,
            reworded=tuple(dict.fromkeys((*others, *fact.reworded))),
        )
    if not by_prompt:
        raise ArgumentError(f"{where}: expected at least one fact, found none")
    return list(by_prompt.values())


@dataclass(frozen=True)
class Spoken:
    """A prompt and its completion in the recipient's tokens.

    Attributes:
        fact: number of the statement.
        prompt: tokens of the prompt.
        completion: tokens of the completion; none is empty.
    """

    fact: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens."""
        return self.prompt + self.completion

    @property
    def targets(self) -> range:
        """Positions whose next token is one of the completion."""
        return range(len(self.prompt) - 1, len(self.prompt) + len(self.completion) - 1)


def spoken(texts: Sequence[tuple[int, str, str]], codec: TextCodec, longest: int | None, what: str) -> list[Spoken]:
    """Encodes (fact, prompt, completion), without special tokens.

    The prompt keeps the tokens that it has alone, since that is what a user asks with.

    Args:
        texts: number of the fact, prompt, completion.
        codec: the recipient's tokenizer.
        longest: positions that the recipient has; ``None`` where it has no limit.
        what: the kind of prompts, for errors.

    Raises:
        ArgumentError: a text without tokens, or one longer than the recipient's positions.
    """
    prompts = codec.encode([prompt for _, prompt, _ in texts])
    joined = codec.encode([prompt + completion for _, prompt, completion in texts])
    alone = codec.encode_inside([completion for _, _, completion in texts])
    found = []
    for (number, text, completion), prompt, both, rest in zip(texts, prompts, joined, alone, strict=True):
        # Where the tokenizer would merge across the border, the completion is what it is by itself.
        ids = both[len(prompt) :] if both[: len(prompt)] == prompt else rest
        if not prompt or not ids:
            raise ArgumentError(
                f"fact {number + 1}: {text!r} + {completion!r}: expected tokens on both sides, found {len(prompt)} and "
                f"{len(ids)}; the tokenizer makes nothing of it"
            )
        if longest is not None and len(prompt) + len(ids) > longest:
            raise ArgumentError(
                f"fact {number + 1}: the {what} {text[:60]!r} and its completion have {len(prompt) + len(ids)} tokens, "
                f"the recipient reads {longest}; shorten it"
            )
        found.append(Spoken(number, tuple(prompt), tuple(ids)))
    return found
