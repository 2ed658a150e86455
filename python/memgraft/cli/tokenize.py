"""``memgraft tokenize``: text to token corpus."""

from pathlib import Path
from typing import Annotated

import typer

from memgraft.cli import artifacts, common


@common.verb
def run(
    text: Annotated[
        Path,
        typer.Argument(
            help="Folder of .txt, .md (a document each), .jsonl (one a line), also .gz, .zst; Parquet by --column."
        ),
    ],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="tokenizer.json to use.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Prefix of the corpus: <out>.bin, .idx, .json.")],
    eos: Annotated[
        str | None, typer.Option(help="Token (text or id) appended to every document; default: none.")
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Text between the documents of .txt and .md files; \\n for a line end.")
    ] = None,
    field: Annotated[str, typer.Option(help="Entry of each line of .jsonl that holds its text.")] = "text",
    column: Annotated[
        str | None, typer.Option(help="Column of Parquet files that holds text; default: they are left out.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Declared vocabulary; default: the tokenizer's.")] = None,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteOption = False,
    json: common.JsonOption = False,
) -> None:
    """Tokenise text into a Megatron .bin/.idx pair, documents kept apart."""
    from memgraft import Corpus, tokenize_folder
    from memgraft.corpus.documents import Cutting, left_out

    artifacts.check_output(out.with_name(out.name + ".bin"), overwrite=overwrite)
    delimiter = int(eos) if eos is not None and eos.isdecimal() else eos
    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    cutting = Cutting(field=field, column=column, separator=separator)
    with common.progress("bytes") as report:
        written = tokenize_folder(
            text, tokenizer, out, eos=delimiter, vocab_size=vocab_size, cutting=cutting, progress=report
        )
    unread = [str(file.relative_to(text)) for file in left_out(text, cutting.suffixes)]
    if column is None and any(name.endswith(".parquet") for name in unread):
        common.log("note: Parquet files were left out; --column names the column that holds text")
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
            "num_left_out": len(unread),
            "left_out": unread if json else unread[:8],
        },
        json=json,
        title=f"Tokenised {written}",
    )
