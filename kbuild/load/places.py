"""Machines side by side: how many of each host, each in a thread of its own, and machines that are booted ahead."""

from __future__ import annotations

import contextvars
import filecmp
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from kbuild import log
from kbuild.errors import KbuildError
from kbuild.hosts.disk import fill_disk
from kbuild.hosts.spec import HostSpec, is_remote, keeps
from kbuild.hosts.ssh.target import Target
from kbuild.load.boot import DISK, Boot, boot, module_files
from kbuild.load.protocol import Result, Verb
from kbuild.load.request import LoadRequest

T = TypeVar("T")

MIN_RUNNING = 2
"""Machines side by side: both vendors', also on one CPU."""
ORDERS_PER_BOOT = 3
"""With fewer orders for each, another machine's boot costs more than it saves."""


class Place:
    """Room for one machine at a time, with a thread of its own: an emulator dies with the thread that started it."""

    def __init__(self, spec: HostSpec, number: int, running: AbstractContextManager[object]) -> None:
        """`running` is held while the machine is at work: waits while as many as may run at once do."""
        self.spec = spec
        self._running = running
        self.number = number
        """From 1, on its host."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.label)
        # What one piece of work begins, a machine, the next one ends: in the same context.
        self._context = contextvars.copy_context()
        self._machine = ExitStack()
        self._ahead: tuple[LoadRequest, Boot] | None = None

    @property
    def label(self) -> str:
        """For who watches: `bochs-vmx`, `bochs-vmx/2`."""
        return self.spec.id if self.number == 1 else f"{self.spec.id}/{self.number}"

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have something done in the place's thread."""
        return self._thread.submit(self._context.run, log.carried(work))

    def close(self) -> None:
        """End its machine and its thread."""
        self.submit(self.discard)
        self._thread.shutdown()

    def boot_ahead(self, request: LoadRequest) -> None:
        """Boot a kernel whose modules are not there yet. What goes wrong shows when it is booted for good."""
        with log.context(host=self.spec.id):
            try:
                started = self._machine.enter_context(boot(request, self.spec, self.number))
            except KbuildError as error:
                log.get().info("boot.ahead-failed", reason=str(error))
                return
            self._ahead = request, started
            if started.session.hello is None or started.session.ended is not None:
                self.discard()
            else:
                started.machine.pause()

    def discard(self) -> None:
        """End a machine that was booted ahead and is not wanted, and leave nothing of it."""
        if self._ahead is None:
            return
        _, started = self._ahead
        self._ahead = None
        try:
            self._machine.close()
        finally:
            shutil.rmtree(started.folder, ignore_errors=True)

    @contextmanager
    def boot(
        self,
        request: LoadRequest,
        modules: Collection[str],
        number: int,
        slowness: float | None,
        tell: Callable[[float, float | None], None],
        target: Target | None = None,
    ) -> Iterator[Boot]:
        """A machine with these modules: the one that was booted ahead with this very kernel, or one that starts now.

        The machine ends with the context; the rest is as for `boot()`. Waits while enough others run.
        """
        with self._running:
            if self._ahead and (started := self._take(request, modules)):
                with self._machine:
                    yield started
                return
            self.discard()
            with boot(request, self.spec, number, modules, slowness, tell, target) as started:
                yield started

    def _take(self, request: LoadRequest, modules: Collection[str]) -> Boot | None:
        """The machine that was booted ahead, with its modules; None if it cannot be used."""
        assert self._ahead is not None
        asked, started = self._ahead
        same = asked.command_line == request.command_line and filecmp.cmp(asked.kernel, request.kernel, shallow=False)
        if not same:
            log.get().info("boot.ahead-unused", reason="another kernel was built")
            return None
        try:
            with log.timed("boot.fetch") as extra:
                fill_disk(started.folder / DISK, module_files(request, modules))
                started.machine.resume()
                reply = started.session.command(Verb.FETCH)
                extra.update(answer=str(reply.answer))
        except KbuildError as error:
            # Modules with debug information may be larger than the disk: an initramfs holds them.
            log.get().info("boot.ahead-unused", reason=str(error))
            return None
        if not isinstance(reply.answer, Result) or reply.answer.errno:
            return None
        started.start.log += [*reply.earlier, *reply.log]
        self._ahead = None
        return started


class Places:
    """The places of one run. Leaving the context ends what is in them."""

    def __init__(self, hosts: Sequence[HostSpec], orders: int, cpus: int | None = None) -> None:
        cpus = cpus or os.cpu_count() or 1
        local = [spec for spec in hosts if not is_remote(spec)]
        at_once = machines_at_once(local, cpus)
        counts = dict(zip((spec.id for spec in local), share(local, orders, at_once), strict=True))
        # Each host has its place; with many hosts most of them wait for a CPU. A machine that is somebody's own has
        # CPUs of its own, and is taken by then: nobody else can use it while it waits.
        running = threading.Semaphore(max(at_once, MIN_RUNNING))
        self._places = [
            Place(spec, number, nullcontext() if is_remote(spec) else running)
            for spec in hosts
            for number in range(1, counts.get(spec.id, 1) + 1)
        ]
        self._free_cpus = threading.Semaphore(max(1, cpus - 1))
        self._request: LoadRequest | None = None

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def boot_ahead(self, request: LoadRequest) -> None:
        """Boot `request.kernel` in all places, the slowest first, and leave a CPU for others. Returns at once."""
        self._request = request
        # Not somebody's machine: that is not taken before it is needed.
        wanted = [
            place
            for place in self._places
            if not is_remote(place.spec) and (place.number == 1 or not keeps(place.spec))
        ]
        for place in sorted(wanted, key=lambda place: -_slow(place.spec)):
            place.submit(partial(self._boot_ahead, place, request))

    def _boot_ahead(self, place: Place, request: LoadRequest) -> None:
        with self._free_cpus:
            if not request.cancellation.requested():
                place.boot_ahead(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._request:
            self._request.cancellation.cancel()
        for place in self._places:
            place.close()
        if self._request:
            # Where nothing came of it: rmdir() spares what has something in it.
            for folder in (*(self._request.folder / place.spec.id for place in self._places), self._request.folder):
                with suppress(OSError):
                    folder.rmdir()


def machines_at_once(hosts: Sequence[HostSpec], cpus: int) -> int:
    """Of emulators, as many as there are CPUs; one more where a boot serves all of a host: it works while another one
    starts."""
    return cpus + all(map(keeps, hosts))


def share(hosts: Sequence[HostSpec], orders: int, at_once: int) -> list[int]:
    """How many machines of each host are worth while: one each, and the slowest hosts get what is left.

    Not more machines than may work at once, unless there are more hosts: on a CPU that they share, two take longer.
    """
    counts = [1] * len(hosts)
    while sum(counts) < at_once:
        open_to = [at for at, count in enumerate(counts) if count * ORDERS_PER_BOOT < orders]
        if not open_to:
            break
        counts[max(open_to, key=lambda at: _slow(hosts[at]) / counts[at])] += 1
    return counts


def _slow(spec: HostSpec) -> float:
    return spec.limits.usual_boot_s or 0
