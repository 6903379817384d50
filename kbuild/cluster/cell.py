"""A cell: some orders on one host, as they are handed to a worker, and what comes back. Runs on the worker."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import pickle
import shutil
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kbuild import log
from kbuild.build.artifacts import artifact, artifacts_in_use, is_whole, put
from kbuild.build.selftests import Programs
from kbuild.cache.limit import cache_limit, trim
from kbuild.dmesg.signatures import load as load_signatures
from kbuild.elf.image import read_module
from kbuild.elf.kernel import KernelImage
from kbuild.elf.moduleset import ModuleSet
from kbuild.elf.rules.spec import Rules, read_rules
from kbuild.errors import HarnessError, KbuildError
from kbuild.hosts.spec import HostSpec, check, describe
from kbuild.load.orders.format import Order
from kbuild.load.places import Places
from kbuild.load.request import Cancellation, LoadRequest
from kbuild.load.runner import loading
from kbuild.outcome import Status
from kbuild.paths import PROJECT, link_or_copy
from kbuild.profile import SHIPPED
from kbuild.progress import Silent
from kbuild.transcript import Transcript

Tell = Callable[[dict[str, Any]], None]

KERNEL, AGENT = "bzImage", "agent"
"""Names of files besides the modules and selftests."""
MANY_RUNS = 10
"""Of an order that is run in several ways, as long as nobody knows how many these are."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All of it can be pickled; files are named by what is in them."""

    spec: HostSpec
    orders: tuple[Order, ...]
    only: Mapping[str, Collection[str]]
    again: Callable[[str, str], str]
    command_line: tuple[str, ...]
    rules: Rules
    run: str
    release: str
    kernel: KernelImage | None
    """What is known of the kernel, without its types."""
    files: Mapping[str, str]
    """`bzImage`, `agent` and the modules' files, to their SHA-256."""
    selftests: Mapping[str, str]
    absent: Mapping[str, str]


class Lacks(msgspec.Struct, frozen=True):
    """The worker has not these files, by SHA-256: once more, with them."""

    digests: tuple[str, ...]


class Failed(msgspec.Struct, frozen=True):
    """The worker could not, and why."""

    status: Status
    reason: str


class Done(msgspec.Struct, frozen=True):
    """What came back, as JSON where it may be large."""

    transcripts: bytes
    folder: bytes
    """A ZIP archive of `LoadRequest.folder`."""
    host: str
    """What ran it: an emulator's version, and the worker's name."""


Answer = Lacks | Failed | Done


