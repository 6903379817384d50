"""What can stop a stage, told apart by whose fault it is.

The text of each error is one line that says what, where and what to do; a command line prints it
as it is. Anything else that is raised is a defect of this tool.
"""

from __future__ import annotations

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
