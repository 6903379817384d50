"""What became of a series that was held against the maintainers' bar, on disk: one file, replaced as a whole."""

from __future__ import annotations

import datetime
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

from kbuild import log
from kbuild.cpus import Cpus
from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, to_json
from kbuild.paths import make_folder, state_home, write_atomically
from kbuild.seriesrecord import read_file

FORMAT = 1
FILE = "bar.json"
_ENDING = "-bar"
"""Of an id."""
TRIED, NOT_TRIED = "tried: ", "not tried: "
"""How the point of the parameters says which of them were."""
LEAST = {"KVM_INTEL": "m", "KVM_AMD": "m", "KVM_WERROR": "y"}
"""Symbols, and the values that each patch has to build with at the very least."""


class Met(StrEnum):
    """What came of a point."""

    MET = "met"
    NOT_MET = "not met"
    NOT_TESTED = "not tested"
    NO_CONCERN = "no concern"
    """The series changes nothing that it is about."""
    YOURS = "yours to say"
    """No tool can tell."""


class Patch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A commit of the series, or what it stands on."""

    id: str
    """Its full id; of a patch that does not apply `patch 3`."""
    subject: str
    base: bool = False
    fixes: bool = False
    """Whether it says `Fixes:`."""


class BuildOutcome(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One patch, built in one configuration with one compiler."""

    patch: str
    build: str
    """The configuration's name in the profile."""
    compiler: str
    """`gcc` or `clang`."""
    status: Status
    """SKIP: there is no such configuration, or no such compiler."""
    seconds: float = 0.0
    reason: str | None = None
    findings: list[Finding] = []
    files: dict[str, str] = {}
    """Modules by SHA-256."""
    values: dict[str, str] = {}
    """Of the symbols that the profile wants to know of."""
    folder: str = ""
    """With `build.log` and `reproduce.sh`."""


class Parameter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A module parameter that a touched file defines."""

    module: str
    """By its file's name, `kvm-intel`; empty where no module that was built has that file."""
    name: str
    kind: str
    """As the source declares it: `bool`, `int`, or the name of its operations."""
    file: str
    gone: bool = False
    """The last patch does not have it any more."""
    absent: bool = False
    """The kernel that is loaded does not have it: it is compiled in another configuration only."""
    values: tuple[str | int, ...] = ()
    """That were tried."""

    @property
    def full(self) -> str:
        """As the kernel's command line has it."""
        return f"{self.module.replace('-', '_')}.{self.name}" if self.module else self.name


class Area(msgspec.Struct, frozen=True, omit_defaults=True):
    """Files that ask for more, and the ones of the series that are among them."""

    name: str
    files: tuple[str, ...]
    orders: tuple[str, ...]
    """Ids, `ORDER` or `ORDER@RUN`."""
    must: bool = False


