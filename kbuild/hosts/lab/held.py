"""A place for as long as a run uses it: acquired before, released after, whatever happened in between.

What a run has acquired is on record until it is released (`records.py`): after a kill the next run, or `host.restore`,
knows that it is not the user's own doing, and releases it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kbuild import log
from kbuild.errors import HarnessError, KbuildError
from kbuild.hosts.lab import coordinator
from kbuild.hosts.lab.coordinator import POLL_S, Place
from kbuild.hosts.lab.devices import as_ssh
from kbuild.hosts.lab.records import is_ours, record_of, write_record
from kbuild.hosts.spec import HostSpec, LabgridSettings
from kbuild.hosts.waiting import Waiting
from kbuild.paths import locked


@contextmanager
def held(spec: HostSpec, waiting: Waiting) -> Iterator[HostSpec]:
    """Hold the place of a host of kind `labgrid`; gives the host as one of kind `ssh`.

    A place that the user has acquired himself is used, and stays his. Entering raises HarnessError where it is not to
    be had in time, and leaving where it cannot be released.
    """
    lab = spec.labgrid
    assert lab is not None
    record = record_of(lab)
    with _alone(lab, record, waiting):
        place = coordinator.look(lab)
        ours = not place.mine or is_ours(record, place)
        if not place.mine:
            place = _acquired(lab, record, waiting)
            log.get().info("place.acquired", place=lab.place)
        elif ours:
            log.get().warning("place.left-behind", place=lab.place, by="a run that was killed")
        try:
            yield as_ssh(spec, place)
        except BaseException as error:
            left = _left(spec, lab, record) if ours else None
            if left and isinstance(error, KbuildError):
                raise HarnessError(f"{error}; {left}") from None
            raise
        if ours and (left := _left(spec, lab, record)):
            raise HarnessError(left)


def _acquired(lab: LabgridSettings, record: Path, waiting: Waiting) -> Place:
    tried = False

    def about_to() -> None:
        nonlocal tried
        tried = True
        write_record(record, lab)

    try:
        place = coordinator.acquire(lab, waiting, about_to)
        write_record(record, lab, place.changed)
    except BaseException:
        # An answer that came too late, or to nobody: it may have been given all the same.
        if tried:
            with suppress(KbuildError):
                _release(lab, record)
        raise
    return place


def seen(spec: HostSpec) -> tuple[Place, HostSpec]:
    """The place as it is, and the host as one of kind `ssh`; nothing is acquired. Raises HarnessError as `held`."""
    assert spec.labgrid is not None
    place = coordinator.look(spec.labgrid)
    return place, as_ssh(spec, place)


@contextmanager
def _alone(lab: LabgridSettings, record: Path, waiting: Waiting) -> Iterator[None]:
    """While no other run of this user's is at work in the place: to labgrid both are the same."""
    reason = f"place {lab.place} is in use by another run of yours"
    while True:
        with locked(record.with_suffix(".lock"), blocking=False) as free:
            if free:
                yield
                return
        waiting.tell(reason)
        if ended := waiting.ended(reason):
            raise HarnessError(ended)
        time.sleep(min(POLL_S, waiting.left))  # no lock tells when it gets free, and lets one stop waiting


def _release(lab: LabgridSettings, record: Path) -> Place:
    place = coordinator.release(lab)
    record.unlink(missing_ok=True)
    return place


def _left(spec: HostSpec, lab: LabgridSettings, record: Path) -> str | None:
    """Release the place after its use; gives what is wrong, for a person."""
    try:
        place = _release(lab, record)
    except (KbuildError, OSError) as error:
        return f"place {lab.place} could not be released: {error}; when that is mended: inv host.restore {spec.id}"
    if place.mine:
        log.get().info("place.released", place=lab.place)
        return None
    if place.holder is None:
        log.get().warning("place.free", place=lab.place, reason="somebody released it, or the coordinator began anew")
        return None
    return f"place {lab.place} was taken away from this run: it {place.obstacle}"
