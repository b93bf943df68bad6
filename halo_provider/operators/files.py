"""Files on local disk or object storage: read as streams, and written completely or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from halo_provider.compat import ObjectStoragePath
from halo_provider.exceptions import HaloConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_object_storage(path: str) -> bool:
    """Whether the path is a URL, for ObjectStoragePath, and not a local one."""
    return "://" in path


def open_binary(path: str) -> IO[bytes]:
    """Open a local path or an ObjectStoragePath URL for reading. Raises OSError and HaloConfigurationError.

    A pipe is refused, as is everything else that is no regular file: it cannot be read twice, and to open one that
    nobody writes to would block for ever.
    """
    if is_object_storage(path):
        stream: IO[bytes] = _object(path).open("rb")
        return stream
    return open(path, "rb", opener=_open_regular_file)


def _open_regular_file(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # open() itself refuses a folder
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ESPIPE, "it is no regular file, but a pipe, a socket or a device; copy it to a file first")


@contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """A stream whose content appears at `path` when the block ends well, and not at all when it raises."""
    if is_object_storage(path):
        stored = _object(path)
        with tempfile.TemporaryFile() as temporary:
            yield temporary
            temporary.seek(0)
            with stored.open("wb") as target:
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


def _object(path: str) -> Any:
    """The object, whether it is there or not. Raises HaloConfigurationError where nothing serves such URLs."""
    try:
        stored = ObjectStoragePath(path)
        stored.fs  # noqa: B018 -- finds the filesystem, or raises
    except ValueError as error:
        raise HaloConfigurationError(f"{path}: {error}; is the provider package for it installed?") from None
    return stored
