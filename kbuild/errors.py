"""What can stop a stage, told apart by whose fault it is.

The text of each error is one line that says what, where and what to do; a command line prints it
as it is. Anything else that is raised is a defect of this tool.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kbuild.outcome import Status


class KbuildError(Exception):
    """Base of all errors that this tool raises on purpose."""

    status: Status = Status.ERROR


class UserError(KbuildError):
    """The user's input is wrong (exit status 2)."""


class HarnessError(KbuildError):
    """The machine, a tool or a host failed; this says nothing about the kernel (MISS)."""

    status = Status.MISS


class JudgeError(KbuildError):
    """Something happened that could not be judged (ERROR)."""


@contextmanager
def os_errors(where: str = "") -> Iterator[None]:
    """Turn what the operating system refuses (a full disk, a folder that went) into a HarnessError of one line.

    For what nobody below has said better. `where` stands in front, and alone where the error names no file. A pipe
    whose reader is gone is no failure of the machine and stays as it is.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        parts = (where, error.filename, error.strerror or error)
        raise HarnessError(": ".join(str(part) for part in parts if part)) from error
