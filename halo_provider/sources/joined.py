"""Several files read as one source."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from halo_provider.sources.rows import Row, Source


class JoinedSource:
    """The rows of several files, one file after the other; each row says its file.

    Before the first row every file is opened once, so that one which cannot be read, or lacks a column, is found before
    anything is sent.
    """

    def __init__(self, sources: Sequence[Source], *, description: str) -> None:
        self.description = description
        self._sources = sources
        self._place = 0
        self._columns: dict[str, None] | None = None

    @property
    def share_read(self) -> float:
        """The share of the files that were read, as if they were all of one size."""
        if self._place >= len(self._sources):
            return 1.0
        return (self._place + (self._sources[self._place].share_read or 0.0)) / len(self._sources)

    def columns(self) -> list[str]:
        """Every column that some file has, in the order of their first appearance."""
        if self._columns is None:
            self._columns = {name: None for source in self._sources for name in source.columns()}
        return list(self._columns)

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows. Raises SourceError, before the first one, where a file cannot be read or lacks a column."""
        self._place = 0
        for source in self._sources:
            with closing(_generator(source, required)) as rows:
                next(rows, None)
        for place, source in enumerate(self._sources):
            self._place = place
            for row in source.rows(required=required):
                yield row._replace(file=source.description)
        self._place = len(self._sources)


def _generator(source: Source, required: Sequence[str]) -> Generator[Row, None, None]:
    yield from source.rows(required=required)
