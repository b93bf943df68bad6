"""What a page's address asks for, and the addresses that ask for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlencode

from halo_provider.ledger.admin import RowCursor, RowFilter, UrgencyCursor
from halo_provider.ledger.statuses import LedgerStatus

NOT_MAPPED = -1  # the map index of a task that is not mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class RowQuery:
    """Rows of one DAG; what is empty does not narrow them. The names are those of the address's query."""

    run_id: str = ""
    task_id: str = ""
    map_index: str = ""
    status: LedgerStatus | Literal[""] = ""
    search: str = ""
    namespace: str = ""
    row_key: str = ""

    @property
    def map_index_number(self) -> int | None:
        """The map index as a number. Airflow leaves ``{MAP_INDEX}`` as it stands where a task is not mapped."""
        if not self.map_index:
            return None
        return int(self.map_index) if self.map_index.removeprefix("-").isdecimal() else NOT_MAPPED

    def filter(self, dag_id: str) -> RowFilter:
        """The same for the ledger, within the DAG that the reader's permission was checked for."""
        search = self.search.strip()
        return replace(self.scope(dag_id), statuses=(self.status,) if self.status else (), search=search or None)

    def scope(self, dag_id: str) -> RowFilter:
        """The DAG, run, task instance or row alone, whatever the status."""
        return RowFilter(
            namespace=self.namespace or None,
            row_keys=(self.row_key,) if self.row_key else (),
            dag_ids=(dag_id,),
            run_id=self.run_id or None,
            task_id=self.task_id or None,
            map_index=self.map_index_number,
        )

    def query(self, **changes: Any) -> dict[str, Any]:
        """The parts that are not empty, with changes."""
        return {name: value for name, value in {**asdict(self), **changes}.items() if value not in {"", None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCursor:
    """Where the page before ended."""

    after_status: LedgerStatus | Literal[""] = ""
    after_namespace: str = ""
    after_key: str = ""

    @property
    def cursor(self) -> UrgencyCursor | None:
        """The same for the ledger; none on the first page."""
        if not self.after_status:
            return None
        return UrgencyCursor(self.after_status, RowCursor(self.after_namespace, self.after_key))


def following_page(after: UrgencyCursor) -> dict[str, str]:
    """The query's parts for the page that begins behind this cursor."""
    return {
        "after_status": after.status,
        "after_namespace": after.row.namespace,
        "after_key": after.row.row_key,
    }


def url(root: str, dag_id: str, page: str, query: Mapping[str, Any]) -> str:
    """One of a DAG's pages; `root` is where Airflow mounted them."""
    return f"{root}/dags/{quote(dag_id, safe='')}/{page}?{urlencode(query)}"
