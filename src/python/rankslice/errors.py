"""What rankslice raises on purpose. Messages name the file, the tensor, the bytes, what was expected and found."""

from __future__ import annotations

import os
from errno import ENOENT
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankslice._verifying import VerifyReport


class Error(Exception):
    """Base of everything that rankslice raises on purpose.

    In a collective call the error of the lowest failing rank is raised on every rank.

    Attributes:
        code: what the ``rankslice`` program would exit with.
        file: the file in question, or None.
        tensor: the tensor in question, or None.
        rank: the rank that failed, once the ranks have agreed on it, or None.
    """

    code: int = 1
    file: str | None
    tensor: str | None
    rank: int | None

    def __init__(
        self,
        message: str,
        code: int | None = None,
        file: str | None = None,
        tensor: str | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = type(self).code if code is None else code
        self.file, self.tensor, self.rank = file, tensor, rank

    def __reduce__(self):  # for schedulers that send exceptions to other processes
        return type(self), (str(self), self.code, self.file, self.tensor, self.rank)


class UsageError(Error, ValueError):
    """Arguments that make no sense together."""

    code = 2


class FormatError(Error):
    """Bytes that break the rules of their format, or tensors that do not fit their model."""

    code = 65


class IoError(Error, OSError):
    """A file that cannot be created, read or written, or changed meanwhile. ``filename`` is ``file``; ``errno`` is None
    where the message alone says what the system said."""

    code = 74

    def __init__(
        self,
        message: str,
        code: int | None = None,
        file: str | None = None,
        tensor: str | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(message, code, file, tensor, rank)
        self.filename = file

    def __str__(self) -> str:  # OSError's own would be of the attributes
        return str(self.args[0])


class InputMissingError(IoError, FileNotFoundError):
    """A file or folder that is not there. ``errno`` is ENOENT."""

    errno = ENOENT
    strerror = os.strerror(ENOENT)


class PlanError(UsageError):
    """A mesh, selection or state dict from which no plan can be made. Ranks that work together raise it as UsageError,
    whose code is the same."""


class CommError(Error, RuntimeError):
    """Ranks that do not answer, or a process group that failed: its exception is the ``__cause__``."""

    code = 75


class DeviceError(Error, RuntimeError):
    """A device that was asked for and cannot be used."""

    code = 69


class VerifyError(Error):
    """Tensors that are not what the checkpoint says they are.

    Attributes:
        report: all that ``verify`` found; None of other calls.
    """

    code = 3
    report: VerifyReport | None = None

    def __reduce__(self):
        return *super().__reduce__(), {"report": self.report}


class Interrupted(Error):
    """Another rank was interrupted, and so the call ended here too. That rank itself raises KeyboardInterrupt,
    or SystemExit, or what else its signal handler raised."""

    code = 130


class UnexpectedError(Error, RuntimeError):
    """What no rank should meet: a bug, memory that ran out, or an exception in another rank's callback."""
