"""Pack what a job of run.py reads, in pieces that a bare GPU machine can be given one by one.

    python docs/study/gpu/pack.py main quickstart            # -> .gpu/main/*.part
    python docs/study/gpu/pack.py large docs/study/large/material

The second argument is the folder with the bank, the tokens and the tokenizer. Pieces are an xz-compressed tar in order.
"""

import argparse
import lzma
import sys
import tarfile
from pathlib import Path

PIECE = 60 << 20
FILES = {
    "main": ("bank", "tokens", "tokenizer.json"),
    "large": (
        "bank", "training.bin", "training.idx", "training.json", "held-out.bin", "held-out.idx", "held-out.json",
        "tokenizer.json",
    ),
    "prefix": ("bank-none", "bank-auto", "keys.mgk", "tokens", "tokenizer.json"),
}  # fmt: skip
"""What each job reads of its folder; nothing else is packed."""


class Pieces:
    """A file object that writes ``PIECE`` bytes to each of a row of files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.left = folder, 0, 0
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.part"):
            old.unlink()

    def write(self, data: bytes) -> int:
        """Append."""
        written = len(data)
        while data:
            if self.left == 0:
                self.count, self.left = self.count + 1, PIECE
            with (self.folder / f"{self.count:02d}.part").open("ab") as file:
                file.write(data[: self.left])
            data, self.left = data[self.left :], max(0, self.left - len(data))
        return written


def pack(job: str, material: Path, out: Path) -> int:
    """Write the pieces; the number of them."""
    if missing := [name for name in FILES[job] if not (material / name).exists()]:
        sys.exit(f"{material}: expected {', '.join(missing)}, found none")
    pieces = Pieces(out)
    with lzma.open(pieces, "wb", preset=3) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:  # type: ignore[arg-type,call-overload]
        for name in FILES[job]:
            tar.add(material / name, arcname=name)
    return pieces.count


def main() -> None:
    """Read the arguments, pack, say how much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=tuple(FILES))
    parser.add_argument("material", type=Path)
    parser.add_argument("--out", type=Path, default=Path(".gpu"))
    options = parser.parse_args()
    count = pack(options.job, options.material, options.out / options.job)
    for number in range(1, count + 1):
        path = options.out / options.job / f"{number:02d}.part"
        sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
