"""A connection to labgrid's coordinator, made with the client that labgrid itself has."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Coroutine
from functools import cache
from typing import Any, TypeVar

import grpc
from labgrid.driver import ExecutionError
from labgrid.remote.client import ClientSession, Error
from labgrid.remote.common import ReservationState
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.remote.generated.labgrid_coordinator_pb2_grpc import CoordinatorStub
from labgrid.util.proxy import proxymanager

from kbuild.dmesg.record import escape
from kbuild.errors import HarnessError
from kbuild.hosts.spec import LabgridSettings

T = TypeVar("T")

PORT = 20408
"""labgrid's own."""
ANSWER_S = 20.0
"""For an answer of the coordinator; an exporter may take ten to give a resource."""
END_S = 2.0
"""For the thread that talks, when this process ends."""
CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    # As labgrid has them: a coordinator that goes away without a word is missed after some 20 s.
    *(("grpc.keepalive_time_ms", 7500), ("grpc.keepalive_timeout_ms", 10000)),
    *(("grpc.http2.ping_timeout_ms", 10000), ("grpc.http2.max_pings_without_data", 0)),
)


class Session(ClientSession):  # type: ignore[misc]
    """A connection that tells when a place or a resource has changed."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.changed = asyncio.Event()
        # The coordinator tells clients apart by their connections, and gRPC lets channels to one address share theirs.
        self._unused: grpc.aio.Channel = self.channel
        self.channel: grpc.aio.Channel = grpc.aio.insecure_channel(self.address, options=CHANNEL)
        self.stub = CoordinatorStub(self.channel)

    async def close(self) -> None:
        await super().close()
        await self._unused.close()

    async def on_place_changed(self, place_pb2: Any) -> None:
        await super().on_place_changed(place_pb2)
        self.changed.set()

    async def on_resource_changed(self, exporter: Any, group_name: Any, resource_name: Any, resource: Any) -> None:
        await super().on_resource_changed(exporter, group_name, resource_name, resource)
        self.changed.set()

    @property
    def me(self) -> str:
        """As labgrid's own client calls who asks."""
        return f"{self.gethostname()}/{self.getuser()}"


@contextlib.asynccontextmanager
async def connected(settings: LabgridSettings) -> AsyncIterator[Session]:
    address = proxymanager.get_grpc_address(settings.coordinator, default_port=PORT)
    session = Session(address, asyncio.get_running_loop())
    try:
        # A plain question first: it says why there is no answer, which the stream of changes keeps to itself.
        await session.stub.GetPlaces(messages.GetPlacesRequest(), timeout=ANSWER_S)
        try:
            async with asyncio.timeout(ANSWER_S):
                await session.start()
            yield session
        finally:
            await session.stop()
    finally:
        await session.close()


def talk(work: Coroutine[Any, Any, T], settings: LabgridSettings) -> T:
    """Do it, with labgrid's errors as ours."""
    # Without a handler labgrid's first message would make one, on standard error.
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    try:
        return asyncio.run_coroutine_threadsafe(work, _loop()).result()
    except grpc.aio.AioRpcError as error:
        raise HarnessError(f"coordinator {settings.coordinator}: {words_of(error)}") from None
    except TimeoutError:
        raise HarnessError(f"coordinator {settings.coordinator}: no answer within {ANSWER_S:.0f} s") from None
    except (Error, ExecutionError) as error:  # the latter from ssh to LG_PROXY
        raise HarnessError(f"coordinator {settings.coordinator}: {escape(' '.join(map(str, error.args)))}") from None


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all threads: with several in a process gRPC loses events, or hands them to a loop that was closed."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="labgrid", daemon=True)
    thread.start()

    def end() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_S)

    atexit.register(end)
    return loop


def words_of(error: grpc.aio.AioRpcError) -> str:
    """What it says, in one line."""
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {ANSWER_S:.0f} s"
    said = escape(" ".join((error.details() or error.code().name).split()))
    return f"cannot be reached: {said}" if error.code() == grpc.StatusCode.UNAVAILABLE else said


class Queue:
    """Stands in labgrid's queue for a place, once `keep` was called; leaving the context leaves the queue.

    A reservation that nobody asks for is forgotten by the coordinator after a minute or two.
    """

    def __init__(self, session: Session, place: str) -> None:
        self._session = session
        self._place = place
        self.token: str | None = None

    async def __aenter__(self) -> Queue:
        return self

    async def keep(self) -> None:
        """Begin to stand there, or go on."""
        if self.token is None or not await self._stands(self.token):
            filters = {"main": messages.Reservation.Filter(filter={"name": self._place})}
            request = messages.CreateReservationRequest(filters=filters, prio=0.0)
            answer = await self._session.stub.CreateReservation(request, timeout=ANSWER_S)
            self.token = answer.reservation.token

    async def _stands(self, token: str) -> bool:
        """Not where the coordinator has begun anew, or this process was stopped for more than a minute."""
        request = messages.PollReservationRequest(token=token)
        try:
            answer = await self._session.stub.PollReservation(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return False
        return ReservationState(answer.reservation.state) not in (ReservationState.expired, ReservationState.invalid)

    async def __aexit__(self, *_: object) -> None:
        if self.token is not None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = messages.CancelReservationRequest(token=self.token)
                await self._session.stub.CancelReservation(request, timeout=ANSWER_S)
