"""The writer of banks that opens what it has written."""

from collections.abc import Mapping
from typing import Any

from memgraft.bank.bank import Bank
from memgraft.bank.provenance import Origins
from memgraft.bank.rows import RowWriter
from memgraft.index import NgramIndex


class BankWriter(RowWriter):
    """Writes the values of a key set, resumably, and opens the bank; arguments and errors as for `RowWriter`."""

    def finish(
        self,
        *,
        index: NgramIndex | None = None,
        dropped: Mapping[str, int] | None = None,
        corpus: Mapping[str, Any] | None = None,
        donor: Mapping[str, Any] | None = None,
        origins: Origins | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Bank:
        """Seals the bank and opens it; arguments and errors as for `RowWriter.seal`."""
        path = self.seal(index=index, dropped=dropped, corpus=corpus, donor=donor, origins=origins, files=files)
        return Bank.open(path)
