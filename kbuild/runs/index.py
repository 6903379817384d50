"""The records of all runs in one SQLite file, to ask many at once. It can be thrown away at any time.

Records are the truth. The file is brought up to date with them before each question; one that is damaged, or of another
version, or that cannot be written, is made anew. Processes take turns with a lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from kbuild import log
from kbuild.cache.inventory import Entry, Kind, measure
from kbuild.errors import HarnessError, UserError
from kbuild.outcome import RUN_OF, Status, place_of
from kbuild.paths import cache_home, locked, unheld
from kbuild.record import TRANSCRIPTS, Record, read_folder, runs_home

T = TypeVar("T")

_LEAST_TOLD = (Status.MISS, Status.ERROR, Status.FAIL, Status.PASS, Status.DONE, Status.SKIP)

VERSION = 2
"""Raised with each change of the tables, or of what is put into them: an older file is made anew."""

_TABLES = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, stamp TEXT NOT NULL, problem TEXT, task TEXT, flavour TEXT, started TEXT, ended TEXT,
    interrupted TEXT, error TEXT, verdict TEXT, asked TEXT, identity TEXT, kernel TEXT, build TEXT,
    counting INTEGER, bytes INTEGER, shared INTEGER
);
CREATE TABLE stage (run TEXT NOT NULL, name TEXT NOT NULL, status TEXT);
CREATE TABLE cell (run TEXT NOT NULL, host TEXT NOT NULL, place TEXT NOT NULL, status TEXT NOT NULL, setting TEXT);
CREATE TABLE finding (
    run TEXT NOT NULL, id TEXT NOT NULL, status TEXT NOT NULL, known TEXT, host TEXT, place TEXT, message TEXT
);
CREATE TABLE site (run TEXT NOT NULL, host TEXT NOT NULL, place TEXT NOT NULL, site TEXT NOT NULL);
CREATE INDEX site_by_name ON site (site);
CREATE INDEX site_by_run ON site (run);
CREATE INDEX finding_by_id ON finding (id);
CREATE INDEX finding_by_run ON finding (run);
CREATE INDEX cell_by_run ON cell (run);
CREATE INDEX cell_by_place ON cell (host, place);
CREATE INDEX stage_by_run ON stage (run);
"""


def index_file() -> Path:
    """The index of these runs: whoever has another state folder has another one."""
    name = hashlib.sha256(str(runs_home().resolve()).encode()).hexdigest()[:16]
    return cache_home() / "runs" / f"{name}.sqlite"


def ask(question: Callable[[sqlite3.Connection], T]) -> T:
    """Answer a question from the index, once it has what the records say now."""
    path = index_file()
    try:
        with locked(path.with_suffix(".lock")):
            for _ in range(2):
                try:
                    return _answer(path, question)
                except sqlite3.DatabaseError as error:
                    log.get().debug("the index of runs is made anew", path=str(path), reason=str(error))
                    _remove(path)
    except (HarnessError, OSError) as error:
        log.get().debug("the index of runs cannot be kept", path=str(path), reason=str(error))
    return _answer(None, question)


def _answer(path: Path | None, question: Callable[[sqlite3.Connection], T]) -> T:
    with contextlib.closing(sqlite3.connect(path or ":memory:", isolation_level=None)) as database:
        # A power cut may damage it: then it is made anew.
        database.execute("PRAGMA synchronous = OFF")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            if version or database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise sqlite3.DatabaseError(f"version {version}")
            database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        _update(database)
        return question(database)


def _remove(path: Path) -> None:
    for one in (path, path.with_name(f"{path.name}-journal")):
        one.unlink(missing_ok=True)