class Touched(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the series changes, from its diff."""

    files: tuple[str, ...] = ()
    areas: tuple[Area, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    docs: tuple[str, ...] = ()
    """Files of `Documentation/` that end in `.rst`."""
    tests: tuple[str, ...] = ()
    """Files of KVM's selftests that there are with the last patch."""


class TipRun(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A gate of the last patch, or of the base, with orders that take long."""

    what: str
    """`tests`, `parameters`, or a flavour's name."""
    patch: str
    run: str | None = None
    over: bool = False
    reason: str | None = None
    """Why there is none."""


class UnitTests(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What KVM-unit-tests said."""

    reason: str | None = None
    """Why they were not run, or not to their end."""
    commit: str = ""
    """Of their own repository."""
    passed: int = 0
    skipped: int = 0
    failed: list[str] = []


class Docs(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What `make htmldocs` said of the folders of the changed files."""

    reason: str | None = None
    """Why it was not made."""
    folders: tuple[str, ...] = ()
    sphinx: str = ""
    before: list[str] = []
    """Warnings with the base."""
    new: list[str] = []
    """With the last patch, and not with the base."""


class Point(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One thing that the maintainers ask for."""

    id: str
    title: str
    outcome: Met
    why: str = ""
    lines: list[str] = []
    must: bool = False
    """Whether the exit status says so where it was not tested."""
    patches: list[str] = []
    """That are to blame."""


class Host(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the modules were loaded."""

    id: str
    emulator: str
    cpu: str
    gives: tuple[str, ...]
    cpus_are: Cpus = Cpus.EMULATED
    passed: int = 0
    """Orders of the last patch."""
    orders: int = 0
    """Of them those that were not skipped."""
    tests_passed: int = 0
    tests_failed: int = 0
    tests_skipped: int = 0
    tests_unjudged: int = 0
    """For the host or the test failed, or nobody has seen the test pass there."""


class BarRecord(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the file says."""

    format: int = msgspec.field(default_factory=lambda: FORMAT)
    """Not a default that can be left out: a later version's would be taken for ours."""
    id: str
    key: str
    """Equal for equal questions."""
    command: str
    source: str
    """What was asked for, for a person."""
    profile: str
    started: str
    ended: str | None = None
    verdict: Status | None = None
    tree: str = ""
    """The repository that has the commits."""
    base_from: str = ""
    """What says what the series stands on."""
    kernel: str = ""
    """The base's version."""
    patches: list[Patch] = []
    titles: dict[str, str] = {}
    """Of the builds, by name."""
    musts: list[str] = []
    """The builds without which the bar is not met."""
    tests: list[str] = []
    """Orders of selftests that the last patch is to pass."""
    areas: list[str] = []
    """Names of the profile's."""
    flavours: list[str] = []
    """Other kernels that the last patch is to be loaded with."""
    touched: Touched | None = None
    tools: dict[str, str] = {}
    """Compilers and linker: what they say of themselves."""
    builds: list[BuildOutcome] = []
    series: str | None = None
    """The id of the series that judged each patch, once it has come to its end."""
    runs: list[TipRun] = []
    units: UnitTests | None = None
    docs: Docs | None = None
    hosts: list[Host] = []
    points: list[Point] = []


class Bar:
    """One that is going on, and its file."""

    def __init__(self, record: BarRecord) -> None:
        self.record = record
        self.folder = bar_home() / record.id

    def save(self) -> None:
        """Write it as it is now."""
        write_atomically(self.folder / FILE, msgspec.json.format(to_json(self.record), indent=1))

    def finish(self, verdict: Status) -> None:
        """The end."""
        self.record.verdict = verdict
        self.record.ended = datetime.datetime.now(datetime.UTC).isoformat()
        self.save()


def shown(text: str) -> str:
    """Text that came from a patch or a guest, as one line for a terminal."""
    return "".join(one if one.isprintable() else "?" for one in text)


def short(name: str) -> str:
    """A patch's id as it is shown."""
    return name if " " in name else name[:12]


def least_asked() -> str:
    """`LEAST`, as it is shown."""
    return " ".join(f"{name}={value}" for name, value in LEAST.items())


def bar_home() -> Path:
    """The folder of all of them."""
    return state_home() / "bars"


def begin(fresh: BarRecord) -> Bar:
    """One that was begun with the same key and did not come to its end, or a new one."""
    home = make_folder(bar_home())
    for path in sorted(home.glob(f"*/{FILE}"), reverse=True):
        with suppress(UserError):
            record = read_file(path, BarRecord, FORMAT)
            if record.key == fresh.key and record.ended is None and record.patches == fresh.patches:
                log.get().warning("going on with one that did not come to its end", bar=record.id)
                return Bar(record)
    now = datetime.datetime.now(datetime.UTC)
    fresh.id, fresh.started = f"{now:%Y%m%d-%H%M%S}-{now.microsecond >> 4:04x}{_ENDING}", now.isoformat()
    bar = Bar(fresh)
    make_folder(bar.folder)
    bar.save()
    return bar


def is_bar(name: str) -> bool:
    """Whether it is the id of one, or the folder of one."""
    return name.endswith(_ENDING) or (Path(name).expanduser() / FILE).is_file()


def read_bar(name: str) -> BarRecord:
    """The one of that id, or in that folder. Raises UserError where there is none, or it cannot be read."""
    folder = bar_home() / name if name.endswith(_ENDING) and "/" not in name else Path(name).expanduser()
    return read_file(folder / FILE, BarRecord, FORMAT)
