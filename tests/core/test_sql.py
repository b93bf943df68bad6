"""SqlSource against real databases: what a query's values are worth, how parameters are bound, and what goes wrong."""

import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url

from halo_provider.exceptions import HaloConfigurationError, RowError, SourceError
from halo_provider.ledger.database import new_engine
from halo_provider.sources.sql import SESSION_IN_UTC, SqlSource
from halo_provider.submission import Entry, Submission, User
from tests.core.databases import mariadb_place, postgres_place

MEMORY_BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_sql_memory.py"
DAY = datetime(2026, 11, 2, tzinfo=UTC)
MOMENTS_AROUND_IT = """
    INSERT INTO moments VALUES
    ('2026-11-01 23:59:59.999999'), ('2026-11-02 00:00:00'), ('2026-11-02 23:59:59.999999'), ('2026-11-03 00:00:00')
"""
MOMENTS_WITHIN_IT = ["2026-11-02 00:00:00", "2026-11-02 23:59:59.999999"]

Query = Callable[..., SqlSource]


PLACES = {"postgres": postgres_place, "mariadb": mariadb_place}


@pytest.fixture(params=["sqlite", *PLACES])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place on each of the databases; a test that is about some of them says so itself."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/source.db"
        return
    with PLACES[request.param](request.getfixturevalue(f"{request.param}_url")) as place:
        yield place


@pytest.fixture
def query(url: str) -> Iterator[Query]:
    """Make a source of a query on the database, closed at the end of the test."""
    with ExitStack() as stack:

        def source(statement: str, parameters: dict[str, Any] | None = None, **engine_options: Any) -> SqlSource:
            engine = create_engine(url, **engine_options, future=True)
            found = SqlSource(engine=engine, statement=statement, parameters=parameters, description="the query")
            stack.callback(found.close)
            return found

        yield source


def execute(url: str, *statements: str) -> None:
    """Run the statements in UTC and commit."""
    engine = create_engine(url, future=True)
    with engine.begin() as db:
        for statement in filter(None, [SESSION_IN_UTC.get(engine.dialect.name), *statements]):
            db.exec_driver_sql(statement)
    engine.dispose()


def values(source: SqlSource) -> list[dict[str, Any]]:
    """The rows' values."""
    return [dict(row.values) for row in source.rows(required=[])]


def column(source: SqlSource) -> list[Any]:
    """The values of the only column."""
    return [value for row in values(source) for value in row.values()]


def rendered(source: SqlSource, *, type: str | None = None) -> list[Any]:  # noqa: A002 -- the entry's own word
    """What Halo would get of the column `value`, in JSON."""
    submission = Submission(
        name="note", key="id", message="Note", context={"note": Entry(label="Note", type=type, column="value")}
    )
    return [
        submission.render({"id": "1", **row}, row_key="1").request.model_dump(mode="json")["context"]["note"]["value"]
        for row in values(source)
    ]


only_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)
with_exact_decimals = pytest.mark.parametrize("url", ["postgres", "mariadb"], indirect=True)


def test_integers_beside_missing_ones_stay_integers(query: Query) -> None:
    """A NULL in a column of integers makes no floating point numbers of its neighbours."""
    found = column(query("SELECT 7 AS value UNION ALL SELECT NULL UNION ALL SELECT 9"))
    assert sorted(found, key=str) == [7, 9, None]
    assert {type(value) for value in found} == {int, type(None)}


def test_integers_beyond_what_a_float_holds_survive(query: Query) -> None:
    """2**53 + 1 is the first integer that a floating point number cannot hold."""
    assert rendered(query("SELECT 9007199254740993 AS value")) == [9007199254740993]


@pytest.mark.parametrize("expression", ["123", "CAST(123 AS DECIMAL(10, 0))", "CAST(123 AS DECIMAL(10, 2))", "123e0"])
def test_keys_never_gain_a_fraction(query: Query, expression: str) -> None:
    """Row key, user and company are the same text whatever type of number the database keeps them in."""
    submission = Submission(name="note", key="id", user=User(id="id"), message="Note")
    (row,) = values(query(f"SELECT {expression} AS id UNION ALL SELECT NULL"))[:1]
    assert (submission.row_key(row), submission.user_id(row)) == ("123", "123")


