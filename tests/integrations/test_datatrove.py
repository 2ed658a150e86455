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
from memgraft.mining import select_parts

pytest.importorskip("datatrove")
pytestmark = pytest.mark.slow

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "lay", "while"]

RUN = """
import json, os, pathlib, signal, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.data import Document
from memgraft.integrations.datatrove import MineNgrams

kind, source, out, logs, tokenizer, killed = sys.argv[1:]

def read(data, rank, world_size):
    for file in sorted(pathlib.Path(source).glob("*.jsonl"))[rank::world_size]:
        for line in file.read_text().splitlines():
            yield Document(**json.loads(line))

class Killed(MineNgrams):
    def _mine(self, corpus, rank, world_size, *, apart):
        if str(rank) == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._mine(corpus, rank, world_size, apart=apart)

if kind == "documents":
    steps = [read, Killed(out, tokenizer, orders=(2, 3))]
else:
    steps = [Killed(out, tokens=source, orders=(2, 3), vocab_size=97)]
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
    kept = (tmp_path / "parts" / "part-00000.mgr").stat().st_mtime_ns
    code, log = run(tmp_path, kind, source, killed="none")
    assert code == 0, log
    assert (tmp_path / "parts" / "part-00000.mgr").stat().st_mtime_ns == kept
    parts = sorted((tmp_path / "parts").glob("*.mgr"))
    assert len(parts) == 4
    vocab_size = None if kind == "documents" else 97
    want = memgraft.mine(whole, (2, 3), 500, vocab_size=vocab_size)
    found = select_parts(parts, (2, 3), 500)
    assert found.fingerprint == want.fingerprint
    if kind == "tokens":
        assert found.metadata == want.metadata
    # A task without documents adds nothing.
    for name in ("num_tokens", "num_documents", "eos_id"):
        assert found.metadata["corpus"][name] == want.metadata["corpus"][name]
