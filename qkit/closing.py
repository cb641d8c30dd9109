"""What every class that holds resources shares: sessions, threads, widgets, kept tensors go when it is closed."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from qkit.errors import QkitError


class Closeable:
    """Holds resources until `close`; a context manager that closes at its end.

    A subclass lets go of them in `_release`, and calls `_check_open` where it cannot do without.
    """

    _closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Let go of all that it holds; a second time does nothing."""
        if not self._closed:
            object.__setattr__(self, "_closed", True)  # a frozen dataclass may be one of these
            self._release()

    def _release(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise QkitError(f"this {type(self).__name__} is closed: make another one.")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
