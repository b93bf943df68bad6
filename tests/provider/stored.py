"""A frame as a file of every kind that operators read."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable

import pandas as pd
from backports import zstd

KINDS = ("csv", "csv.gz", "csv.bz2", "csv.xz", "csv.zst", "csv.zip", "parquet", "jsonl", "jsonl.gz", "xlsx")


def stored_as(kind: str, frame: pd.DataFrame) -> bytes:
    """The frame as a file of this kind."""
    match kind.split("."):
        case ["parquet"]:
            return frame.to_parquet()
        case ["xlsx"]:
            workbook = io.BytesIO()
            frame.to_excel(workbook, index=False)
            return workbook.getvalue()
        case [text, *compressed]:
            content = frame.to_csv(index=False) if text == "csv" else frame.to_json(orient="records", lines=True)
            return COMPRESS["".join(compressed)](content.encode())
    raise AssertionError(kind)


def parameter_of(kind: str) -> str:
    """Which parameter of the operators takes such a file."""
    return "csv_path" if kind.startswith("csv") else "file_path"


def _zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("notes", content)
    return archive.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
    "zip": _zipped,
}
