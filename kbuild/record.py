"""Runs on disk: one folder each, begun before any work and valid at every moment.

`record.json` is replaced as a whole (temporary file and rename) whenever a stage begins or ends, so
that a run that was killed says how far it came. Reports read records and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from kbuild import log
from kbuild.cpus import Cpus
from kbuild.errors import HarnessError, KbuildError, UserError, os_errors
from kbuild.outcome import Finding, Known, Status, to_json, worst
from kbuild.paths import hold_folder, link_or_copy, make_folder, state_home, write_atomically
from kbuild.toml import decode_hook
from kbuild.transcript import Transcript

FORMAT = 1
"""Raised when a reader of today could not understand a record of tomorrow."""


TRANSCRIPTS = "transcripts.jsonl"
"""In a run's folder, until its record has them all: the transcripts of the orders that came to their end."""


class Stage(msgspec.Struct, omit_defaults=True):
    """One stage of a run."""

    name: str
    status: Status | None = None
    """None while it works, or when the run ended in the middle of it."""
    seconds: float = 0.0
    summary: str = ""
    """One line for a person."""
    reason: str | None = None


class HostFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a host is, as its file says."""

    kind: str
    cpu: str
    """The model that the guest is shown; of a machine that is reached by SSH nothing."""
    cpus: int
    """As the file says, as is the memory: a machine that is reached by SSH has what it has."""
    memory_mb: int
    gives: tuple[str, ...]
    cpus_are: Cpus = Cpus.EMULATED


class Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a run's folder says."""

    format: int = msgspec.field(default_factory=lambda: FORMAT)
    """Not a default that can be left out: a later version's would be taken for ours."""
    id: str
    task: str
    command: str
    """As it can be pasted into a shell."""
    started: str
    """UTC, ISO 8601."""
    ended: str | None = None
    interrupted: str | None = None
    """The stage in which the run was interrupted."""
    error: str | None = None
    verdict: Status | None = None
    """None until the run has come to its end."""
    profile: str | None = None
    flavour: str | None = None
    """Of the profile's kernel."""
    profile_files: dict[str, str] = {}
    """What the profile was made of when it was read: name in the run's folder `profile` to SHA-256."""
    tree: dict[str, str] = {}
    """Identity of the source, or of shipped files."""
    kernel: str | None = None
    """The release that was booted."""
    artifacts: dict[str, str] = {}
    """File name to SHA-256."""
    tools: dict[str, str] = {}
    agent: str | None = None
    """SHA-256 of the program that ran on the hosts."""
    hosts: dict[str, str] = {}
    """Host id to the emulator's own version line."""
    machines: dict[str, HostFacts] = {}
    """Of the same hosts."""
    sizes: dict[str, dict[str, int]] = {}
    """Module to the bytes of its `init`, `exit`, `text` and `data`."""
    stages: list[Stage] = []
    rules: dict[str, Any] | None = None
    """How many were asked and what came out: `kbuild.elf.rules.counts`."""
    findings: list[Finding] = []
    known_not_seen: list[Known] = []
    """Declared for this kernel, looked for and not found."""
    transcripts: list[Transcript] = []
    release: dict[str, Any] | None = None
    """What the release policy came to: `kbuild.runs.release`."""
    abridged: bool = False
    """A baseline: without evidence, steps and places on a machine."""

    @property
    def kernel_file(self) -> str | None:
        """Which of the artifacts is booted; a build and a package name it differently."""
        return next((name for name in self.artifacts if name.startswith(("bzImage", "vmlinuz"))), None)


def runs_home() -> Path:
    """The folder of all runs."""
    return state_home() / "runs"


def _latest() -> Path:
    """Holds the id of the run that was begun last."""
    return state_home() / "latest-run"