@with_exact_decimals
def test_decimals_keep_every_digit(query: Query) -> None:
    """A Decimal stays one, and becomes a JSON number only where that is exact."""
    statement = "SELECT CAST({} AS DECIMAL(30, 8)) AS value"
    assert column(query(statement.format("1234567.89"))) == [Decimal("1234567.89000000")]
    assert rendered(query(statement.format("1234567.89"))) == [1234567.89]
    assert rendered(query(statement.format("12345678901234567890.12345678"))) == ["12345678901234567890.12345678"]


@with_exact_decimals
def test_dates_are_sent_as_iso_8601(query: Query) -> None:
    """A date stays a date, without a time."""
    assert column(query("SELECT CAST('2026-11-02' AS DATE) AS value")) == [date(2026, 11, 2)]
    assert rendered(query("SELECT CAST('2026-11-02' AS DATE) AS value")) == ["2026-11-02"]


@pytest.mark.parametrize(("url", "type_"), [("postgres", "TIMESTAMP"), ("mariadb", "DATETIME(6)")], indirect=["url"])
def test_moments_without_a_zone_are_given_none(query: Query, type_: str) -> None:
    """What the database does not say is not made up."""
    statement = f"SELECT CAST('2026-11-02 09:15:30.5' AS {type_}) AS value"
    assert rendered(query(statement)) == ["2026-11-02T09:15:30.500000"]


@only_postgres
def test_moments_with_a_zone_keep_their_worth(query: Query) -> None:
    """The moment is sent in UTC, whatever zone it was written in."""
    statement = "SELECT CAST('2026-11-02 09:15:30+02' AS TIMESTAMPTZ) AS value"
    assert rendered(query(statement)) == ["2026-11-02T07:15:30+00:00"]


@only_sqlite
def test_dates_of_a_database_without_dates_are_sent_as_they_are(query: Query) -> None:
    """SQLite keeps moments as text."""
    assert rendered(query("SELECT datetime('2026-11-02 09:15:30') AS value")) == ["2026-11-02 09:15:30"]


@only_postgres
def test_uuids_are_sent_as_text(query: Query) -> None:
    """In the usual form, as a value and as a key."""
    statement = "SELECT CAST('6B29FC40-CA47-1067-B31D-00DD010662DA' AS UUID) AS value"
    (row,) = values(query(statement))
    assert rendered(query(statement)) == ["6b29fc40-ca47-1067-b31d-00dd010662da"]
    assert Submission(name="n", key="value", message="m").row_key(row) == "6b29fc40-ca47-1067-b31d-00dd010662da"


@pytest.mark.parametrize(
    ("url", "expression"),
    [
        ("sqlite", """json_array(json_object('name', 'Seat', 'quantity', 3))"""),
        ("postgres", """CAST('[{"name": "Seat", "quantity": 3}]' AS JSON)"""),
        ("postgres", """CAST('[{"name": "Seat", "quantity": 3}]' AS JSONB)"""),
        ("mariadb", """json_array(json_object('name', 'Seat', 'quantity', 3))"""),
    ],
    indirect=["url"],
)
def test_json_columns_become_entries_of_lists(query: Query, expression: str) -> None:
    """Whether the driver parses JSON or leaves it as text, the entry holds the list."""
    assert rendered(query(f"SELECT {expression} AS value"), type="list") == [[{"name": "Seat", "quantity": 3}]]


@only_postgres
def test_arrays_are_sent_as_lists(query: Query) -> None:
    """A missing item stays one."""
    assert rendered(query("SELECT ARRAY['SSO', NULL, 'API'] AS value")) == [["SSO", None, "API"]]


@pytest.mark.parametrize(
    ("url", "expression"),
    [("sqlite", "x'FFD8'"), ("postgres", "decode('FFD8', 'hex')"), ("mariadb", "x'FFD8'")],
    indirect=["url"],
)
def test_binary_values_reject_their_row_with_a_reason(query: Query, expression: str) -> None:
    """They are read, since the submission may not need them; where it does, the row's error names the column."""
    source = query(f"SELECT {expression} AS value")
    assert column(source) == [b"\xff\xd8"]
    with pytest.raises(RowError, match="column 'value': binary values cannot be sent; select a text form"):
        rendered(source)


