"""A file that a run writes beside its rows: what keeps it from being written is told as one kind of error."""

from types import TracebackType
from typing import Self

from halo_provider.exceptions import OutputError


class Output:
    """Guards every access to one file: ``with output: stream.write(…)``.

    Whatever such a block raises leaves it as OutputError, with the cause. The file is then lost: each later block
    raises the same error before it begins.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._error: OutputError | None = None

    def __enter__(self) -> Self:
        """Raise the first error again, if there was one."""
        if self._error is not None:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raise what the block raised as OutputError; what ends the process is left alone."""
        if isinstance(error, Exception):
            self._error = OutputError(self._name, error)
            raise self._error from error
