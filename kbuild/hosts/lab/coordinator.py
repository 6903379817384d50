"""What labgrid's coordinator is asked for: who holds a place, and to acquire and release it.

Each call is a connection of its own: what was acquired stays so until it is released, whoever is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
from labgrid.remote.client import Error
from labgrid.remote.common import Place as LabPlace
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages

from kbuild.dmesg.record import escape
from kbuild.errors import HarnessError
from kbuild.hosts.lab.session import ANSWER_S, Queue, Session, connected, talk, words_of
from kbuild.hosts.spec import LabgridSettings
from kbuild.hosts.waiting import Waiting

POLL_S = 1.0
"""Between two looks at a reservation, which has to be asked for once a minute, and at who wants to stop waiting."""
BROKEN = "<broken>"
"""Who holds a resource that its exporter gave up."""


@dataclass(frozen=True)
class Resource:
    """One of a place's."""

    kind: str
    """labgrid's class: `NetworkService`."""
    name: str
    """As the place calls it."""
    params: dict[str, Any]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A place at one moment."""

    name: str
    me: str
    """Who asks, in labgrid's words: `COMPUTER/USER`."""
    holder: str | None
    """The same of whoever has acquired it."""
    changed: float
    """When it changed last, by the coordinator's clock: while it is held as a rule when it was acquired."""
    obstacle: str | None
    """Why it cannot be acquired now, for a person; None also where it is held by who asks."""
    resources: tuple[Resource, ...]

    @property
    def mine(self) -> bool:
        """Whether it is held by who asks."""
        return self.holder == self.me


def look(settings: LabgridSettings) -> Place:
    """The place as it is. Raises HarnessError where it is unknown, or the coordinator cannot be reached."""
    return talk(_look(settings), settings)


def acquire(settings: LabgridSettings, waiting: Waiting, about_to: Callable[[], None]) -> Place:
    """Acquire a place that is not held by who asks; `about_to` is called just before.

    Raises HarnessError as `look` does, and where the place was not to be had in time, or waiting was cancelled.
    """
    return talk(_acquire(settings, waiting, about_to), settings)


def release(settings: LabgridSettings) -> Place:
    """Release a place where it is held by who asks; gives who held it before that. Raises as `look` does."""
    return talk(_release(settings), settings)


async def _look(settings: LabgridSettings) -> Place:
    async with connected(settings) as session:
        return await _seen(session, settings)


async def _acquire(settings: LabgridSettings, waiting: Waiting, about_to: Callable[[], None]) -> Place:
    async with connected(settings) as session, Queue(session, settings.place) as queue:
        while True:
            session.changed.clear()
            place = await _seen(session, settings, queue.token)
            if place.obstacle is None:
                refused = await _tried(session, settings, about_to)
                place = await _seen(session, settings, queue.token)
                if refused is None:
                    return place
                if place.obstacle is None:
                    raise HarnessError(f"place {settings.place}: {refused}")
                # Somebody was faster.
            reason = f"place {settings.place} {place.obstacle}"
            waiting.tell(reason)
            if ended := waiting.ended(reason):
                raise HarnessError(ended)
            if session.stopping.is_set():
                await session.stub.GetPlaces(messages.GetPlacesRequest(), timeout=ANSWER_S)  # says why
                raise HarnessError(f"coordinator {settings.coordinator}: ended the connection")
            await queue.keep()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.changed.wait(), min(POLL_S, waiting.left))


async def _tried(session: Session, settings: LabgridSettings, about_to: Callable[[], None]) -> str | None:
    """Try it; gives why it could not be."""
    try:
        session.check_matches(session.places[settings.place])
    except Error as error:
        return f"{escape(' '.join(error.args))}; is its exporter up?"
    about_to()
    try:
        request = messages.AcquirePlaceRequest(placename=settings.place)
        await session.stub.AcquirePlace(request, timeout=ANSWER_S)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED):
            raise
        await session.sync_with_coordinator()
        return words_of(error)
    await session.sync_with_coordinator()
    return None


async def _release(settings: LabgridSettings) -> Place:
    async with connected(settings) as session:
        place = await _seen(session, settings)
        if place.mine:
            # With the name: nobody else's, who may have come in this moment.
            request = messages.ReleasePlaceRequest(placename=settings.place, fromuser=place.me)
            await session.stub.ReleasePlace(request, timeout=ANSWER_S)
        return place


async def _seen(session: Session, settings: LabgridSettings, token: str | None = None) -> Place:
    """`token`: of a reservation that is ours."""
    place = session.places.get(settings.place)
    if place is None:
        known = ", ".join(sorted(session.places)) or "none"
        raise HarnessError(f"coordinator {settings.coordinator}: no place '{settings.place}'; it has: {escape(known)}")
    return Place(
        name=place.name,
        me=session.me,
        holder=place.acquired,
        changed=place.changed,
        obstacle=None if place.acquired == session.me else await _obstacle(session, place, token),
        resources=tuple(_resources(session, place)),
    )


async def _obstacle(session: Session, place: LabPlace, token: str | None) -> str | None:
    since = f"{datetime.fromtimestamp(place.changed):%Y-%m-%d %H:%M}"
    if place.acquired:
        return f"is held by {escape(place.acquired)} since {since}"
    if place.reservation and place.reservation != token:
        every = (await session.stub.GetReservations(messages.GetReservationsRequest(), timeout=ANSWER_S)).reservations
        owner, created = next(
            ((one.owner, one.created) for one in every if one.token == place.reservation), ("somebody", place.changed)
        )
        if owner != session.me:
            return f"is reserved for {escape(owner)} since {datetime.fromtimestamp(created):%Y-%m-%d %H:%M}"
    for path, entry in _matching(session, place):
        if entry.acquired == BROKEN:
            raise HarnessError(f"place {place.name}: its resource {'/'.join(path)} is broken; its exporter knows why")
        if entry.acquired:
            return f"shares {'/'.join(path)} with place {entry.acquired}, which is held"
    return None


def _resources(session: Session, place: LabPlace) -> list[Resource]:
    found = []
    for path, entry in _matching(session, place):
        name = place.getmatch(path).rename or path[3]
        found.append(Resource(kind=entry.cls, name=name, params=entry.args, extra=dict(entry.extra or {})))
    return found


def _matching(session: Session, place: LabPlace) -> list[tuple[tuple[str, ...], Any]]:
    """The place's resources, as far as their exporters are there."""
    return [
        (path, entry)
        for exporter, groups in sorted(session.resources.items())
        for group, entries in sorted(groups.items())
        for name, entry in sorted(entries.items())
        # What is gone has no class any more.
        if "cls" in entry.data and place.hasmatch(path := (exporter, group, entry.cls, name))
    ]
