"""A file as it is stored: opened, recognised by its first bytes, decompressed, and checked at its end."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Self

from halo_provider.exceptions import HaloConfigurationError, HaloError, SourceError, redact

HEAD = 64  # bytes at the start of a file by which it is recognised
_READ_AHEAD = 1 << 18  # bytes of a compressed file that are read together

# What a file is by its first bytes. A workbook of Excel's is a zip file, too, and known by its members.
_GZIP, _BZ2, _XZ, _ZSTD, _ZIP = "gzip", "bz2", "xz", "zstd", "zip"
_PARQUET, _EXCEL, _OLD_EXCEL = "Parquet", "an Excel workbook", "an old or encrypted Excel workbook"
_SIGNATURES = {
    b"\x1f\x8b": _GZIP,
    b"BZh": _BZ2,
    b"\xfd7zXZ\x00": _XZ,
    b"\x28\xb5\x2f\xfd": _ZSTD,
    b"PK\x03\x04": _ZIP,
    b"PK\x05\x06": _ZIP,
    b"PAR1": _PARQUET,
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": _OLD_EXCEL,
}
_BZ2_BLOCKS = frozenset({b"1AY&SY", b"\x17rE8P\x90"})
_COMPRESSED = frozenset({_GZIP, _BZ2, _XZ, _ZSTD, _ZIP})


class StoredFile:
    """One file, open for reading: `stream` gives its bytes, decompressed where it is text that is compressed.

    `compressed_as` names how, or is None. `size` counts the bytes that are stored.
    """

    def __init__(self, path: str, stored: IO[bytes]) -> None:
        self.path = path
        self.stream: IO[bytes] = stored
        self.compressed_as: str | None = None
        self._stored = stored
        self._written = _written(stored)
        self.size = stored.seek(0, io.SEEK_END)
        stored.seek(0)

    @property
    def share_read(self) -> float:
        """The share of the stored bytes that were read; ahead of what the stream gave by a buffer."""
        return min(self._stored.tell() / self.size, 1.0) if self.size else 1.0

    def head(self) -> bytes:
        """The first bytes of the stream, which stands at its start afterwards."""
        start = self.stream.read(HEAD)
        self.stream.seek(0)
        return start

    def check_end(self) -> None:
        """Raise SourceError where the text is not whole, or was changed. Called where its end was met."""
        end = self._stored.tell() if self.compressed_as is None else self.size
        if end < self.size:
            raise SourceError(
                f"{self.path}: it ended after {end:,} of the {self.size:,} bytes that it had when it was opened; "
                "run the task again when the file is complete"
            )
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise SourceError where the file was changed since it was opened."""
        if _written(self._stored) != self._written:
            raise SourceError(
                f"{self.path}: it was written to while it was read; run the task again when the file is complete"
            )

    def decompress(self, stack: ExitStack) -> Self:
        """Give what the file holds, where it is compressed. Raises SourceError where that is no single file."""
        found = _recognised(self.head(), self._stored)
        if found in _COMPRESSED:
            self.compressed_as = found
            self.stream = _decompressing(found, self._stored, stack, path=self.path)
            if (inner := _recognised(self.head(), None)) is not None:
                raise SourceError(f"{self.path}: this is {inner} within {found}; unpack it once")
        return self


@contextmanager
def stored_file(path: str, open_binary: Callable[[], IO[bytes]], *, wanted: str | None) -> Iterator[StoredFile]:
    """Open a file. Every error of the storage, also one in the block, becomes a SourceError that names the path.

    `wanted` is the format that the file must have, ``"Parquet"`` or ``"an Excel workbook"``. None is text, which may be
    compressed. A file that is something else raises SourceError, which says what it is.
    """
    try:
        with ExitStack() as stack:
            stored = StoredFile(path, stack.enter_context(open_binary()))
            found = _recognised(stored.head(), stored.stream)
            if wanted is None and found not in {_PARQUET, _EXCEL, _OLD_EXCEL}:
                yield stored.decompress(stack)
            else:
                _check_format(stored, found, wanted)
                yield stored
    except HaloError:
        raise
    except Exception as error:
        raise SourceError(f"{path}: {words_of(error)}") from error


def _check_format(stored: StoredFile, found: str | None, wanted: str | None) -> None:
    if found != wanted and stored.size:
        raise SourceError(f"{stored.path}: {_other_format(found, wanted)}")


