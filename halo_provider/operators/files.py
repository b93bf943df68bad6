"""Files on local disk or object storage, read as streams and written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from airflow.sdk import ObjectStoragePath

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_object_storage(path: str) -> bool:
    """Whether the path is a URL, for ObjectStoragePath, and not a local one."""
    return "://" in path


def open_binary(path: str) -> IO[bytes]:
    """Open a local path or an ObjectStoragePath URL for reading. Raises OSError."""
    if is_object_storage(path):
        return _open_object(path, "rb")
    return Path(path).open("rb")


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """A stream whose content appears at `path` when the block ends well, and not at all when it raises."""
    if is_object_storage(path):
        with tempfile.TemporaryFile() as temporary:
            yield temporary
            temporary.seek(0)
            with _open_object(path, "wb") as target:
                shutil.copyfileobj(temporary, target)
        return
    target_path = Path(path)
    target_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target_path.parent, prefix=f".{target_path.name}.", delete=False) as local:
        temporary_path = Path(local.name)
        try:
            yield local
            local.close()
            temporary_path.chmod(0o644)
            temporary_path.replace(target_path)
        except BaseException:
            temporary_path.unlink(missing_ok=True)
            raise


def _open_object(path: str, mode: str) -> IO[bytes]:
    stream: IO[bytes] = ObjectStoragePath(path).open(mode)  # type: ignore[no-untyped-call]  # untyped in Airflow
    return stream