def _since_boot() -> float:
    """Seconds, with those in which the computer slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Run:
    """The run that is going on: a folder and its record."""

    def __init__(self, task: str, command: str) -> None:
        self._started = now = datetime.datetime.now(datetime.UTC)
        self._clock = _since_boot()
        self._adding = threading.Lock()
        home = make_folder(runs_home())
        while True:
            # The last part is of the microseconds: in the order of their ids, the runs of one second are in order too.
            name = f"{now:%Y%m%d-%H%M%S}-{now.microsecond >> 4:04x}"
            try:
                (home / name).mkdir()
                break
            except FileExistsError:
                now += datetime.timedelta(microseconds=16)
            except OSError as error:
                raise HarnessError(f"{home / name}: cannot be made: {error.strerror}") from None
        self.record = Record(id=name, task=task, command=command, started=now.isoformat())
        self.folder = home / name
        hold_folder(self.folder, self)
        self._identity = os.stat(self.folder)
        self.record.tools = {"host": socket.gethostname(), "pid": str(os.getpid())}
        try:
            # Not by the ids alone: they come from a clock that somebody may set back.
            write_atomically(_latest(), self.record.id + "\n")
            self.save()
        except HarnessError:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            raise

    @property
    def log_file(self) -> Path:
        """Every event of the run, as JSON lines."""
        return self.folder / "log.jsonl"

    def save(self) -> None:
        """Write the record as it is now. Raises HarnessError, also where somebody took the run's folder away."""
        self._require_folder()
        write_atomically(self.folder / "record.json", msgspec.json.format(to_json(self.record), indent=1))

    def _require_folder(self) -> None:
        if not self._is_there():
            raise HarnessError(f"{self.folder}: the run's folder was removed while it was at work")

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.folder), self._identity)
        except OSError:
            return False

    @contextmanager
    def stage(self, name: str, report: Callable[[Stage], None] | None = None) -> Iterator[Stage]:
        """One stage. The block sets `status` and `summary`; what it raises is kept as the stage's reason."""
        stage = Stage(name)
        self.record.stages.append(stage)
        self.save()
        start = time.monotonic()
        try:
            with log.context(stage=name), log.timed("stage") as extra, os_errors(f"stage {name}"):
                yield stage
                extra.update(status=stage.status, summary=stage.summary)
            stage.status = stage.status or Status.DONE
        except BaseException as error:
            stage.reason = str(error) or type(error).__name__
            if isinstance(error, KbuildError):
                stage.status = None if isinstance(error, UserError) else error.status
            # What stopped the stage is worth more than that the record cannot be written, which comes up again.
            with contextlib.suppress(HarnessError):
                self._end(stage, start, report)
            raise
        self._end(stage, start, report)

    def _end(self, stage: Stage, start: float, report: Callable[[Stage], None] | None) -> None:
        stage.seconds = round(time.monotonic() - start, 3)
        if report:
            report(stage)
        self.save()

    def _now(self) -> str:
        """The time by a clock that nobody sets while the run goes on: no run ends before it began."""
        return (self._started + datetime.timedelta(seconds=_since_boot() - self._clock)).isoformat()

    def finish(self, verdict: Status) -> None:
        """The end of a run that came to its end."""
        self.record.verdict = verdict
        self.record.ended = self._now()
        self.save()
        with contextlib.suppress(OSError):
            (self.folder / TRANSCRIPTS).unlink(missing_ok=True)

    def interrupt(self) -> None:
        """The end of a run that was interrupted: what is known is kept, if the disk takes it. No verdict is given."""
        self.record.verdict = None
        self.record.interrupted = self.record.stages[-1].name if self.record.stages else "start"
        self.record.ended = self._now()
        with contextlib.suppress(HarnessError):
            self.save()

    def fail(self, error: KbuildError) -> None:
        """The end of a run that an error of the user's, the machine's or the test's stopped.

        Raises HarnessError, with both reasons, where this cannot be recorded.
        """
        self.record.error = str(error)
        self.record.ended = self._now()
        if not isinstance(error, UserError):
            self.record.verdict = worst([error.status, *(s.status for s in self.record.stages if s.status)])
        try:
            self.save()
        except HarnessError as lost:
            first = str(error).partition("\n")[0]
            raise HarnessError(first if str(lost) in first else f"{first}; and {lost}") from error

    def add(self, transcript: Transcript) -> None:
        """Keep the transcript of an order that came to its end, until the record has all of them. Threads may call it.

        One line each, at the end of a file: what a kill cuts off is the last line. Raises HarnessError.
        """
        path = self.folder / TRANSCRIPTS
        line = to_json(transcript) + b"\n"
        self._require_folder()
        try:
            with self._adding, path.open("ab", buffering=0) as file:
                while line:
                    line = line[file.write(line) :]
        except OSError as error:
            raise HarnessError(f"{path}: cannot be written: {error.strerror}") from None

    def keep(self, source: Path, name: str) -> Path:
        """Put a file into the run's folder, as `link_or_copy` does."""
        return link_or_copy(source, self.folder / name)


def read_record(run: str) -> Record:
    """The record of a run by its id, the beginning of its id, `latest`, or its folder's path; or a baseline's file.

    Raises UserError where there is none, and for one that a later version wrote.
    """
    return open_record(run)[1]


def open_record(run: str) -> tuple[Path, Record]:
    """The run's folder, and its record. `read_record` says what may name it, and what is raised.

    A baseline is a file, and stands for its folder, in which nothing is.
    """
    folder = _find(run)
    return folder, read_folder(folder)


def read_folder(folder: Path) -> Record:
    """The record that lies in a folder; of a run that did not come to its end with the orders that did.

    Keys that a later version adds to this format are passed over. Raises UserError in one line.
    """
    path = folder if folder.is_file() else folder / "record.json"
    try:
        data: Any = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a record: {error}") from None
    if not isinstance(data, dict) or not isinstance(version := data.get("format", 1), int):
        raise UserError(f"{path}: not a record: it says no format")
    if version > FORMAT:
        raise UserError(f"{path}: written by a later version of this tool; read it with that one")
    try:
        record = msgspec.convert(data, Record, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a record: {error}") from None
    if not record.transcripts:
        record.transcripts = list(_added(folder / TRANSCRIPTS))
        record.findings += [finding for one in record.transcripts for finding in one.findings]
    return record


def _added(path: Path) -> Iterator[Transcript]:
    """The transcripts that `Run.add` kept, without a line that was cut off. What was told twice counts as told last."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    found: dict[tuple[str, str], Transcript] = {}
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            one = msgspec.json.decode(line, type=Transcript)
            found[one.host, one.order] = one
    yield from found.values()


def _find(run: str) -> Path:
    if "/" in run or run == "." or run.endswith(".json"):
        return Path(run).expanduser()
    home = runs_home()
    ids = sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
    if run == "latest" and ids:
        with contextlib.suppress(OSError):
            if (last := _latest().read_text("utf-8").strip()) in ids:
                return home / last
        return home / ids[-1]
    matches = [name for name in ids if name.startswith(run)]
    if len(matches) != 1:
        why = "several runs begin so" if matches else "no such run"
        raise UserError(f"{run}: {why} in {home}; give more of the id, or 'latest'")
    return home / matches[0]
