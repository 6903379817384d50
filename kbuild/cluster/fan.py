"""Hands out cells over a Dask cluster's executor, and puts together what comes back."""

from __future__ import annotations

import io
import logging
import pickle
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from kbuild import log
from kbuild.build.artifacts import artifact, artifacts_in_use, put
from kbuild.cluster.address import scheduler_address
from kbuild.cluster.cell import (
    AGENT,
    KERNEL,
    Answer,
    Cell,
    Done,
    Lacks,
    cancel,
    code_version,
    keep,
    lacking,
    run_cell,
    topic,
    transcripts_of,
)
from kbuild.cluster.needs import needs, room
from kbuild.errors import HarnessError
from kbuild.hosts.spec import HostSpec, is_remote
from kbuild.load.orders.format import Order
from kbuild.load.request import LoadRequest
from kbuild.load.runner import plans_for
from kbuild.outcome import RUN_OF, Status
from kbuild.paths import make_folder
from kbuild.progress import Reporter
from kbuild.transcript import Transcript

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 10
LOOK_S = 2.0
"""Between two looks at the workers, where no cell has come to its end."""
NOBODY_S = 60.0
"""So long a cell waits while no worker has what it needs."""
TRIES = 3
"""Of a cell that is lost, or whose files are not where it is run."""


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address. Raises UserError for what is none, HarnessError where nobody answers."""
    from distributed import Client

    address = scheduler_address(address)
    # What a client says while it loses its scheduler is said in one line, by whoever waits for an answer.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError):
        raise HarnessError(f"--cluster {address}: no Dask scheduler answers there within {CONNECT_S} s") from None
    with client:
        yield client


@contextmanager
def fanned_out(
    request: LoadRequest, reporter: Reporter, client: Client
) -> Iterator[Callable[[], tuple[list[Transcript], dict[str, str]]]]:
    """As `loading()`, by other machines; what the context gives also says what ran each host.

    Where the context ends early, the workers end what they do for this run.
    """
    with artifacts_in_use(), ExitStack() as stack:
        fan = _Fan(request, reporter, client)
        client.subscribe_topic(topic(request.run), fan.told)
        stack.callback(client.unsubscribe_topic, topic(request.run))
        try:
            fan.hand_out()
            yield fan.gather
        except BaseException:
            fan.end()
            raise


@dataclass
class _Sent:
    cell: Cell
    tries: int = 0


@dataclass
class _Fan:
    request: LoadRequest
    reporter: Reporter
    client: Client
    _pending: dict[Future[Answer], _Sent] = field(default_factory=dict)
    _boots: dict[str, int] = field(default_factory=dict)
    _found: dict[tuple[str, str], list[Transcript]] = field(default_factory=dict)
    """By host and order."""
    _hosts: dict[str, str] = field(default_factory=dict)
    _nobody_since: dict[str, float] = field(default_factory=dict)
    """Hosts that no worker can run, since when."""

    def hand_out(self) -> None:
        """Cut the request into cells, and submit all of them. Raises UserError for an order with too many runs."""
        files, selftests = self._files()
        self._supply(sorted({*files.values(), *selftests.values()}))
        kernel = self.request.modules.kernel
        for spec, orders in cut(self.request, self._room):
            cell = Cell(
                spec=spec,
                orders=orders,
                only={order.id: self.request.only.get(order.id, ()) for order in orders},
                again=self.request.again,
                command_line=self.request.command_line,
                rules=self.request.rules,
                run=self.request.run,
                release=self.request.release,
                kernel=kernel and msgspec.structs.replace(kernel, btf=None),
                files=files,
                selftests=selftests,
                absent=self.request.selftests.absent,
            )
            self._submit(_Sent(cell))

    def _files(self) -> tuple[dict[str, str], dict[str, str]]:
        request = self.request
        paths = {KERNEL: request.kernel, AGENT: request.agent}
        paths |= {image.path.name: image.path for image in request.modules.modules.values()}
        return (
            {name: put(path) for name, path in paths.items()},
            {name: put(path) for name, path in request.selftests.files.items()},
        )

    def _supply(self, digests: Sequence[str]) -> None:
        """Send each worker those of some files that it lacks. What did not come to one, it says when it has a cell."""
        lacks = self.client.run(lacking, digests, on_error="return")
        for digest in digests:
            workers = [one for one, some in lacks.items() if not isinstance(some, Exception) and digest in some]
            if workers:
                data = artifact(digest).read_bytes()
                log.get().info("cluster.sent", digest=digest, bytes=len(data), workers=workers)
                for worker, error in self.client.run(keep, data, workers=workers, on_error="return").items():
                    if error is not None:
                        log.get().warning("cluster.not-kept", digest=digest, worker=worker, reason=str(error))

    def _submit(self, sent: _Sent) -> None:
        executor: Executor = self.client.get_executor(resources=needs(sent.cell.spec), pure=False)
        future = executor.submit(run_cell, code_version(), pickle.dumps(sent.cell))
        self._pending[future] = sent

    # What comes back.

    def told(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """A worker's word on an order: the same calls that a local run makes."""
        _, one = event
        if "waits" in one:
            self.reporter.waits(str(one["host"]), str(one["waits"]))
            return
        status = one.get("status")
        self.reporter.order(str(one["host"]), str(one["order"]), status and Status(status), one.get("reason"))

    def gather(self) -> tuple[list[Transcript], dict[str, str]]:
        """Wait for all cells; the transcripts, hosts and orders as they were asked for, and what ran each host."""
        while self._pending:
            over, _ = wait(self._pending, LOOK_S, FIRST_COMPLETED)
            for future in over:
                self._take(future, self._pending.pop(future))
            if not over:
                self._look()
        found = [
            transcript
            for spec in self.request.hosts
            for order in self.request.orders
            for transcript in self._found.get((spec.id, order.id), ())
        ]
        return found, self._hosts

    def _take(self, future: Future[Answer], sent: _Sent) -> None:
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        cell = sent.cell
        try:
            answer = future.result()
        except KilledWorker as error:
            died = f"each worker that ran it died, the last one was {error.last_worker.address}"
            self._give_up(cell, Status.MISS, died)
        except (CancelledError, FutureCancelledError):
            self._again(sent, "the scheduler dropped it")
        else:
            if isinstance(answer, Done):
                self._keep(cell, answer)
            elif isinstance(answer, Lacks):
                self._again(sent, "the worker does not keep the files that it is given", answer.digests)
            else:
                self._give_up(cell, answer.status, answer.reason)

    def _again(self, sent: _Sent, why: str, digests: Sequence[str] = ()) -> None:
        if self.client.status != "running":
            raise HarnessError("the Dask scheduler went away while cells were at work")
        sent.tries += 1
        if sent.tries > TRIES:
            self._give_up(sent.cell, Status.MISS, f"given up after {TRIES} times: {why}")
            return
        log.get().info("cell.again", host=sent.cell.spec.id, reason=why)
        self._supply(digests)
        self._submit(sent)

    def _keep(self, cell: Cell, done: Done) -> None:
        """A cell's boots get numbers behind those that its host has in this run."""
        host = cell.spec.id
        self._hosts[host] = done.host
        numbers = _unpack(done.folder, self.request.folder, host, self._boots)
        for one in transcripts_of(done):
            boot = numbers.get(one.boot, one.boot)
            self._note(msgspec.structs.replace(one, boot=boot, folder=moved(one.folder, host, boot)))

    def _note(self, transcript: Transcript) -> None:
        order, _, _ = transcript.order.partition(RUN_OF)
        self._found.setdefault((transcript.host, order), []).append(transcript)
        self.request.keep(self.request.known(transcript))

    def _give_up(self, cell: Cell, status: Status, reason: str) -> None:
        for order in cell.orders:
            self.reporter.order(cell.spec.id, order.id, status, reason)
            self._note(
                Transcript(
                    host=cell.spec.id,
                    order=order.id,
                    title=order.title,
                    status=status,
                    reason=reason,
                    boot=0,
                    reproduce=cell.again(cell.spec.id, order.id),
                )
            )

    # The workers.

    def _room(self, spec: HostSpec) -> int:
        return room(self._workers(), needs(spec))

    def _workers(self) -> list[tuple[int, Mapping[str, float]]]:
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return [(one["nthreads"], one["resources"]) for one in workers]

    def _look(self) -> None:
        """Give up what waits for a worker that there is not."""
        if self.client.status != "running":
            raise HarnessError("the Dask scheduler went away while cells were at work")
        workers, now = self._workers(), time.monotonic()
        for future, sent in [*self._pending.items()]:
            spec = sent.cell.spec
            wanted = ", ".join(needs(spec)) or "a CPU"
            if room(workers, needs(spec)):
                self._nobody_since.pop(spec.id, None)
            elif spec.id not in self._nobody_since:
                self._nobody_since[spec.id] = now
                log.get().warning("cell.waits", host=spec.id, needs=wanted, workers=len(workers))
            elif now - self._nobody_since[spec.id] > NOBODY_S:
                del self._pending[future]
                future.cancel()
                reason = f"none of the cluster's {len(workers)} workers has {wanted}: inv worker starts one that has"
                self._give_up(sent.cell, Status.MISS, reason)

    def end(self) -> None:
        """Nothing of this run goes on: neither here nor on a worker."""
        for future in self._pending:
            future.cancel()
        if self.client.status == "running":
            self.client.run(cancel, self.request.run)


