"""Which source reads a file: by its name, or as `file_options` say."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import IO, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halo_provider.exceptions import HaloConfigurationError
from halo_provider.models import explained
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.excel_file import ExcelSource
from halo_provider.sources.joined import JoinedSource
from halo_provider.sources.json_lines import JsonLinesSource
from halo_provider.sources.parquet_file import ParquetSource
from halo_provider.sources.rows import Source

Paths = str | os.PathLike[str] | Collection[str | os.PathLike[str]]
Format = Literal["parquet", "jsonl", "excel"]
OpenBinary = Callable[[str], IO[bytes]]

ENDINGS: dict[str, Format] = {
    "parquet": "parquet",
    "pq": "parquet",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "xlsx": "excel",
    "xlsm": "excel",
}
_COMPRESSED_ENDINGS = frozenset({"gz", "gzip", "bz2", "xz", "zst", "zstd", "zip"})
_TEXT_ENDINGS = frozenset({"csv", "tsv", "txt"})

_OptionsT = TypeVar("_OptionsT", bound=BaseModel)


class FileOptions(BaseModel):
    """How a file of `file_path` is read: its format, where its name does not say so, and which sheet of a workbook."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Format | None = None
    sheet: str | None = Field(default=None, min_length=1)


def parse_csv_options(csv_options: Mapping[str, Any] | None) -> CsvOptions:
    """The options of a CSV file. Raises HaloConfigurationError where one is unknown or cannot work."""
    return _parsed("csv_options", CsvOptions, csv_options)


def parse_file_options(file_options: Mapping[str, Any] | None) -> FileOptions:
    """The options of another file. Raises HaloConfigurationError where one is unknown or cannot work."""
    return _parsed("file_options", FileOptions, file_options)


def _parsed(parameter: str, model: type[_OptionsT], given: Any) -> _OptionsT:
    if given is not None and not isinstance(given, Mapping):
        raise HaloConfigurationError(f"{parameter} must be a dict, not a {type(given).__name__}")
    try:
        return model(**{str(name): value for name, value in (given or {}).items()})
    except ValidationError as error:
        reason = explained(error, model).replace("\n", "; ")
        raise HaloConfigurationError(f"{parameter}: {reason}") from None


def format_of(path: str, options: FileOptions) -> Format:
    """The format of a file. Raises HaloConfigurationError where neither the options nor its name tell one."""
    if options.format is not None:
        return options.format
    endings = path.lower().rsplit("/", 1)[-1].split(".")[1:]
    while endings and endings[-1] in _COMPRESSED_ENDINGS:
        endings.pop()
    ending = endings[-1] if endings else ""
    if ending in ENDINGS:
        return ENDINGS[ending]
    if ending in _TEXT_ENDINGS:
        raise HaloConfigurationError(f"file_path: {path!r} is a CSV file by its name; give it as csv_path")
    raise HaloConfigurationError(
        f"file_path: the name {path!r} tells no format; it must end in {', '.join(f'.{name}' for name in ENDINGS)}, "
        "or file_options={'format': 'parquet' | 'jsonl' | 'excel'} must say it"
    )


def csv_source(paths: Sequence[str], open_binary: OpenBinary, *, options: CsvOptions, description: str) -> Source:
    """One source of all these CSV files."""
    return _one_of(
        [CsvSource(path=path, open_binary=partial(open_binary, path), options=options) for path in paths], description
    )


def file_source(paths: Sequence[str], open_binary: OpenBinary, *, options: FileOptions, description: str) -> Source:
    """One source of all these files, which may differ in their format. Raises HaloConfigurationError."""
    return _one_of([_file(path, partial(open_binary, path), options) for path in paths], description)


def _file(path: str, opened: Callable[[], IO[bytes]], options: FileOptions) -> Source:
    match format_of(path, options):
        case "parquet":
            return ParquetSource(path=path, open_binary=opened)
        case "jsonl":
            return JsonLinesSource(path=path, open_binary=opened)
        case "excel":
            return ExcelSource(path=path, open_binary=opened, sheet=options.sheet)


def _one_of(sources: Sequence[Source], description: str) -> Source:
    return sources[0] if len(sources) == 1 else JoinedSource(sources, description=description)
