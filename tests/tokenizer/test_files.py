"""A file that is no tokenizer is refused in the same words wherever a tokenizer is named."""

import pytest

from memgraft import KeySet, tokenize_folder
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
