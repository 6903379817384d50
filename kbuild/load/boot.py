"""One boot of a host: image, machine, session, and what its start says about the kernel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kbuild import log
from kbuild.elf import contents
from kbuild.errors import HarnessError, os_errors
from kbuild.hosts.base import BootImage, Machine, Snapshot
from kbuild.hosts.disk import make_disk
from kbuild.hosts.initramfs import write_initramfs
from kbuild.hosts.spec import HostSpec, start
from kbuild.hosts.ssh.target import ARCHIVE, Deployment, Target
from kbuild.load.faults.ahead import Ahead
from kbuild.load.request import LoadRequest
from kbuild.load.session import Reply, Session
from kbuild.load.state import State
from kbuild.paths import make_folder, write_atomically

DISK = "disk"
INITRAMFS = "initramfs"
"""In a boot's folder."""


@dataclass
class Prepared:
    """What an order that is swept has done in a guest, once for all of its points."""

    order: str
    state: State
    loaded: set[str]
    added: list[str]


@dataclass
class Boot:
    """A machine that was started; `session.ended` says whether it still answers."""

    number: int
    """From 1, on its host."""
    folder: Path
    machine: Machine
    session: Session
    start: Reply
    """What came until the agent's first line, or until there was no more hope for it."""
    orders: int = 0
    """That were run in it so far."""
    shared: int = 0
    """Orders that were run in this very guest."""
    last: str | None = None
    """The last of these, by its id."""
    prepared: Prepared | None = None
    ahead: dict[int, Ahead] = field(default_factory=dict)
    """Points of a sweep that the agent has done by itself, and that are not judged yet."""
    snapshot: Snapshot | None = None
    """Where there is one, `machine` has ended, and each order gets a machine from it."""

    def freeze(self) -> None:
        """Keep the guest as it is now for all orders, where the host can; else they share it."""
        with log.timed("boot.snapshot"):
            self.snapshot = self.machine.snapshot()

    @contextmanager
    def guest(self, request: LoadRequest) -> Iterator[Boot]:
        """The next guest for orders: from the snapshot, where there is one, else this very one.

        Raises HarnessError when it cannot be started.
        """
        if self.snapshot is None:
            yield self
            return
        folder = self.folder / f"from-snapshot-{self.orders + 1}"
        with self.snapshot.start(folder) as machine, request.cancellation.ends(machine):
            # What came at the boot is told with the first order.
            start = Reply(0) if self.orders else self.start
            guest = Boot(self.number, folder, machine, self.session.on(machine), start, self.orders)
            try:
                yield guest
            finally:
                self.orders = max(guest.orders, self.orders + 1)

    def keep_samples(self, reply: Reply) -> None:
        """Write what was seen of a hang beside the machine's logs, memory and all."""
        if reply.samples:
            data = msgspec.json.format(msgspec.json.encode(reply.samples), indent=1)
            write_atomically(self.folder / f"samples-{reply.number}.json", data)


@contextmanager
def boot(
    request: LoadRequest,
    spec: HostSpec,
    number: int,
    modules: Collection[str] | None = None,
    slowness: float | None = None,
    tell: Callable[[float, float | None], None] = lambda *_: None,
    target: Target | None = None,
) -> Iterator[Boot]:
    """Start a machine with these modules in its initramfs, or, with None, a disk for them. It ends with the context.

    `slowness` and `tell`: see `Session`. `target`: the host, where it is one that was taken for this run.

    Raises HarnessError when the emulator cannot be started, or has no room for what it boots.
    """
    if not request.folder.is_dir():
        # To make it anew would look like a run whose other files were never there.
        raise HarnessError(f"{request.folder}: the run's folder was removed while it was at work")
    folder = make_folder(request.folder / spec.id / f"boot-{number}")
    with log.context(boot=number), log.timed("boot.whole"), os_errors(spec.id):
        with _machine(request, spec, folder, modules, target) as machine, request.cancellation.ends(machine):
            session = Session(machine, spec.limits, request.cancellation.requested, slowness)
            with log.timed("boot") as extra:
                reply = session.boot(tell)
                extra.update(end=reply.end, fair_seconds=round(reply.fair_seconds, 3), slowness=session.slowness)
            started = Boot(number, folder, machine, session, reply)
            try:
                yield started
            finally:
                if started.snapshot:
                    started.snapshot.close()
        # They can be made again from the artifacts, and are the largest files of a boot.
        for name in (INITRAMFS, DISK, ARCHIVE):
            (folder / name).unlink(missing_ok=True)


def _machine(
    request: LoadRequest, spec: HostSpec, folder: Path, modules: Collection[str] | None, target: Target | None
) -> Machine:
    files = module_files(request, modules or ())
    if target is not None:
        return target.start(Deployment(request.kernel, request.agent, files, request.command_line), folder)
    initramfs, disk = folder / INITRAMFS, folder / DISK
    write_initramfs(initramfs, {"init": request.agent, **{f"modules/{name}": data for name, data in files.items()}})
    if modules is None:
        make_disk(disk)
    return start(
        spec, BootImage(request.kernel, initramfs, request.command_line, disk if modules is None else None), folder
    )


def module_files(request: LoadRequest, modules: Collection[str]) -> dict[str, bytes]:
    """File names to contents. The agent hands a file to finit_module(2) as it is: not every kernel can decompress.

    With the selftests, which are run from the same folder.
    """
    images = [request.modules[name] for name in sorted(modules)]
    files = {f"{image.name}.ko": contents.decompressed(contents.read(image.path)) for image in images}
    return files | {name: path.read_bytes() for name, path in request.selftests.files.items()}
