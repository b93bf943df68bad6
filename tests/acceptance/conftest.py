"""What acceptance tests share: where the Airflows that they start have their metadata."""

import os
from collections.abc import Iterator

import pytest

from tests.core.databases import own_database


@pytest.fixture(scope="module")
def metadata_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """A new PostgreSQL database, dropped at the end; None is SQLite: without a PostgreSQL, and by choice.

    HALO_TEST_AIRFLOW_METADATA=sqlite chooses it. Airflow has no other database for people who only try it.
    """
    try:
        chosen = os.environ.get("HALO_TEST_AIRFLOW_METADATA", "postgres")
        server = request.getfixturevalue("postgres_url") if chosen == "postgres" else None
    except pytest.skip.Exception:
        server = None
    if server is None:
        yield None
        return
    with own_database(server, force=True) as database:
        yield database.render_as_string(hide_password=False)
