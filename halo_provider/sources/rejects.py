"""The rejects file: rejected rows as a CSV that can be repaired and read again."""

import csv
import io
from collections.abc import Sequence
from typing import IO, Any

from halo_provider.exceptions import RowError
from halo_provider.sources.csv_file import CsvOptions
from halo_provider.sources.output import Output
from halo_provider.sources.rows import Row, represented
from halo_provider.submission import REJECT_COLUMNS, text


class RejectsFile:
    """The rejected rows, in the source's own columns and format, with ``_row``, ``_field`` and ``_reason``.

    Once it is repaired, it can be read in place of the source. A row's key is a business key, so that rows which were
    delivered already are not sent again. Raises OutputError, and nothing else, where the stream cannot be written; the
    file is then lost, and every later call raises the same error.
    """

    def __init__(self, stream: IO[bytes], *, columns: Sequence[str], options: CsvOptions) -> None:
        self._columns = [name for name in columns if name not in REJECT_COLUMNS]
        self._encoding = options.encoding
        self._text = io.TextIOWrapper(stream, encoding=options.encoding, errors="surrogateescape", newline="")
        # Lines end with CR LF, because the writer quotes a value's own line breaks only where its line ends hold them.
        self._writer = csv.writer(
            self._text, delimiter=options.delimiter, quotechar=options.quotechar, lineterminator="\r\n"
        )
        self._output = Output("the rejects file")
        with self._output:
            self._writer.writerow([*self._columns, *REJECT_COLUMNS])

    def write(self, row: Row, error: RowError) -> None:
        """Add one row with what is wrong with it."""
        reason = f"{error.reason} ({error.detail})" if error.detail else error.reason
        originals = [row.values.get(name) for name in self._columns]
        with self._output:
            self._writer.writerow([self._cell(value) for value in (*originals, row.place, error.column, reason)])

    def _cell(self, value: Any) -> str:
        try:
            cell = value if isinstance(value, str) else text(value)
        except RowError:
            cell = represented(value)
        try:
            cell.encode(self._encoding, errors="surrogateescape")
        except UnicodeEncodeError:
            return cell.encode(self._encoding, errors="backslashreplace").decode(self._encoding)
        return cell

    def close(self) -> None:
        """Write what is buffered to the stream, which stays open."""
        with self._output:
            self._text.detach()
