"""One source for several tasks: each takes rows of its share of the users, so that a user's rows keep their order."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from halo_provider.exceptions import HaloConfigurationError, RowError
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import Submission

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Shard:
    """The share `index` of `count`. Counting may start at 0 or at 1: the shares ``n/n`` and ``0/n`` are the same."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"i/n"``. Raises HaloConfigurationError."""
        match = _SHARD.fullmatch(text.strip())
        index, count = (int(part) for part in match.groups()) if match else (0, 0)
        if not 0 <= index <= count or count == 0:
            raise HaloConfigurationError(f"shard must be 'i/n', such as '3/8', not {text!r}")
        return cls(index % count, count)

    def takes(self, name: str) -> bool:
        """Whether this share is the one that has the name, on every machine and in every process."""
        digest = blake2b(name.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index


class ShardedSource:
    """The rows of a source whose users are in one share.

    The share is computed from the row's user; from its key where there is no user; from its place where the row has
    neither, because something is wrong with it. Each row is in exactly one share.
    """

    def __init__(self, source: Source, *, shard: Shard, submission: Submission) -> None:
        self._source = source
        self._shard = shard
        self._submission = submission

    @property
    def description(self) -> str:
        """The source's."""
        return self._source.description

    @property
    def share_read(self) -> float | None:
        """The source's: the whole source is read for every share."""
        return self._source.share_read

    @property
    def whole(self) -> Source:
        """The source."""
        return self._source

    def columns(self) -> list[str]:
        """The source's."""
        return self._source.columns()

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the share's rows. Raises SourceError as the source does."""
        return (row for row in self._source.rows(required=required) if self._shard.takes(self._name(row)))

    def _name(self, row: Row) -> str:
        if row.error is None:
            for name in (self._submission.user_id, self._submission.row_key):
                try:
                    if found := name(row.values):
                        return found
                except RowError:
                    continue
        return row.place
