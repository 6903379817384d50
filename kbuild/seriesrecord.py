"""A series on disk: one file, replaced as a whole after each step, so that a series that was killed can go on."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kbuild import log
from kbuild.errors import UserError
from kbuild.outcome import Status, to_json, worst
from kbuild.paths import locked, make_folder, state_home, write_atomically

FORMAT = 1
FILE = "series.json"
_ENDING = "-series"
"""Of an id."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Entry(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A commit, or a version of a package."""

    id: str
    """A commit's full id, or `PACKAGE=VERSION`."""
    subject: str
    base: bool = False
    """What the series stands on: it is judged to be compared with, and to blame for nothing."""
    kind: str = ""
    """Of a package its name without the version: it is held against those of its kind alone."""
    run: str | None = None
    """The id of its run, from the moment at which it began."""
    verdict: Status | None = None
    """The run's; None until it has come to its end."""
    status: Status | None = None
    """What counts for the series: what it is to blame for, not what was there before it."""
    same_as: str | None = None
    """The entry whose modules are the same, and whose inspection and loads stand for its own."""
    blamed: list[str] = []
    """Ids of findings that count, and that the one before it does not have."""
    mended: list[str] = []
    """Ids of findings that counted in the one before it, and are gone."""
    cells: dict[str, Status] = {}
    """The outcome of each stage, and of the orders on each host (`HOST`)."""
    changes: dict[str, Any] | None = None
    """What differs in the modules and slab caches, against the one before it: `kbuild.runs.objects`."""
    reason: str | None = None
    """Why there is no run, or no verdict, or what got worse without a finding that blames it."""
    evidence: list[str] = []
    """Lines that show it: the rejected hunks of a patch that does not apply, all that got worse."""

    @property
    def name(self) -> str:
        """Its id, short enough for a line or a table."""
        return self.id[:12] if _COMMIT.fullmatch(self.id) else self.id

    @property
    def over(self) -> bool:
        """Whether nothing is left to be done for it."""
        return self.status is not None


class SeriesRecord(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a series' file says."""

    format: int = msgspec.field(default_factory=lambda: FORMAT)
    """Not a default that can be left out: a later version's would be taken for ours."""
    id: str
    key: str
    """Equal for equal questions: the same commits, judged by the same profile in the same way."""
    command: str
    source: str
    """What was asked for, for a person: `v6.1..HEAD of ~/linux`."""
    started: str
    ended: str | None = None
    verdict: Status | None = None
    entries: list[Entry] = []


_Kind = TypeVar("_Kind", bound=msgspec.Struct)


class _Format(msgspec.Struct):
    format: int = 1
    """The first versions did not write theirs."""


def series_home() -> Path:
    """The folder of all series."""
    return state_home() / "series"


class Series:
    """A series that is going on, and its file."""

    def __init__(self, record: SeriesRecord) -> None:
        self.record = record
        self.folder = series_home() / record.id

    def save(self) -> None:
        """Write it as it is now."""
        write_atomically(self.folder / FILE, msgspec.json.format(to_json(self.record), indent=1))

    def finish(self) -> None:
        """The end, and the verdict: that of the entries but for what was there before them."""
        self.finish_as(worst(one.status for one in self.record.entries if one.status and not one.base))

    def finish_as(self, verdict: Status) -> None:
        """The end, with that verdict."""
        self.record.verdict = verdict
        self.record.ended = _now()
        self.save()


def key_of(parts: Sequence[str]) -> str:
    """A digest of all that makes two series the same."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def begin(key: str, command: str, source: str, entries: list[Entry]) -> Series:
    """A series that was begun with the same key and did not come to its end, or a new one.

    The key tells of the entries, too: a bisect has other ones by the time at which it is killed.
    """
    home = make_folder(series_home())
    for record in _all(home):
        if record.key == key and record.ended is None:
            log.get().warning("going on with a series that did not come to its end", series=record.id)
            return Series(record)
    now = datetime.datetime.now(datetime.UTC)
    record = SeriesRecord(
        id=f"{now:%Y%m%d-%H%M%S}-{now.microsecond >> 4:04x}{_ENDING}",
        key=key,
        command=command,
        source=source,
        started=now.isoformat(),
        entries=entries,
    )
    series = Series(record)
    make_folder(series.folder)
    series.save()
    return series


def holding(key: str) -> Any:
    """A lock on all series of this key: two at once would each write what the other one has."""
    return locked(make_folder(series_home()) / f"{key}.lock", blocking=False)


def is_series(name: str) -> bool:
    """Whether it is the id of a series, or the folder of one."""
    return name.endswith(_ENDING) or (Path(name).expanduser() / FILE).is_file()


def read_series(name: str) -> SeriesRecord:
    """The series of that id, or in that folder. Raises UserError where there is none, or it cannot be read."""
    folder = series_home() / name if name.endswith(_ENDING) and "/" not in name else Path(name).expanduser()
    return read_file(folder / FILE, SeriesRecord, FORMAT)


def _all(home: Path) -> Iterator[SeriesRecord]:
    """Newest first; what cannot be read is passed over."""
    for path in sorted(home.glob(f"*/{FILE}"), reverse=True):
        with suppress(UserError):
            yield read_file(path, SeriesRecord, FORMAT)


def read_file(path: Path, kind: type[_Kind], newest: int) -> _Kind:
    """The record in a file that says its format, of which `newest` is the last that can be read.

    Raises UserError in one line; keys that a later version adds to this format are passed over.
    """
    try:
        data = path.read_bytes()
        if msgspec.json.decode(data, type=_Format).format > newest:
            raise UserError(f"{path}: written by a later version of this tool; read it with that one")
        return msgspec.json.decode(data, type=kind)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no record of this tool: {error}") from None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()