def cut(request: LoadRequest, room: Callable[[HostSpec], int]) -> Iterator[tuple[HostSpec, tuple[Order, ...]]]:
    """Hosts with some of the orders each, the slowest hosts first.

    As many cells for a host as can be at work at once, so that one boot serves more than one order; each order that is
    run in many ways is a cell of its own, and all orders of a machine of its own are one: it is taken once.
    """
    for spec in sorted(request.hosts, key=lambda spec: -(spec.limits.usual_boot_s or 0)):
        plans_for(request, spec)
        if is_remote(spec):
            yield spec, request.orders
            continue
        yield from ((spec, (order,)) for order in request.orders if order.many)
        single = [order for order in request.orders if not order.many]
        count = min(len(single), max(1, room(spec)))
        yield from ((spec, tuple(single[start::count])) for start in range(count))


def moved(folder: str | None, host: str, boot: int) -> str | None:
    """Where the logs of a boot are that got another number here, be they of the boot or of a copy of its machine."""
    if not folder:
        return None
    inside = [part for part in PurePosixPath(folder).parts[2:] if part != ".."]
    return "/".join([host, f"boot-{boot}", *inside])


def _unpack(archive: bytes, into: Path, host: str, boots: dict[str, int]) -> dict[int, int]:
    """The boots' folders of a cell, behind those that are there; their numbers there, to their numbers here.

    Raises HarnessError for what is no such archive, or does not fit on the disk.
    """
    numbers: dict[int, int] = {}
    aside = make_folder(into) / f".{host}"
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            packed.extractall(aside)  # below it, whatever the names say
        for folder in sorted((aside / host).glob("boot-*"), key=lambda path: int(path.name.removeprefix("boot-"))):
            boots[host] = boots.get(host, 0) + 1
            numbers[int(folder.name.removeprefix("boot-"))] = boots[host]
            shutil.move(folder, make_folder(into / host) / f"boot-{boots[host]}")
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError) as error:
        raise HarnessError(f"the logs of a worker cannot be kept below {into}: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return numbers
