"""The one source that parameters name, opened and closed."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy.engine import Engine

from halo_provider.exceptions import HaloConfigurationError, HaloError, NoFileError, SourceError
from halo_provider.sources.formats import (
    OpenBinary,
    Paths,
    csv_source,
    file_source,
    parse_csv_options,
    parse_file_options,
)
from halo_provider.sources.lists import memory_source
from halo_provider.sources.rows import Source
from halo_provider.sources.shards import Shard, ShardedSource
from halo_provider.sources.sql import SqlSource
from halo_provider.sources.stored import words_of
from halo_provider.submission import Submission

SOURCES = ("csv_path", "file_path", "sql", "rows")  # the parameters, of which exactly one is given
MAX_NAMED = 3  # paths of a list that messages name


@contextmanager
def open_source(
    *,
    csv_path: Paths | None,
    csv_options: Mapping[str, str] | None,
    file_path: Paths | None = None,
    file_options: Mapping[str, Any] | None = None,
    sql: str | None,
    sql_conn_id: str | None,
    sql_parameters: Mapping[str, Any] | None,
    rows: Any,
    submission: Submission,
    shard: str | None = None,
    open_binary: OpenBinary,
    files_of: Callable[[str], list[str]],
    engine_of: Callable[[str], Engine],
) -> Iterator[Source]:
    """Give the source that exactly one of `csv_path`, `file_path`, `sql` and `rows` names, and close it at the end.

    With `shard` (``"i/n"``) it yields that share of the rows only, by the users that `submission` finds in them.
    `open_binary` opens a path for reading, `files_of` gives the paths that a pattern names, `engine_of` the engine of a
    connection id.

    Raises HaloConfigurationError where the parameters cannot work, NoFileError where no file has such a name, and
    SourceError where `rows` holds no rows. A source that cannot be read raises SourceError later, when it is read.
    """
    values = zip(SOURCES, (csv_path, file_path, sql, rows), strict=True)
    check_one_source([name for name, value in values if value is not None])
    source: Source
    if csv_path is not None:
        paths = expanded(csv_path, files_of)
        options = parse_csv_options(csv_options)
        source = csv_source(paths, open_binary, options=options, description=named(csv_path))
    elif file_path is not None:
        paths = expanded(file_path, files_of)
        file_format = parse_file_options(file_options)
        source = file_source(paths, open_binary, options=file_format, description=named(file_path))
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
        return
    else:
        source = memory_source(rows)
    yield _share(source, shard=shard, submission=submission)


def check_one_source(names: Collection[str]) -> None:
    """Raise HaloConfigurationError unless exactly one of the parameters that name a source is given."""
    if len(names) != 1:
        raise HaloConfigurationError(
            f"give exactly one of csv_path, file_path, sql and rows, not {' and '.join(names) or 'none'}"
        )


def each_path(paths: Paths) -> list[str]:
    """The paths of the parameter as text, whether it is one or a list."""
    return [str(paths)] if isinstance(paths, str | os.PathLike) else [str(path) for path in paths]


def named(paths: Paths) -> str:
    """What messages call the files."""
    given = each_path(paths)
    return ", ".join(given[:MAX_NAMED]) + (f" and {len(given) - MAX_NAMED} more" if len(given) > MAX_NAMED else "")


def expanded(paths: Paths, files_of: Callable[[str], list[str]]) -> list[str]:
    """The files of all paths and patterns, in the order of their names. Raises NoFileError where one has none."""
    found: set[str] = set()
    for path in each_path(paths):
        try:
            files = files_of(path)
        except HaloError:
            raise
        except Exception as error:  # every storage has errors of its own
            raise SourceError(f"{path}: {words_of(error)}") from error
        if not files:
            raise NoFileError(path)
        found.update(files)
    if not found:
        raise NoFileError("an empty list")
    return sorted(found)


def _share(source: Source, *, shard: str | None, submission: Submission) -> Source:
    return source if shard is None else ShardedSource(source, shard=Shard.parse(shard), submission=submission)
