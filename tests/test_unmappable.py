"""A mount without memory maps, as some FUSE file systems are: what can be read is, the rest names the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memgraft import Bank, Corpus, KeySet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"),
]
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    const char *under = getenv("NO_MMAP_UNDER");
    char link[64], path[4096];
    if (fd >= 0 && under) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length_of_path = readlink(link, path, sizeof path - 1);
        if (length_of_path > 0 && strncmp(path, under, strlen(under)) == 0) { errno = ENODEV; return MAP_FAILED; }
    }
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
    return real(at, length, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap(at, length, protection, flags, fd, offset);
}
"""
READS = """
import json, sys
import numpy as np
import memgraft
folder = sys.argv[1]
keys = memgraft.KeySet.open(folder + "/bank/keys.mgk")
index = memgraft.NgramIndex.open(folder + "/bank/index.mgi")
tokens = memgraft.Corpus.open(folder + "/text.bin").tokens()
found = {"keys": len(keys), "rows": index.lookup(tokens)[0].tolist()}
try:
    memgraft.Bank.open(folder + "/bank").floats([0])
except memgraft.errors.StorageError as error:
    found["bank"] = str(error)
print(json.dumps(found))
"""


def test_index_keys_and_corpus_are_read_into_memory_and_values_name_the_way_out(make_bank, tmp_path: Path) -> None:
    from memgraft.corpus import CorpusWriter

    bank: Bank = make_bank(200, path=tmp_path / "bank")
    text = np.random.default_rng(0).integers(0, 50, 500)
    with CorpusWriter(tmp_path / "text", vocab_size=50) as writer:
        writer.add(text)
        writer.finish()
    (tmp_path / "shim.c").write_text(SHIM)
    shim = tmp_path.parent / f"{tmp_path.name}-shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "shim.c"), "-o", str(shim), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim), "NO_MMAP_UNDER": str(tmp_path.resolve())}
    done = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path.resolve())],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["keys"] == len(KeySet.open(tmp_path / "bank" / "keys.mgk"))
    assert found["rows"] == bank.lookup(Corpus.open(tmp_path / "text.bin").tokens())[0].tolist()
    assert "values-00001-of-00001.safetensors: mapping the file" in found["bank"]
    assert "copy the bank to a local disk" in found["bank"]