def _other_format(found: str | None, wanted: str | None) -> str:
    if wanted is None:
        remedy = "save it as .xlsx without a password, and give" if found == _OLD_EXCEL else "give"
        return f"this is {found}, and not text; {remedy} it as file_path"
    if found == _OLD_EXCEL:
        return f"this is {found}; save it as .xlsx without a password"
    if found in _COMPRESSED:
        return f"this is {found}, and not {wanted}, which is compressed in itself; unpack it"
    return f"this is {found or 'something else'}, and not {wanted}; correct its name, or file_options={{'format': …}}"


def _recognised(head: bytes, stored: IO[bytes] | None) -> str | None:
    """What the file is, if it is known by its first bytes."""
    found = next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), None)
    if found == _BZ2 and head[4:10] not in _BZ2_BLOCKS:  # a text may begin with these letters
        return None
    if found == _PARQUET and head[4:5].decode("latin-1").isprintable():  # likewise
        return None
    if found == _ZIP and stored is not None and _is_workbook(stored):
        return _EXCEL
    return found


def _is_workbook(stored: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(stored) as archive:
            return "[Content_Types].xml" in archive.namelist()
    except zipfile.BadZipFile:
        return False
    finally:
        stored.seek(0)


def _decompressing(kind: str, stored: IO[bytes], stack: ExitStack, *, path: str) -> IO[bytes]:
    """The stream of what the compressed file holds. Raises HaloConfigurationError where a library is missing."""
    if kind == _ZIP:
        return _only_member(stack.enter_context(zipfile.ZipFile(stored)), stack, path=path)
    big_reads: Any = _BigReads(stored)
    stream: Any
    match kind:
        case "gzip":
            stream = gzip.GzipFile(fileobj=big_reads)
        case "bz2":
            stream = bz2.BZ2File(big_reads)
        case "xz":
            stream = lzma.LZMAFile(big_reads)  # noqa: SIM115 -- the stack closes it
        case _:
            stream = _zstd(path).ZstdFile(big_reads)
    opened: IO[bytes] = stack.enter_context(stream)
    return opened


class _BigReads:
    """Reads a file in pieces that suit object storage: the decompressors ask for 8 KiB each time before Python 3.12."""

    def __init__(self, stored: IO[bytes]) -> None:
        self._stored = stored
        self._buffer = io.BytesIO()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size` of them."""
        if some := self._buffer.read(size):
            return some
        self._buffer = io.BytesIO(self._stored.read(_READ_AHEAD))
        return self._buffer.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place; only ever its start."""
        self._buffer = io.BytesIO()
        return self._stored.seek(offset, whence)

    def seekable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is."""
        return True


def _zstd(path: str) -> Any:
    """Python's own zstd, which came with 3.14, or the same for earlier versions."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 -- as above
    except ImportError:
        try:
            from backports import zstd  # noqa: PLC0415 -- optional
        except ImportError:
            raise HaloConfigurationError(
                f"{path}: zstd needs backports.zstd before Python 3.14; pip install 'airflow-provider-halo[zstd]'"
            ) from None
    return zstd


def _only_member(archive: zipfile.ZipFile, stack: ExitStack, *, path: str) -> IO[bytes]:
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise SourceError(f"{path}: this zip file has {len(names)} members, and must have one; unpack it")
    if archive.getinfo(names[0]).flag_bits & 1:
        raise SourceError(f"{path}: this zip file is encrypted; unpack it")
    return stack.enter_context(archive.open(names[0]))


def _written(binary: IO[bytes]) -> tuple[int, int] | None:
    """The size of a local file and when it was last written to; None for what is no local file."""
    try:
        state = os.fstat(binary.fileno())
    except (OSError, AttributeError):
        return None
    return state.st_size, state.st_mtime_ns


def words_of(error: Exception) -> str:
    """What went wrong, for people: the innermost of errors that come in groups, without whatever looks like a key."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, EOFError):
        return "its compressed content ends too early; run the task again when the file is complete"
    if isinstance(error, gzip.BadGzipFile | zipfile.BadZipFile | lzma.LZMAError | zlib.error):
        return f"its compressed content is damaged ({error}); make the file again"
    if isinstance(error, OSError):
        # Object storage raises Python's own errors with the key alone, or with nothing.
        name = {FileNotFoundError: "there is no such file", PermissionError: "access is denied"}.get(type(error))
        return redact(error.strerror or name or str(error) or type(error).__name__)
    return redact(f"{type(error).__name__}: {error}")
