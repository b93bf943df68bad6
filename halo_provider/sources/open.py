"""The one source that parameters name, opened and closed."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import IO, Any

from sqlalchemy.engine import Engine

from halo_provider.exceptions import HaloConfigurationError
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.lists import memory_source
from halo_provider.sources.rows import Source
from halo_provider.sources.shards import Shard, ShardedSource
from halo_provider.sources.sql import SqlSource
from halo_provider.submission import Submission


@contextmanager
def open_source(
    *,
    csv_path: str | os.PathLike[str] | None,
    csv_options: Mapping[str, str] | None,
    sql: str | None,
    sql_conn_id: str | None,
    sql_parameters: Mapping[str, Any] | None,
    rows: Any,
    submission: Submission,
    shard: str | None = None,
    open_binary: Callable[[str], IO[bytes]],
    engine_of: Callable[[str], Engine],
) -> Iterator[Source]:
    """Give the source that exactly one of `csv_path`, `sql` and `rows` names, and close it at the end.

    With `shard` (``"i/n"``) it yields that share of the rows only, by the users that `submission` finds in them.
    `open_binary` opens a path for reading, `engine_of` gives the engine of a connection id.

    Raises HaloConfigurationError where the parameters cannot work, SourceError where `rows` holds no rows. A source
    that cannot be read raises SourceError later, when it is read.
    """
    given = [name for name, value in (("csv_path", csv_path), ("sql", sql), ("rows", rows)) if value is not None]
    if len(given) != 1:
        raise HaloConfigurationError(f"give exactly one of csv_path, sql and rows, not {' and '.join(given) or 'none'}")
    source: Source
    if csv_path is not None:
        path = os.fspath(csv_path)
        source = CsvSource(path=path, open_binary=partial(open_binary, path), options=parse_csv_options(csv_options))
        yield _share(source, shard=shard, submission=submission)
    elif sql is not None:
        if sql_conn_id is None:
            raise HaloConfigurationError("sql needs sql_conn_id, the connection of the database to ask")
        source = SqlSource(
            engine=engine_of(sql_conn_id),
            statement=sql,
            parameters=sql_parameters,
            description=f"the query on {sql_conn_id!r}",
        )
        with closing(source):
            yield _share(source, shard=shard, submission=submission)
    else:
        yield _share(memory_source(rows), shard=shard, submission=submission)


def parse_csv_options(csv_options: Mapping[str, str] | None) -> CsvOptions:
    """The options of a CSV file. Raises HaloConfigurationError where one is unknown or cannot work."""
    try:
        return CsvOptions(**(csv_options or {}))
    except ValueError as error:
        raise HaloConfigurationError(f"csv_options: {error}") from None


def _share(source: Source, *, shard: str | None, submission: Submission) -> Source:
    return source if shard is None else ShardedSource(source, shard=Shard.parse(shard), submission=submission)
