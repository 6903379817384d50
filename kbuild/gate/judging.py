"""One kernel, judged, and the verdict of it all: in one go, or built first and loaded later."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from kbuild import log
from kbuild.cache.limit import cache_limit, trim
from kbuild.errors import KbuildError, UserError, os_errors
from kbuild.gate.request import GateRequest, profile_of
from kbuild.gate.stages import Stages
from kbuild.progress import Reporter
from kbuild.record import Record, Run
from kbuild.runs.release import read_policy


def gate(request: GateRequest, reporter: Reporter) -> Run:
    """Make a run. Its record has a verdict, or says what stopped it.

    Raises UserError before anything is done where the input is wrong; KeyboardInterrupt is raised on
    after the record has said how far the run came.
    """
    log.configure(request.verbosity)
    limit = cache_limit(request.cache_gb)
    started = time.time()
    judging = Judging(request, reporter)
    with judging:
        judging.build()
        judging.judge()
    if judging.added:
        with log.context(run=judging.run.record.id):
            trim(limit, spare_since=started)
    return judging.run


class Judging:
    """A run in two parts, so that one kernel can be built while another one is loaded: `build()`, then `judge()`.

    To be used as a context, which ends what hosts have begun. Each part may be called in a thread of its own, one after
    the other. What stops the run is recorded; then `judge()` does nothing, and UserError and KeyboardInterrupt are
    raised on.
    """

    def __init__(self, request: GateRequest, reporter: Reporter) -> None:
        """Raises UserError before anything is done where the input is wrong."""
        _refuse_contradictions(request)
        profile = profile_of(request)
        policy = read_policy(profile, request.baseline) if request.task == "gate" else None
        self.run = Run(request.task, request.command)
        self.run.record.profile, self.run.record.flavour = str(profile.path), profile.flavour
        self._gate = Stages(request, profile, policy, self.run, reporter)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._recorded(), os_errors():
            self._stack.enter_context(log.kept(self.run.record.id, self.run.log_file))
            log.get().info("run", command=self.run.record.command, folder=str(self.run.folder))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End what hosts have begun, and the run's log."""
        with self._stack:
            self._gate.stack.close()

    @property
    def added(self) -> bool:
        """Whether the cache became larger."""
        return self._gate.added

    @property
    def over(self) -> bool:
        """Whether there is nothing left to judge."""
        return self.run.record.ended is not None

    def build(self) -> None:
        """What needs the tree: until the artifacts are in the run's folder."""
        with self._recorded(), os_errors():
            self._gate.make()

    def judge(self) -> None:
        """Inspect and load, as far as the task goes, and give the verdict."""
        if self.over:
            return
        with self._recorded(), os_errors():
            self._gate.judge()
            log.get().info("run.end", verdict=self.run.record.verdict, peak_memory_kb=_peak_memory_kb())

    def take_over(self, other: Record, folder: Path) -> None:
        """The same, of another run with the same kernel and modules, and its folder."""
        with self._recorded(), os_errors():
            self._gate.take_over(other, folder)

    def cancel(self) -> None:
        """End what hosts are at, from another thread."""
        self._gate.cancellation.cancel()

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        with log.context(run=self.run.record.id):
            try:
                yield
            except KeyboardInterrupt:
                self.run.interrupt()
                raise
            except KbuildError as error:
                self.run.fail(error)
                if isinstance(error, UserError):
                    raise


def _refuse_contradictions(request: GateRequest) -> None:
    """Sources that exclude each other: one of them would be left out without a word."""
    if request.package and (request.modules or request.kernel):
        other = f"--modules {request.modules}" if request.modules else f"--kernel {request.kernel}"
        raise UserError(f"--package {request.package} and {other}: give one of them")
    if request.kernel and not request.modules:
        raise UserError(f"--kernel {request.kernel}: give --modules DIR as well, with the modules that belong to it")
    built = request.package or request.modules
    for option in [
        *(f"--patch {patch}" for patch in request.patches),
        *([f"--rev {request.rev}"] if request.rev else []),
    ]:
        if built:
            raise UserError(f"{option}: {built} is built already: give a tree")


def _peak_memory_kb() -> int:
    """The most memory that this process itself has had; emulators and compilers are others."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