TEXTS = ['it\'s "quoted"', "100%, %s and %(start)s", "10:30, :start and ::text", "back\\slash", "a\nb", "Zoë 🎫", ""]


@pytest.mark.parametrize("value", TEXTS)
def test_text_arrives_as_it_is(query: Query, url: str, value: str) -> None:
    """Nothing in a value or in a parameter is taken for a quote, a placeholder or an escape."""
    engine = create_engine(url, future=True)
    with engine.begin() as db:
        db.execute(text("CREATE TABLE texts (value VARCHAR(100))"))
        db.execute(text("INSERT INTO texts VALUES (:value)"), {"value": value})
    engine.dispose()
    assert column(query("SELECT value FROM texts WHERE value = :wanted", {"wanted": value})) == [value]


def test_parameters_are_bound_by_name(query: Query) -> None:
    """In any order, and as often as the query names them."""
    statement = "SELECT 1 AS value WHERE 'b' = :second AND 'a' = :first AND :first <> :second"
    assert column(query(statement, {"first": "a", "second": "b"})) == [1]


def test_percent_signs_and_escaped_colons_belong_to_the_query(query: Query) -> None:
    """Neither is a parameter, whatever the driver's own placeholders look like."""
    statement = "SELECT '100%' AS share, 'at 9\\:30' AS at WHERE 'a:b' LIKE '%\\:%'"
    assert values(query(statement)) == [{"share": "100%", "at": "at 9:30"}]


@only_postgres
def test_casts_with_colons_need_no_escape(query: Query) -> None:
    """PostgreSQL's `::type` is no parameter."""
    assert column(query("SELECT '7'::integer AS value WHERE CAST(:wanted AS integer) = 1", {"wanted": "1"})) == [7]


@pytest.mark.parametrize(
    ("url", "type_"),
    [("sqlite", "TEXT"), ("postgres", "TIMESTAMP"), ("postgres", "TIMESTAMPTZ"), ("mariadb", "DATETIME(6)")],
    indirect=["url"],
)
@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30))])
def test_window_selects_its_rows_to_the_microsecond(query: Query, url: str, type_: str, zone: timezone) -> None:
    """The first moment belongs to it, the last does not, whatever zone its ends are written in."""
    execute(url, f"CREATE TABLE moments (at {type_})", MOMENTS_AROUND_IT)
    window = {"start": DAY.astimezone(zone), "end": (DAY + timedelta(days=1)).astimezone(zone)}
    found = column(query("SELECT at FROM moments WHERE at >= :start AND at < :end ORDER BY at", window))
    assert [str(moment).removesuffix("+00:00") for moment in found] == MOMENTS_WITHIN_IT


