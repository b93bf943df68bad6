"""Sources for tests: CSV files that are in memory, and sources that fail."""

import io
from collections.abc import Iterator, Sequence

from halo_provider.exceptions import SourceError
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row


def csv_source(content: bytes, **options: str) -> CsvSource:
    """A CSV file of these bytes."""
    return CsvSource(path="rows.csv", open_binary=lambda: io.BytesIO(content), options=CsvOptions(**options))


class BrokenSource(ListSource):
    """Rows that can be read, then an error; `closed` tells whether its reader left it closed."""

    description = "a broken file"
    closed = False

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows that can be read, and fail."""
        try:
            yield from super().rows(required=required)
            raise SourceError("the file ends in the middle of a line")
        finally:
            self.closed = True


class UnreadableSource(ListSource):
    """No row can be read, for the reason given."""

    def __init__(self, reason: str) -> None:
        super().__init__([])
        self._reason = reason

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Fail at once."""
        raise SourceError(self._reason)
