"""The SQLite table that the daily DAG reads: the example file's applications, spread over the last days."""

import csv
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from halo_provider.demo.processes import CHECKOUT

HISTORY = 5  # days the source table holds
BACKFILL = 3  # of these days, the first ones, are backfilled


def create_source(path: Path) -> None:
    """Fill the table of applications, unless an earlier demo did: the example file's, spread over the last whole days.

    Ids of rows and users are other ones than the file's, so that these are other applications of other people.
    """
    with (CHECKOUT / "dags" / "data" / "applications.csv").open(encoding="utf-8", newline="") as file:
        applications = list(csv.DictReader(file))
    first_day = datetime.now(UTC).date() - timedelta(days=HISTORY)
    for number, application in enumerate(applications):
        day = first_day + timedelta(days=number * HISTORY // len(applications))
        time_of_day = datetime.fromisoformat(application["submitted_at"]).time()
        application["submission_id"] = application["submission_id"].replace("-2026-0", "-2026-1")
        application["applicant_id"] = application["applicant_id"].replace("usr_1", "usr_4")
        application["submitted_at"] = str(datetime.combine(day, time_of_day))
    columns = ", ".join(applications[0])
    values = ", ".join(f":{name}" for name in applications[0])
    with closing(sqlite3.connect(path, isolation_level=None)) as db, db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(f"CREATE TABLE IF NOT EXISTS applications ({columns})")
        if db.execute("SELECT count(*) FROM applications").fetchone() == (0,):
            db.executemany(f"INSERT INTO applications ({columns}) VALUES ({values})", applications)  # noqa: S608 -- the example file's own header


def first_day(source: Path) -> date:
    """The day of the table's oldest application."""
    with closing(sqlite3.connect(source)) as db:
        (day,) = db.execute("SELECT date(min(submitted_at)) FROM applications").fetchone()
    return date.fromisoformat(day)
