"""A file that is no tokenizer is refused in the same words wherever a tokenizer is named."""

import itertools
import json
import re

import pytest
from families import FAMILIES
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from memgraft import KeySet, tokenize_folder
from memgraft.cli.app import build_app
from memgraft.corpus.text import load_tokenizer
from memgraft.errors import CorpusError, FormatError, MemgraftError
from memgraft.keyed import decoder
from memgraft.quickstart.sample import sample
from memgraft.tokenizer import open_tokenizer

WAYS = {
    "open_tokenizer": (open_tokenizer, FormatError),
    "load_tokenizer": (load_tokenizer, CorpusError),
    "tokenize_folder": (lambda path: tokenize_folder(path.parent, path, path.parent / "corpus"), CorpusError),
    "decoder": (decoder, FormatError),
    "to_pandas": (lambda path: KeySet.from_keys([(1, 2)], vocab_size=9).to_pandas(tokenizer=path), FormatError),
    "sample": (lambda path: sample(None, None, path, "a", new_tokens=1), FormatError),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_no_tokenizer(way, tmp_path):
    (tmp_path / "text.txt").write_text("some text", encoding="utf-8")
    path = tmp_path / "tokenizer.json"
    path.write_text("{}", encoding="utf-8")
    call, error = WAYS[way]
    with pytest.raises(error, match=r"tokenizer\.json: expected a tokenizer\.json of the tokenizers library, found"):
        call(path)
    path.unlink()
    with pytest.raises(MemgraftError, match=r"tokenizer\.json: expected a tokenizer\.json, found no such file"):
        call(path)
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_tokenizers_in_other_forms_are_named_with_the_way_out(tmp_path):
    here, sentencepiece = re.escape(str(tmp_path)), b"\n\x0e\n\x05<unk>"
    forms = {
        "vocab.gguf": (b"GGUF\x03\x00\x00\x00\xff", f"a GGUF file.*'{here}', gguf_file='vocab.gguf'"),
        "spiece.model": (sentencepiece, f"a SentencePiece model.*: after pip install .*\\('{here}'\\)\\.save"),
        "tokenizer.model.v3": (sentencepiece, r"a SentencePiece model.*as tokenizer\.model, .*\('folder'\)"),
        "tekken.json": (b'{"config": {}}', f"a tekken file.*: after pip install mistral-common, .*\\('{here}'\\)"),
        "tekken_240911.json": (b'{"config": {}}', r"a tekken file.*as tekken\.json, .*mistral-common, .*\('folder'\)"),
        "tokenizer.model": (b"IQ== 0\nIg== 1\n", "a tiktoken file.*TikTokenConverter\\('.*tokenizer.model', pattern="),
    }
    for name, (content, message) in forms.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=f"found {message}"):
            open_tokenizer(tmp_path / name)
    with pytest.raises(MemgraftError, match=r"found spiece\.model and tekken\.json and .* name one of them"):
        open_tokenizer(tmp_path)
    for name in forms:
        (tmp_path / name).unlink()
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece)
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    found = f"found tokenizer.model and vocab.json in place of it.*after pip install .*from_pretrained\\('{here}'\\)"
    with pytest.raises(MemgraftError, match=found):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_shown_as_they_stand_inside_a_document(family, tmp_path):
    made = FAMILIES[family]()
    made.save(str(tmp_path / "tokenizer.json"))
    codec = open_tokenizer(made)
    ids = [token for token in range(3, codec.vocab_size) if codec.known[token]]
    keys = KeySet.from_keys(list(itertools.pairwise(ids)), vocab_size=codec.vocab_size)
    expected = codec.decode_inside([list(key) for key in keys])
    for tokenizer in (tmp_path, made, PreTrainedTokenizerFast(tokenizer_object=made)):
        assert decoder(tokenizer)(list(keys)) == expected
        assert keys.to_pandas(tokenizer=tokenizer).text.tolist() == expected
    assert decoder(made, inside=False)(list(keys)) == codec.decode([list(key) for key in keys])
    keys.save(tmp_path / "keys.mgk")
    shown = CliRunner().invoke(build_app(), ["inspect", str(tmp_path / "keys.mgk"), "--rows", "2", "--json"])
    assert [row["text"] for row in json.loads(shown.stdout)["top_keys"]] == expected[:2]
