"""What all points are made from: what is on record of a series, and how one is said not to be tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kbuild.barrecord import BarRecord, Met, Patch, Point, TipRun
from kbuild.configure.conf import read_config
from kbuild.errors import UserError
from kbuild.record import Record, read_record, runs_home
from kbuild.seriesrecord import Entry, SeriesRecord

TESTS, PARAMETERS = "tests", "parameters"
"""What the runs of the last patch are for that are no flavour's."""
MAX_LINES = 6
"""Of a point; the record of the run has all."""
MAX_FILES = 3
"""That are named in a line."""


def config_of(run: str) -> Mapping[str, str]:
    """The configuration of a run's kernel. Raises UserError where it is gone."""
    path = runs_home() / run / "artifacts/config"
    try:
        return read_config(path.read_text("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


@dataclass(frozen=True)
class Evidence:
    """What the points are made from."""

    record: BarRecord
    series: SeriesRecord
    read: Callable[[str], Record] = read_record
    config: Callable[[str], Mapping[str, str]] = config_of
    """Of a run's kernel: symbols to values."""

    def entry(self, patch: str) -> Entry | None:
        """What the series says of a patch."""
        return next((one for one in self.series.entries if one.id == patch), None)

    def of(self, patch: str) -> Record | None:
        """The record of a patch's own run."""
        entry = self.entry(patch)
        return self._read(entry.run) if entry else None

    def made(self, what: str, patch: Patch) -> TipRun | None:
        """A run that was made for a purpose, or why there is none."""
        return next((one for one in self.record.runs if (one.what, one.patch) == (what, patch.id) and one.over), None)

    def run(self, what: str, patch: Patch) -> Record | None:
        """Its record."""
        found = self.made(what, patch)
        return self._read(found.run) if found else None

    def _read(self, run: str | None) -> Record | None:
        try:
            return self.read(run) if run else None
        except UserError:
            return None

    @property
    def base(self) -> Patch:
        """What the series stands on."""
        return self.record.patches[0]

    @property
    def tip(self) -> Patch:
        """The last patch that there is as a commit."""
        return commits(self.record)[-1]


def commits(record: BarRecord) -> list[Patch]:
    """The base and the patches that could be applied."""
    return [one for one in record.patches if " " not in one.id]


def own_patches(evidence: Evidence) -> list[tuple[Patch, Entry | None]]:
    """The patches that could be applied, without what they stand on."""
    return [(one, evidence.entry(one.id)) for one in commits(evidence.record) if not one.base]


def untested(point: Point, why: str) -> None:
    """It is not met, for something was not done; `why` says what, and is empty where nothing is missing."""
    if why and point.outcome in (Met.MET, Met.NOT_TESTED, Met.NO_CONCERN):
        point.outcome = Met.NOT_TESTED
        point.why = "; ".join(part for part in (point.why, why) if part)


def first_of(reasons: Sequence[str]) -> str:
    """Of the reasons why something was not tested, each a patch's, what there is room for."""
    more = f"; and {len(reasons) - 1} more of the patches" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}" if reasons else ""
