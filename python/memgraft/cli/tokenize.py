"""``memgraft tokenize``: text to token corpus."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
def run(
    text: Annotated[Path, typer.Argument(help="Folder of .txt, .md (a document each) and .jsonl (one per line).")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="tokenizer.json to use.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Prefix of the corpus: <out>.bin, .idx, .json.")],
    eos: Annotated[
        str | None, typer.Option(help="Token (text or id) appended to every document; default: none.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Declared vocabulary; default: the tokenizer's.")] = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Tokenise text into a Megatron .bin/.idx pair, documents kept apart."""
    from memgraft import Corpus, tokenize_folder

    artifacts.check_output(out.with_name(out.name + ".bin"), overwrite=overwrite)
    delimiter = int(eos) if eos is not None and eos.isdecimal() else eos
    with common.progress("bytes") as report:
        written = tokenize_folder(text, tokenizer, out, eos=delimiter, vocab_size=vocab_size, progress=report)
    corpus = Corpus.open(written)
    common.emit(
        {
            "corpus": written,
            "num_tokens": corpus.num_tokens,
            "num_documents": corpus.num_documents,
            "vocab_size": corpus.vocab_size,
            "dtype": str(corpus.dtype),
            "eos_id": corpus.eos_id,
            "tokenizer": corpus.tokenizer,
            "fingerprint": corpus.fingerprint,
        },
        json=json,
        title=f"Tokenised {written}",
    )
