"""Rows from Excel workbooks, one at a time.

openpyxl reads them, read-only: of a sheet only the current row is in memory. The texts of a workbook stand in one table
for all sheets, which has to be in memory: that much its format asks for. pandas.read_excel needs the whole sheet, and
makes numbers and dates of a column by what most of its cells are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO, Any

from halo_provider.exceptions import HaloConfigurationError, RowError, SourceError
from halo_provider.sources.rows import Row, check_columns
from halo_provider.sources.stored import stored_file


class ExcelSource:
    """A sheet's rows, with Python's own values, each under its number in the sheet. Its first row is the header.

    `sheet` is its name; the first one by default. A formula is the value that Excel computed last. Empty rows are left
    out. `open_binary` opens the file for each reading. Raises HaloConfigurationError where openpyxl is not installed.
    """

    def __init__(self, *, path: str, open_binary: Callable[[], IO[bytes]], sheet: str | None = None) -> None:
        if find_spec("openpyxl") is None:
            raise HaloConfigurationError(f"{path}: Excel needs openpyxl; pip install 'airflow-provider-halo[excel]'")
        self.description = path
        self._open_binary = open_binary
        self._sheet = sheet
        self._share_read: float | None = None

    @property
    def share_read(self) -> float | None:
        """The share of the rows that were read, of as many as the workbook says it has; None where it does not."""
        return self._share_read

    def columns(self) -> list[str]:
        """The header's names, ``column 3`` where one is blank; none for an empty sheet.

        Raises SourceError where the file cannot be read.
        """
        with self._cells() as (cells, _):
            return next((_header(values) for _, values in cells), [])

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; an empty sheet has none. Raises SourceError where a required column is missing."""
        with self._cells() as (cells, height):
            columns: list[str] | None = None
            for number, values in cells:
                if columns is None:
                    columns = _header(values)
                    check_columns(columns, required, description=self.description)
                    continue
                self._share_read = min(number / height, 1.0) if height else None
                yield _row(number, values, columns)
            self._share_read = 1.0

    @contextmanager
    def _cells(self) -> Iterator[tuple[Iterator[tuple[int, Sequence[Any]]], int | None]]:
        """The rows that are not empty, each with its number, and how many the workbook says it has."""
        with stored_file(self.description, self._open_binary, wanted="an Excel workbook") as stored:
            if not stored.size:
                yield iter(()), None
                return
            from openpyxl import load_workbook  # noqa: PLC0415 -- optional, and slow to import

            workbook = load_workbook(stored.stream, read_only=True, data_only=True, keep_links=False)
            try:
                sheet = self._named(workbook)
                height = sheet.max_row
                sheet.reset_dimensions()  # which some programs write wrongly
                numbered = enumerate(sheet.iter_rows(values_only=True), start=1)
                yield ((number, values) for number, values in numbered if any(map(_is_filled, values))), height
                stored.check_unchanged()
            finally:
                workbook.close()

    def _named(self, workbook: Any) -> Any:
        sheets = {sheet.title: sheet for sheet in workbook.worksheets}
        if self._sheet is None:
            return next(iter(sheets.values()))
        if self._sheet not in sheets:
            raise SourceError(
                f"{self.description}: there is no sheet {self._sheet!r}; its sheets are {', '.join(map(repr, sheets))}"
            )
        return sheets[self._sheet]


def _is_filled(value: Any) -> bool:
    return value is not None and value != ""


def _header(values: Sequence[Any]) -> list[str]:
    names = ["" if value is None else str(value).strip() for value in values]
    while names and not names[-1]:
        names.pop()
    return [name or f"column {place}" for place, name in enumerate(names, start=1)]


def _row(number: int, values: Sequence[Any], columns: Sequence[str]) -> Row:
    width = len(columns)
    padded = [*values[:width], *[None] * (width - len(values))]
    error = None
    if extra := [value for value in values[width:] if _is_filled(value)]:
        reason = f"row {number} has values in columns that have no name in the header; name them, or clear the cells"
        error = RowError(reason, detail=f"values beyond the header: {extra!r}")
    return Row(number, dict(zip(columns, padded, strict=True)), error)
