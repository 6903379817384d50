"""What runs have acquired, on record until it is released: to labgrid a run and its user are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from kbuild.hosts.lab.coordinator import Place
from kbuild.hosts.spec import LabgridSettings
from kbuild.paths import make_folder, state_home, write_atomically


class Record(msgspec.Struct, frozen=True):
    """That a run has acquired a place, or was about to."""

    coordinator: str
    place: str
    changed: float = 0.0
    """When it was acquired, by the coordinator's clock; 0: the run did not come to write it down."""


def record_of(lab: LabgridSettings) -> Path:
    """The file for a place, which need not be there."""
    name = hashlib.sha256(f"{lab.coordinator} {lab.place}".encode()).hexdigest()[:16]
    return make_folder(state_home() / "places") / f"{name}.json"


def write_record(record: Path, lab: LabgridSettings, changed: float = 0.0) -> None:
    """Write it down. Raises HarnessError where that is not possible."""
    write_atomically(record, msgspec.json.encode(Record(lab.coordinator, lab.place, changed)))


def is_ours(record: Path, place: Place) -> bool:
    """Whether a run has acquired the place as it is held now. Where that is not sure it is the user's own doing."""
    try:
        changed = msgspec.json.decode(record.read_bytes(), type=Record).changed
    except (OSError, msgspec.DecodeError):
        return False
    return changed in (0.0, place.changed)
