"""Two parts of an analysis at the same time, the second in a process of its own, which tell each other of it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _LostError(Exception):
    """The other side has ended before its time."""


class Side:
    """One of the two, as it talks to the other."""

    def __init__(self, read: int, write: int, *, speaks_first: bool) -> None:
        self._read = os.fdopen(read, "rb")
        self._write = os.fdopen(write, "wb")
        self._speaks_first = speaks_first

    def swap(self, mine: T) -> T:
        """Give the other side a value, and wait for that which it gives at the same place of its work."""
        if self._speaks_first:
            self.say(mine)
        theirs: T = self.hear()
        if not self._speaks_first:
            self.say(mine)
        return theirs

    def say(self, value: object) -> None:
        """Give the other side a value."""
        try:
            pickle.dump(value, self._write)
            self._write.flush()
        except BrokenPipeError:
            raise _LostError from None

    def hear(self) -> Any:
        """Wait for a value from the other side."""
        try:
            return pickle.load(self._read)
        except (EOFError, pickle.UnpicklingError):
            raise _LostError from None

    def close(self) -> None:
        """Talk no more."""
        self._read.close()
        with contextlib.suppress(BrokenPipeError):
            self._write.close()


def can_be_two() -> bool:
    """Whether a second process has a CPU to run on, and may be made: a copy of a process with threads lacks these."""
    return len(os.sched_getaffinity(0)) > 1 and threading.active_count() == 1


def side_by_side(first: Callable[[Side], T], second: Callable[[Side], T]) -> tuple[T, T] | None:
    """What both give; what they swap, and what the second one gives, is pickled.

    None: the second one has failed, or was killed. Whoever does its work again finds out why.
    """
    to_first, to_second = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(to_first[0])
            os.close(to_second[1])
            side = Side(to_second[0], to_first[1], speaks_first=True)
            side.say(second(side))
        finally:
            os._exit(0)  # Nothing of what the first process began is to be ended twice.
    os.close(to_first[1])
    os.close(to_second[0])
    side = Side(to_first[0], to_second[1], speaks_first=False)
    try:
        return first(side), side.hear()
    except _LostError:
        return None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        side.close()
