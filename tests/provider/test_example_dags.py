"""The example DAGs are documentation that runs, so they must import, explain themselves and find good rows."""

import csv
import re
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator

DAGS = Path(__file__).resolve().parents[2] / "dags"
EXAMPLE_ADDRESS = re.compile(r"[\w.+-]+@example\.(com|net|org)")


@pytest.fixture(scope="module")
def dag_bag() -> DagBag:
    """Every DAG of the folder, as Airflow reads it."""
    return DagBag(dag_folder=DAGS)


@pytest.fixture(params=sorted(path.stem for path in DAGS.glob("*.py")))
def dag(request: pytest.FixtureRequest, dag_bag: DagBag) -> DAG:
    """One example DAG, known by the name of its file."""
    assert dag_bag.import_errors == {}
    return dag_bag.dags[request.param]


@pytest.fixture
def tickets(dag: DAG) -> HaloTicketOperator:
    """The task that makes the DAG's tickets."""
    return dag.task_dict["tickets"]


@pytest.fixture
def rows(tickets: HaloTicketOperator) -> list[dict[str, str]]:
    """The rows the DAG would read."""
    with Path(tickets.csv_path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_example_imports_without_error(dag_bag: DagBag) -> None:
    """Airflow finds nothing to complain about, two DAGs of one id included."""
    assert dag_bag.import_errors == {}


def test_example_is_called_as_its_file(dag: DAG) -> None:
    """A file holds one DAG, of the same name."""
    assert Path(dag.fileloc) == DAGS / f"{dag.dag_id}.py"


def test_example_explains_itself(dag: DAG) -> None:
    """The UI shows what the DAG does and why it has the schedule it has."""
    assert "**Schedule" in (dag.doc_md or "")


def test_example_retries_after_a_while(dag: DAG) -> None:
    """Every task tries again, and not at once."""
    assert all(task.retries and task.retry_delay.total_seconds() for task in dag.tasks)


def test_users_are_identified_before_their_tickets(dag: DAG, tickets: HaloTicketOperator) -> None:
    """The identify task of the same rows and the same submission runs first."""
    (identify,) = (dag.task_dict[task_id] for task_id in tickets.upstream_task_ids)
    assert isinstance(identify, HaloIdentifyOperator)
    assert (identify.csv_path, identify.submission) == (tickets.csv_path, tickets.submission)


def test_every_example_row_renders(tickets: HaloTicketOperator, rows: list[dict[str, str]]) -> None:
    """No row of the example files is rejected, and each has a key of its own."""
    submission = tickets.submission
    keys = {submission.row_key(row) for row in rows}
    for row in rows:
        submission.render(row, row_key=submission.row_key(row))
        submission.render_user(row)
        submission.render_company(row)
    assert len(keys) == len(rows) > 0


def test_example_rows_are_about_nobody(rows: list[dict[str, str]]) -> None:
    """Every e-mail address belongs to the domains that are reserved for examples."""
    values = [value for row in rows for value in row.values() if "@" in value]
    assert values
    assert all(EXAMPLE_ADDRESS.fullmatch(value) for value in values)
