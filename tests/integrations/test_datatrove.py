"""datatrove's own executor runs the step: four tasks, one killed and run again."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import memgraft
from memgraft.errors import StorageError
from memgraft.mining import RunSet, select_parts

pytest.importorskip("datatrove")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "lay", "while"]

RUN = """
import json, os, pathlib, signal, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.data import Document
import memgraft.integrations.datatrove as integration
from memgraft.errors import StorageError
from memgraft.integrations.datatrove import MineNgrams

kind, source, out, logs, tokenizer, killed = sys.argv[1:]

def read(data, rank, world_size):
    for file in sorted(pathlib.Path(source).glob("*.jsonl"))[rank::world_size]:
        for line in file.read_text().splitlines():
            yield Document(**json.loads(line))

mine_part = integration.mine_part

def killed_on_the_way(corpus, part, *, rank, **given):
    if str(rank) != killed:
        return mine_part(corpus, part, rank=rank, **given)
    # Its blocks are sorted, and their merge into the part cannot begin.
    blocking = pathlib.Path(f"{part}.partial/merged.records")
    blocking.mkdir(parents=True)
    try:
        mine_part(corpus, part, rank=rank, **given)
    except StorageError:
        blocking.rmdir()
        os.kill(os.getpid(), signal.SIGKILL)

integration.mine_part = killed_on_the_way
if kind == "documents":
    steps = [read, MineNgrams(out, tokenizer, orders=(2, 3))]
else:
    steps = [MineNgrams(out, tokens=source, orders=(2, 3), vocab_size=97)]
LocalPipelineExecutor(pipeline=steps, tasks=4, workers=1, logging_dir=logs, skip_completed=True).run()
"""


def make_tokenizer(path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: place for place, word in enumerate(["[UNK]", *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def run(folder, kind, source, killed):
    out, logs = folder / "parts", folder / "logs"
    arguments = [kind, source, out, logs, folder / "tokenizer.json", killed]
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    log = folder / "log.txt"
    # The executor's helper process outlives a killed one: output goes into a file, and the whole session ends.
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        code = process.wait(timeout=120)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return code, log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["documents", "tokens"])
def test_four_tasks_one_killed_and_run_again(tmp_path, kind):
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    source.mkdir()
    make_tokenizer(tmp_path / "tokenizer.json")
    if kind == "documents":
        texts = [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(300)]
        for file in range(3):  # one task of the four has none
            lines = [json.dumps({"text": text, "id": str(n)}) for n, text in enumerate(texts) if n % 3 == file]
            (source / f"{file}.jsonl").write_text("\n".join(lines))
        whole = memgraft.Corpus.open(source, tokenizer=tmp_path / "tokenizer.json")
    else:
        from datatrove.pipeline.tokens.tokenizer import TokenizedFile

        for file in range(3):
            writer = TokenizedFile(str(source), f"{file}.ds", save_index=True, upload_block_size=None)
            for _ in range(50):
                tokens = (rng.zipf(1.4, rng.integers(1, 80)) % 97).tolist()
                writer.write(tokens, None)
            writer.close()
        whole = memgraft.Corpus.open(sorted(source.glob("*.ds")))
    code, log = run(tmp_path, kind, source, killed="2")
    assert code == -signal.SIGKILL, log
    assert not (tmp_path / "parts" / "part-00002.mgr").exists()
    assert list((tmp_path / "parts" / "part-00002.mgr.partial").glob("*.block"))
    text = tmp_path / "parts" / ".tokens-00002" / "documents.jsonl"
    assert text.exists() == (kind == "documents")
    kept = (tmp_path / "parts" / "part-00000.mgr").stat().st_mtime_ns
    code, log = run(tmp_path, kind, source, killed="none")
    assert code == 0, log
    assert (tmp_path / "parts" / "part-00000.mgr").stat().st_mtime_ns == kept
    parts = [tmp_path / "parts" / f"part-{rank:05d}.mgr" for rank in range(4)]
    # What the killed task has left is gone: its text, its tokens and its blocks.
    samples = [f"{part.name}.sample" for part in parts]
    assert sorted(os.listdir(tmp_path / "parts")) == sorted([*(part.name for part in parts), *samples])
    vocab_size = None if kind == "documents" else 97
    want = memgraft.mine(whole, (2, 3), 500, vocab_size=vocab_size)
    found = select_parts(parts, (2, 3), 500)
    assert found.fingerprint == want.fingerprint
    if kind == "tokens":
        assert found.metadata == want.metadata
    # A task without documents adds nothing.
    for name in ("num_tokens", "num_documents", "eos_id"):
        assert found.metadata["corpus"][name] == want.metadata["corpus"][name]


def documents(*texts):
    from datatrove.data import Document

    return (Document(text=text, id=str(number)) for number, text in enumerate(texts))


def test_a_second_run_of_a_task_is_refused_and_what_a_killed_one_left_is_removed(tmp_path):
    from memgraft.integrations.datatrove import MineNgrams

    make_tokenizer(tmp_path / "tokenizer.json")
    step = MineNgrams(tmp_path / "parts", tmp_path / "tokenizer.json", orders=(2,))
    first = step.run(documents("the cat sat", "the cat sat on a mat"), rank=3, world_size=4)
    next(first)
    with pytest.raises(StorageError, match=r"tokens-00003: another run of this task is at work there; wait for it"):
        next(step.run(documents("the dog"), rank=3, world_size=4))
    assert len(list(step.run(documents("the dog"), rank=2, world_size=4))) == 1
    assert len(list(first)) == 1
    assert sorted(os.listdir(tmp_path / "parts")) == [
        "part-00002.mgr", "part-00002.mgr.sample", "part-00003.mgr", "part-00003.mgr.sample",
    ]  # fmt: skip
    left = tmp_path / "parts" / ".tokens-00001"
    left.mkdir()
    for name in ("lock", "documents.jsonl", "tokens.bin"):
        (left / name).write_text("left by a killed run")
    taken = step.run(documents("the cat sat on the cat"), rank=1, world_size=4)
    next(taken)
    assert sorted(os.listdir(left)) == ["documents.jsonl", "lock"]
    assert list(taken) == []
    assert not left.exists()
    # Of its own text, not of what was left or of a refused run.
    assert RunSet.open(tmp_path / "parts" / "part-00001.mgr").facts["shards"][0]["num_tokens"] == 6
    assert RunSet.open(tmp_path / "parts" / "part-00003.mgr").facts["shards"][0]["num_tokens"] == 9
    # A run that its pipeline ends early leaves nothing either.
    ended = step.run(documents("the cat", "sat"), rank=0, world_size=4)
    next(ended)
    ended.close()
    assert not (tmp_path / "parts" / ".tokens-00000").exists()