def _update(database: sqlite3.Connection) -> None:
    """Take in what changed since the last time, in one transaction."""
    known = dict(database.execute("SELECT id, stamp FROM run"))
    there = dict(_stamps())
    database.execute("BEGIN IMMEDIATE")
    try:
        for gone in known.keys() - there.keys():
            _forget(database, gone)
        for name, stamp in there.items():
            if known.get(name) != stamp:
                _forget(database, name)
                _take_in(database, name, stamp)
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _stamps() -> Iterator[tuple[str, str]]:
    """Each run, and what changes whenever its record does: that is replaced as a whole."""
    home = runs_home()
    for folder in home.glob("[!.]*") if home.is_dir() else ():
        if not folder.is_dir():
            continue
        stamp = ""
        for file in (folder / "record.json", folder / TRANSCRIPTS):
            with contextlib.suppress(OSError):
                found = file.stat()
                stamp += f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns} "
        yield folder.name, stamp


def _forget(database: sqlite3.Connection, run: str) -> None:
    database.execute("DELETE FROM run WHERE id = ?", (run,))
    for table in ("stage", "cell", "finding", "site"):
        database.execute(f"DELETE FROM {table} WHERE run = ?", (run,))


def _take_in(database: sqlite3.Connection, run: str, stamp: str) -> None:
    folder = runs_home() / run
    try:
        record = read_folder(folder)
    except UserError as error:
        with unheld(folder) as ended:
            # One that is only just beginning has no record yet.
            problem = str(error) if ended else None
        usage = measure(Entry(Kind.RUNS, run, folder, ()))
        database.execute(
            "INSERT INTO run (id, stamp, problem, bytes, shared) VALUES (?, ?, ?, ?, ?)",
            (run, stamp, problem, usage.alone, sum(size for size, _, _ in usage.shared.values())),
        )
        return
    usage = measure(Entry(Kind.RUNS, run, folder, ()))
    counting = sum(one.counts for one in record.findings)
    database.execute(
        f"INSERT INTO run VALUES ({', '.join('?' * 17)})",
        (
            *(run, stamp, None, record.task, record.flavour, record.started, record.ended),
            *(record.interrupted, record.error, record.verdict, record.tree.get("asked"), record.tree.get("identity")),
            *(record.kernel, build_of(record), counting),
            *(usage.alone, sum(size for size, _, _ in usage.shared.values())),
        ),
    )
    database.executemany("INSERT INTO stage VALUES (?, ?, ?)", ((run, one.name, one.status) for one in record.stages))
    database.executemany(
        "INSERT INTO cell VALUES (?, ?, ?, ?, ?)",
        ((run, host, place, how, _setting(record, host, place)) for (host, place), how in _cells(record).items()),
    )
    database.executemany(
        "INSERT INTO finding VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (run, one.id, one.status, one.known, one.host, one.order and place_of(one.order), one.message)
            for one in record.findings
        ),
    )
    database.executemany("INSERT INTO site VALUES (?, ?, ?, ?)", ((run, *one) for one in sorted(_sites(record))))


def _sites(record: Record) -> set[tuple[str, str, str]]:
    """Hosts, places, and the call sites at which an allocation was made to fail there."""
    return {
        (one.host, place_of(one.order), site)
        for one in record.transcripts
        for step in one.steps
        if (site := step.detail.get("site"))
    }


def _cells(record: Record) -> dict[tuple[str, str], Status]:
    """Hosts and places. What is not judged in one of an order's numbered runs leaves the whole of it open."""
    found: dict[tuple[str, str], Status] = {}
    for one in record.transcripts:
        key = (one.host, place_of(one.order))
        found[key] = min(found.get(key, one.status), one.status, key=_LEAST_TOLD.index)
    return found


def build_of(record: Record) -> str | None:
    """One text for the bytes of kernel and modules: equal where all of them are the same."""
    judged = [(n, d) for n, d in sorted(record.artifacts.items()) if ".ko" in n or n == record.kernel_file]
    if not judged:
        return None
    # The kernel has another name in a package than in a build.
    return hashlib.sha256("".join(sorted(digest for _, digest in judged)).encode()).hexdigest()


def _setting(record: Record, host: str, order: str) -> str:
    """What an order was run with, besides kernel and modules: the host's program, and the files of host and order."""
    names = (f"hosts/{host}.toml", f"orders/{order.partition(RUN_OF)[0]}.toml")
    files = [record.profile_files.get(name, "") for name in names]
    return " ".join([record.hosts.get(host, ""), *files])