@functools.cache
def code_version() -> str:
    """Of this tool's code and its shipped profiles: a worker with another one could mean something else."""
    digest = hashlib.sha256()
    files = [path for folder in (PROJECT / "kbuild", SHIPPED) for path in folder.rglob("*") if path.is_file()]
    for path in sorted(path for path in files if "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(PROJECT)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def lacking(digests: Sequence[str]) -> list[str]:
    """Those files that are not in this machine's cache."""
    return [digest for digest in digests if not is_whole(digest)]


async def keep(data: bytes) -> None:
    """Put a file into this machine's cache, while its cells go on."""
    await asyncio.to_thread(_keep, data)


def _keep(data: bytes) -> None:
    with artifacts_in_use(), tempfile.NamedTemporaryFile(prefix="kvm-kbuild-") as file:
        file.write(data)
        file.flush()
        put(Path(file.name))
    _KEPT.set()


_KEPT = threading.Event()
"""Files were put into the cache. It is brought below its limit when a cell has used them, and not before: nothing else
says that they are wanted."""
_AT_WORK: dict[str, set[Cancellation]] = {}
_LOCK = threading.Lock()


def cancel(run: str) -> None:
    """End what this worker does for a run."""
    with _LOCK:
        at_work = [*_AT_WORK.get(run, ())]
    for one in at_work:
        one.cancel()


@contextmanager
def _cancellable(run: str) -> Iterator[Cancellation]:
    cancellation = Cancellation()
    with _LOCK:
        _AT_WORK.setdefault(run, set()).add(cancellation)
    try:
        yield cancellation
    finally:
        with _LOCK:
            _AT_WORK[run].discard(cancellation)
            if not _AT_WORK[run]:
                del _AT_WORK[run]


def run_cell(version: str, packed: bytes) -> Answer:
    """Run a pickled cell."""
    log.configure()
    if version != code_version():
        where = f"the worker on {socket.gethostname()}"
        return Failed(
            Status.MISS, f"{where} runs another version of this tool ({PROJECT}): update it, and start it again"
        )
    cell: Cell = pickle.loads(packed)
    started = time.time()
    try:
        with _cancellable(cell.run) as cancellation, artifacts_in_use(), ExitStack() as stack:
            # In a short path: the names of sockets are below it.
            folder = Path(tempfile.mkdtemp(prefix="kvm-kbuild-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            digests = [*cell.files.values(), *cell.selftests.values()]
            if absent := lacking(digests):
                return Lacks(tuple(absent))
            answer = _run(cell, folder, cancellation)
        if _KEPT.is_set():
            _KEPT.clear()
            trim(cache_limit(None), spare_since=started)
        return answer
    except KbuildError as error:
        return Failed(error.status, str(error))
    except OSError as error:
        return Failed(Status.MISS, f"{error.filename or 'the worker'}: {error.strerror}")


def _run(cell: Cell, folder: Path, cancellation: Cancellation) -> Answer:
    if missing := check(cell.spec):
        return Failed(Status.MISS, missing[0])
    files = folder / "files"
    for name, digest in [*cell.files.items(), *((f"selftests/{name}", one) for name, one in cell.selftests.items())]:
        link_or_copy(artifact(digest), files / name)
    modules = [files / name for name in cell.files if name not in (KERNEL, AGENT)]
    logs = folder / "hosts"
    logs.mkdir()
    tell = _teller(cell.run)
    request = LoadRequest(
        kernel=files / KERNEL,
        release=cell.release,
        modules=ModuleSet.of(map(read_module, modules), cell.kernel),
        orders=cell.orders,
        only=cell.only,
        hosts=(cell.spec,),
        command_line=cell.command_line,
        signatures=load_signatures(),
        agent=files / AGENT,
        rules=cell.rules,
        resources=read_rules((SHIPPED / "rules/resources.toml",)).resources,
        run=cell.run,
        folder=logs,
        again=cell.again,
        selftests=Programs({name: files / "selftests" / name for name in cell.selftests}, cell.absent),
        cancellation=cancellation,
    )
    orders = sum(MANY_RUNS if order.many else 1 for order in cell.orders)
    # The worker's other cells use the other CPUs.
    with Places(request.hosts, orders, cpus=1) as places, loading(request, _Telling(tell), places) as transcripts:
        found = transcripts()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for path in sorted(path for path in logs.rglob("*") if path.is_file()):
            packed.write(path, path.relative_to(logs))
    host = f"{describe(cell.spec)}, on {socket.gethostname()}"
    return Done(msgspec.json.encode(found), archive.getvalue(), host)


class _Telling(Silent):
    """Tells whoever waits for the cell of each order, and for whom the cell waits."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def order(self, host: str, order: str, status: Status | None, reason: str | None) -> None:
        """An order begins or ends."""
        self._tell({"host": host, "order": order, "status": status and str(status), "reason": reason})

    def waits(self, host: str, reason: str) -> None:
        """A place of a lab is not free."""
        self._tell({"host": host, "waits": reason})


def topic(run: str) -> str:
    """Under which a run's cells tell of their progress."""
    return f"kvm-kbuild {run}"


def _teller(run: str) -> Tell:
    from distributed import get_worker

    worker = get_worker()
    return lambda event: worker.log_event(topic(run), event)


def transcripts_of(done: Done) -> list[Transcript]:
    """What came back from a worker."""
    try:
        return msgspec.json.decode(done.transcripts, type=list[Transcript])
    except msgspec.MsgspecError as error:
        raise HarnessError(f"a worker's answer cannot be read: {error}") from None
