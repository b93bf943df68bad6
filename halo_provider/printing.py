"""Records on a terminal or in a pipe: as a table with a header, as CSV, or as one JSON object a line."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TextIO

Format = Literal["table", "csv", "json"]
Record = Mapping[str, Any]

NOTHING = "-"  # in a table, so that columns can be cut by words


def write(columns: Sequence[str], records: Iterable[Record], *, form: Format, stream: TextIO) -> None:
    """Write every record's columns. A table waits for all records, to know how wide they are; the others stream."""
    match form:
        case "table":
            _write_table(columns, records, stream)
        case "csv":
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_plain(record[name]) for name in columns] for record in records)
        case "json":
            for record in records:
                chosen = {name: _plain(record[name]) for name in columns}
                stream.write(f"{json.dumps(chosen, ensure_ascii=False, default=str)}\n")


def _write_table(columns: Sequence[str], records: Iterable[Record], stream: TextIO) -> None:
    lines = [list(columns), *([_cell(record[name]) for name in columns] for record in records)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        stream.write(f"{padded.rstrip()}\n")


def _cell(value: Any) -> str:
    """On one line, and without what a terminal would obey."""
    if value is None or value == "":
        return NOTHING
    text = value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else str(value)
    return "".join(each if each.isprintable() else " " for each in text)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
