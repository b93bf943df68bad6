"""The source that an operator's parameters name: exactly one, its share, and closed at the end."""

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine

from halo_provider.exceptions import HaloConfigurationError, SourceError
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.formats import parse_csv_options
from halo_provider.sources.frames import FrameSource
from halo_provider.sources.lists import ListSource
from halo_provider.sources.open import open_source
from halo_provider.sources.rows import Source
from halo_provider.sources.sql import SqlSource
from tests.core.deliveries import NOTE, notes

FILES = {"rows.csv": b"id;user;text\n1;u;t\n"}


def no_engine(conn_id: str) -> Engine:
    """No database is wanted."""
    raise AssertionError(conn_id)


def opened(**parameters: Any) -> AbstractContextManager[Source]:
    """The source of these parameters; all others have their defaults."""
    defaults: dict[str, Any] = {
        "csv_path": None,
        "csv_options": None,
        "sql": None,
        "sql_conn_id": None,
        "sql_parameters": None,
        "rows": None,
        "submission": NOTE,
        "open_binary": lambda path: io.BytesIO(FILES[path]),
        "files_of": lambda path: [path],
        "engine_of": no_engine,
    }
    return open_source(**(defaults | parameters))


def ids(source: Source) -> list[Any]:
    """The keys of the source's rows."""
    return [row.values["id"] for row in source.rows(required=["id"])]


@pytest.mark.parametrize("path", ["rows.csv", Path("rows.csv")])
def test_path_opens_a_csv_file_with_its_options(path: Any) -> None:
    """By the function that was given, which knows object storage too."""
    with opened(csv_path=path, csv_options={"delimiter": ";"}) as source:
        assert isinstance(source, CsvSource)
        assert (source.description, ids(source)) == ("rows.csv", ["1"])


def test_query_is_run_on_its_connection_and_closed_at_the_end() -> None:
    """The temporary file is gone, and the connections are given back."""
    asked: list[str] = []

    def engine_of(conn_id: str) -> Engine:
        asked.append(conn_id)
        return create_engine("sqlite://", future=True)

    parameters = {"sql": "SELECT :first AS id", "sql_conn_id": "crm", "sql_parameters": {"first": 7}}
    with opened(**parameters, engine_of=engine_of) as source:
        assert isinstance(source, SqlSource)
        assert (source.description, ids(source), asked) == ("the query on 'crm'", [7], ["crm"])
    with pytest.raises(ValueError, match="closed file"):
        ids(source)


@pytest.mark.parametrize(
    ("rows", "kind"), [(notes(2), ListSource), (pd.DataFrame(notes(2)), FrameSource), ([], ListSource)]
)
def test_rows_in_memory_are_a_source(rows: Any, kind: type) -> None:
    """A list or a DataFrame; an empty list is a source too, and not a parameter that is missing."""
    with opened(rows=rows) as source:
        assert type(source) is kind
        assert ids(source) == ["0", "1"][: len(rows)]


def test_share_of_the_rows_is_by_their_users() -> None:
    """Together the shares are the whole; counting may start at 0 or at 1."""
    found: list[str] = []
    for shard in ("1/3", "2/3", "3/3"):
        with opened(rows=notes(30), shard=shard) as source:
            found += ids(source)
    assert sorted(found, key=int) == [note["id"] for note in notes(30)]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "give exactly one of csv_path, file_path, sql and rows, not none"),
        (
            {"csv_path": "rows.csv", "rows": []},
            "give exactly one of csv_path, file_path, sql and rows, not csv_path and rows",
        ),
        (
            {"csv_path": "rows.csv", "sql": "SELECT 1", "rows": []},
            "give exactly one of csv_path, file_path, sql and rows, not csv_path and sql and rows",
        ),
        ({"sql": "SELECT 1"}, "sql needs sql_conn_id, the connection of the database to ask"),
        ({"rows": [], "shard": "9/8"}, "shard must be 'i/n', such as '3/8', not '9/8'"),
    ],
    ids=str,
)
def test_parameters_that_cannot_work_are_refused(parameters: dict[str, Any], words: str) -> None:
    """Before anything is opened, in words that name the parameter."""
    with pytest.raises(HaloConfigurationError) as caught, opened(**parameters):
        pass
    assert str(caught.value) == words


def test_options_that_cannot_work_are_refused() -> None:
    """The error names the parameter and the option."""
    with pytest.raises(HaloConfigurationError, match=r"^csv_options: (?s:.)*separator"):
        parse_csv_options({"separator": ";"})
    assert parse_csv_options(None) == CsvOptions()


def test_rows_that_are_no_rows_are_an_error_of_the_source() -> None:
    """A dict alone is a slip."""
    with pytest.raises(SourceError, match="rows must be a list of dicts or a DataFrame, not a dict"), opened(rows={}):
        pass