@pytest.mark.parametrize(
    ("url", "zone", "type_"),
    [
        ("postgres", "Asia/Tokyo", "TIMESTAMP"),
        ("postgres", "America/New_York", "TIMESTAMP"),
        ("mariadb", "+09:00", "TIMESTAMP(6) NOT NULL"),
        ("mariadb", "-05:00", "TIMESTAMP(6) NOT NULL"),
    ],
    indirect=["url"],
)
def test_window_does_not_depend_on_the_servers_time_zone(
    query: Query, url: str, zone: str, type_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where database and session have to agree about a zone, it is UTC."""
    execute(url, f"CREATE TABLE moments (at {type_})", MOMENTS_AROUND_IT)
    monkeypatch.setenv("PGTZ", zone)
    session = {"init_command": f"SET time_zone = '{zone}'"} if url.startswith("mysql") else {}
    statement = "SELECT at FROM moments WHERE at >= :start AND at < :end ORDER BY at"
    found = column(query(statement, {"start": DAY, "end": DAY + timedelta(days=1)}, connect_args=session))
    assert [str(moment) for moment in found] == MOMENTS_WITHIN_IT


def test_missing_parameters_are_named(query: Query) -> None:
    """Before anything is asked."""
    with pytest.raises(HaloConfigurationError, match="needs sql_parameters for :end, :start"):
        query("SELECT 1 WHERE 1 >= :start AND 1 < :end", {})


def test_parameters_that_the_query_does_not_have_are_named(query: Query) -> None:
    """A misspelt name is no reason to select everything."""
    with pytest.raises(HaloConfigurationError, match="has 'strat', but the query has no :strat"):
        query("SELECT 1", {"strat": 1})


@only_postgres
def test_cast_of_a_parameter_says_how_it_is_written(query: Query) -> None:
    """`:start::date` is not seen as a parameter, and the error tells the way out."""
    with pytest.raises(HaloConfigurationError, match=re.escape("written CAST(:start AS …), not with ::")):
        query("SELECT 1 WHERE now() > :start::date", {"start": "2026-11-02"})


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite", "no such column: nothing_of_the_kind"),
        ("postgres", 'column "nothing_of_the_kind" does not exist'),
        ("mariadb", "Unknown column 'nothing_of_the_kind'"),
    ],
    indirect=["url"],
)
def test_failing_query_is_told_in_the_databases_own_words(query: Query, words: str) -> None:
    """And without the values that its parameters had."""
    statement = "SELECT nothing_of_the_kind FROM (SELECT 1 AS one) AS ones WHERE :value = 'x'"
    with pytest.raises(SourceError, match=re.escape(words)) as caught:
        query(statement, {"value": "somebody@example.com"}).columns()
    assert str(caught.value).startswith("the query: the query failed: ")
    assert "somebody@example.com" not in str(caught.value)


def test_password_is_never_part_of_an_error(postgres_url: str) -> None:
    """Not even where the database itself repeats it."""
    url = make_url(postgres_url).set(password="pw_example_1234")
    statement = "SELECT CAST('pw_example_1234' AS integer)"
    source = SqlSource(
        engine=create_engine(url, future=True), statement=statement, parameters=None, description="the query"
    )
    with closing(source), pytest.raises(SourceError, match=r'integer: "\*\*\*"') as caught:
        source.columns()
    assert "pw_example_1234" not in str(caught.value)


@pytest.mark.parametrize("dialect", ["postgresql+psycopg2", "mysql+pymysql"])
def test_unreachable_database_is_a_clear_error(dialect: str) -> None:
    """It says where nobody answers, and not with which password."""
    engine = create_engine(f"{dialect}://somebody:pw_example_1234@127.0.0.1:1/test", future=True)
    source = SqlSource(engine=engine, statement="SELECT 1", parameters=None, description="the query")
    with closing(source), pytest.raises(SourceError, match=r"the query failed: .*127\.0\.0\.1") as caught:
        source.columns()
    assert "pw_example_1234" not in str(caught.value)


@only_postgres
def test_value_that_python_has_no_room_for_is_a_clear_error(query: Query) -> None:
    """The driver's own words, as for any other failure."""
    with pytest.raises(SourceError, match="the query failed: year -44 is out of range"):
        query("SELECT CAST('0044-03-15 BC' AS DATE) AS value").columns()


class Driver(Exception):  # noqa: N818 -- as drivers name theirs
    """What a driver raises that is no error of SQLAlchemy's."""


@only_sqlite
def test_error_of_a_drivers_own_is_an_error_of_the_source(url: str) -> None:
    """With its words, as those of the database; a reading that is tried again finds each row once."""
    engine = create_engine(url, future=True)
    fails = [True]

    def text_of(raw: bytes) -> str:
        if raw == b"2000" and fails.pop():
            raise Driver("the driver has lost its way")
        return raw.decode()

    event.listen(engine, "connect", lambda db, _record: setattr(db, "text_factory", text_of))
    rows = (
        "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 2500) SELECT '' || id AS id FROM n"
    )
    with closing(SqlSource(engine=engine, statement=rows, parameters=None, description="the query")) as source:
        with pytest.raises(SourceError, match=r"^the query: the query failed: the driver has lost its way$"):
            source.columns()
        fails.append(False)

        assert column(source) == [str(number) for number in range(1, 2501)]
        assert source.share_read == 1.0


@only_sqlite
def test_full_disk_is_an_error_of_the_source(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file may need more than there is."""

    class Full(io.BytesIO):
        def write(self, _some: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)

    with pytest.raises(SourceError, match=r"^the query: the query failed: .*No space left on device"):
        query("SELECT 1 AS id").columns()


@only_sqlite
def test_temporary_file_that_cannot_be_read_is_an_error_of_the_source(query: Query) -> None:
    """After the rows that came before; the cause is kept."""
    rows = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 2500) SELECT id FROM n"
    source = query(rows)
    found = source.rows(required=["id"])
    next(found)
    source._spool.truncate(5_000)

    with pytest.raises(SourceError, match=r"^the query: the temporary file with its rows cannot be read") as caught:
        list(found)
    assert caught.value.__cause__ is not None


def test_query_may_find_nothing(query: Query) -> None:
    """Its columns are known all the same."""
    source = query("SELECT 1 AS id, 'x' AS value WHERE 1 = 2")
    assert source.columns() == ["id", "value"]
    assert values(source) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [("sqlite", "is it a SELECT?"), ("postgres", "syntax error"), ("mariadb", "is it a SELECT?")],
    indirect=["url"],
)
def test_statement_that_selects_nothing_is_refused_and_undone(query: Query, url: str, words: str) -> None:
    """A DELETE in place of a SELECT deletes nothing."""
    execute(url, "CREATE TABLE events (id INTEGER)", "INSERT INTO events VALUES (1)")
    with pytest.raises(SourceError, match=re.escape(words)):
        query("DELETE FROM events").columns()
    assert column(query("SELECT id FROM events")) == [1]


def test_columns_of_the_same_name_are_refused(query: Query) -> None:
    """Which of them a submission means nobody could say."""
    with pytest.raises(SourceError, match="selects 'id' twice; give each an alias"):
        query("SELECT 1 AS id, 'x' AS value, 2 AS id").columns()


def test_missing_columns_are_named_before_the_first_row(query: Query) -> None:
    """With those that there are, since most often a name is misspelt."""
    with pytest.raises(SourceError, match=r"needs 'user', 'plan', which the query does not select.*'id', 'usr'"):
        query("SELECT 1 AS id, 'x' AS usr").rows(required=["id", "user", "plan"])


def test_second_reading_sees_the_same_rows(query: Query, url: str) -> None:
    """What a dry run counted is what is sent, although the table goes on changing."""
    execute(url, "CREATE TABLE events (id INTEGER)", "INSERT INTO events VALUES (1), (2)")
    source = query("SELECT id FROM events ORDER BY id")
    first = column(source)
    execute(url, "INSERT INTO events VALUES (3)", "DELETE FROM events WHERE id = 1")
    assert (first, column(source)) == ([1, 2], [1, 2])


def test_rows_are_numbered_from_one(query: Query) -> None:
    """An error names the row as people count."""
    source = query("SELECT 'a' AS id UNION ALL SELECT 'b'")
    assert [row.number for row in source.rows(required=["id"])] == [1, 2]


@only_sqlite
def test_share_that_was_read_is_counted_in_rows(query: Query) -> None:
    """Known once the query has ended, and the same in a second reading."""
    source = query("SELECT 'a' AS id UNION ALL SELECT 'b'")
    assert source.share_read == 0.0

    for _ in range(2):
        assert [source.share_read for _ in source.rows(required=["id"])] == [0.5, 1.0]
    source.rows(required=["id"])
    assert source.share_read == 0.0


@only_sqlite
def test_query_without_rows_is_read_as_a_whole(query: Query) -> None:
    """There is nothing left to read."""
    source = query("SELECT 1 AS id WHERE 1 = 0")
    assert list(source.rows(required=["id"])) == []
    assert source.share_read == 1.0


def test_no_connection_is_held_while_rows_are_sent(url: str) -> None:
    """The query is over before the first row is handed out, so that no timeout of the server's can cut it off."""
    engine = new_engine(make_url(url))
    source = SqlSource(engine=engine, statement="SELECT 1 AS id", parameters=None, description="the query")
    with closing(source):
        rows = source.rows(required=["id"])
        assert next(rows).values == {"id": 1}
        assert engine.pool.checkedout() == 0


@pytest.mark.parametrize("url", ["postgres", "mariadb"], indirect=True)
def test_memory_does_not_grow_with_the_number_of_rows(url: str) -> None:
    """200,000 rows of 500 bytes, 100 MB of them, pass through a process that grows by less than 10 MB."""
    measured = subprocess.run(
        [sys.executable, str(MEMORY_BENCHMARK), url, "200000"], check=True, stdout=subprocess.PIPE, text=True
    )
    assert int(measured.stdout) < 10_000
