"""The query of a page's URL as values, and the URLs for such values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlencode

from halo_provider.ledger.admin import RowCursor, RowFilter, UrgencyCursor
from halo_provider.ledger.statuses import LedgerStatus

NOT_MAPPED = -1  # the map index of a task that is not mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class RowQuery:
    """Which rows of one DAG; an empty part means all. The names are those of the URL's query."""

    run_id: str = ""
    task_id: str = ""
    map_index: str = ""
    status: LedgerStatus | Literal[""] = ""
    search: str = ""
    namespace: str = ""
    row_key: str = ""

    @property
    def map_index_number(self) -> int | None:
        """The map index as a number. Airflow leaves ``{MAP_INDEX}`` unreplaced where a task is not mapped."""
        if not self.map_index:
            return None
        return int(self.map_index) if self.map_index.removeprefix("-").isdecimal() else NOT_MAPPED

    def filter(self, dag_id: str) -> RowFilter:
        """The ledger's filter for these rows, within the DAG for which the user's permission was checked."""
        search = self.search.strip()
        return replace(self.scope(dag_id), statuses=(self.status,) if self.status else (), search=search or None)

    def scope(self, dag_id: str) -> RowFilter:
        """The same without status and search: all rows of the DAG, run or task instance, or the one row."""
        return RowFilter(
            namespace=self.namespace or None,
            row_keys=(self.row_key,) if self.row_key else (),
            dag_ids=(dag_id,),
            run_id=self.run_id or None,
            task_id=self.task_id or None,
            map_index=self.map_index_number,
        )

    def query(self, **changes: Any) -> dict[str, Any]:
        """The parts that are not empty, with these changes, as a URL's query."""
        return {name: value for name, value in {**asdict(self), **changes}.items() if value not in {"", None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCursor:
    """Where the page before ended; all parts are empty on the first page."""

    after_status: LedgerStatus | Literal[""] = ""
    after_namespace: str = ""
    after_key: str = ""

    @property
    def cursor(self) -> UrgencyCursor | None:
        """The ledger's cursor; None on the first page."""
        if not self.after_status:
            return None
        return UrgencyCursor(self.after_status, RowCursor(self.after_namespace, self.after_key))


def following_page(after: UrgencyCursor) -> dict[str, str]:
    """The query's parts for the page that begins after this cursor."""
    return {
        "after_status": after.status,
        "after_namespace": after.row.namespace,
        "after_key": after.row.row_key,
    }


def url(root: str, dag_id: str, page: str, query: Mapping[str, Any]) -> str:
    """One of a DAG's pages; `root` is where Airflow mounted them."""
    return f"{root}/dags/{quote(dag_id, safe='')}/{page}?{urlencode(query)}"
