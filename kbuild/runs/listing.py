"""Which runs there are, and when a finding was there and when not."""

from __future__ import annotations

import datetime
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kbuild.errors import UserError
from kbuild.outcome import Status
from kbuild.paths import unheld
from kbuild.record import runs_home
from kbuild.runs.index import ask

_AGE = re.compile(r"(\d+)([dh])")
FAULT = ":fault="
"""In the id of what follows from an allocation that was made to fail, before the call site."""
_NOT_FOUND = (Status.PASS, Status.SKIP)
"""Of a rule that was asked there is a finding also where it is kept."""

Row = sqlite3.Row
Key = tuple[str, str | None, str | None]
"""A run, a host and an order: where a finding was."""


@dataclass(frozen=True)
class Filter:
    """Which runs; what is given has to hold together."""

    tree: str | None = None
    """A glob for the tree as it was asked for, or for what it is."""
    verdict: str | None = None
    since: str | None = None
    """An age such as `14d` or `12h`, or a day."""
    finding: str | None = None
    """A glob for the id of a finding that the run has, and, for a rule, that it breaks."""


def list_runs(wanted: Filter) -> dict[str, Any]:
    """What `inv runs --json` prints: `runs`, newest first, and `findings` where some were asked for.

    Raises UserError for a verdict or a time that there is not.
    """
    if wanted.verdict is not None and wanted.verdict.upper() not in [*Status]:
        raise UserError(f"--verdict {wanted.verdict}: no such verdict; there are {', '.join(Status)}")
    since = _since(wanted.since) if wanted.since is not None else ""

    def question(database: sqlite3.Connection) -> dict[str, Any]:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM run ORDER BY coalesce(started, id) DESC, id DESC").fetchall()
        chosen = [row for row in rows if _fits(row, wanted, since)]
        if wanted.finding is None:
            return {"runs": [*map(_facts, chosen)]}
        runs = {row["id"]: row for row in chosen}
        histories = [
            _history(database, name, runs)
            for (name,) in database.execute("SELECT DISTINCT id FROM finding ORDER BY id").fetchall()
            if fnmatchcase(name, wanted.finding)
        ]
        histories = [one for one in histories if one["found"]]
        having = {run for one in histories for run in one["runs"]}
        return {"runs": [_facts(row) for row in chosen if row["id"] in having], "findings": histories}

    return {"folder": str(runs_home()), **ask(question)}


def _since(text: str) -> str:
    """The time in the form that records have it in."""
    now = datetime.datetime.now(datetime.UTC)
    if match := _AGE.fullmatch(text):
        hours = int(match[1]) * (24 if match[2] == "d" else 1)
        try:
            return (now - datetime.timedelta(hours=hours)).isoformat()
        except OverflowError:
            return ""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"--since {text}: write an age such as 14d or 12h, or a day such as {now:%Y-%m-%d}") from None


def _fits(row: Row, wanted: Filter, since: str) -> bool:
    """A run that cannot be read fits where nothing is asked of its contents."""
    if wanted.tree is not None and not any(fnmatchcase(row[key] or "", wanted.tree) for key in ("asked", "identity")):
        return False
    if wanted.verdict is not None and row["verdict"] != wanted.verdict.upper():
        return False
    return not since or (row["started"] or "") >= since


def _facts(row: Row) -> dict[str, Any]:
    return {
        "run": row["id"],
        "started": row["started"],
        "ended": row["ended"],
        "seconds": _seconds(row),
        "task": row["task"],
        "tree": row["asked"],
        "identity": row["identity"],
        "kernel": row["kernel"],
        "flavour": row["flavour"],
        "state": _state(row),
        "verdict": row["verdict"],
        "counting": row["counting"],
        "bytes": row["bytes"],
        "shared_bytes": row["shared"],
        "problem": row["problem"],
    }


def _seconds(row: Row) -> float | None:
    if not (row["started"] and row["ended"]):
        return None
    try:
        start, end = (datetime.datetime.fromisoformat(row[key]) for key in ("started", "ended"))
        return round((end - start).total_seconds(), 1)
    except (ValueError, TypeError):
        return None


def _state(row: Row) -> str:
    """`damaged`, `interrupted`, `stopped` (by an error, without a verdict), `ended`, `running` or `killed`."""
    if row["problem"]:
        return "damaged"
    if row["interrupted"]:
        return "interrupted"
    if row["ended"]:
        return "ended" if row["verdict"] else "stopped"
    with unheld(runs_home() / row["id"]) as free:
        return "killed" if free else "running"


def _history(database: sqlite3.Connection, name: str, runs: dict[str, Row]) -> dict[str, Any]:
    """When a finding was there, where it was looked for, and whether that was always the same."""
    rows = [row for row in database.execute("SELECT * FROM finding WHERE id = ?", (name,)) if row["run"] in runs]
    found = {(row["run"], row["host"], row["place"]): row for row in rows if row["status"] not in _NOT_FOUND}
    places = {(row["host"], row["place"]) for row in found.values()}
    looked = dict(_settings(database, found))
    for host, place in places:
        looked |= {key: how for key, how in _looked(database, name, host, place, rows) if key[0] in runs}
    groups: dict[tuple[Any, ...], list[tuple[str, bool]]] = {}
    for key, setting in looked.items():
        run, host, place = key
        groups.setdefault((runs[run]["build"], host, place, setting), []).append((run, key in found))
    together = [dict(zip(("build", "host", "order"), key, strict=False)) | _sides(some) for key, some in groups.items()]
    # What the machine fails at comes and goes with the machine.
    of_the_kernel = any(row["status"] != Status.MISS for row in found.values())
    flaky = [one for one in together if of_the_kernel and one["build"] and one["found"] and one["not_found"]]
    steady = any(one["build"] and len(one["found"]) > 1 for one in together)
    having = sorted({run for run, _, _ in found}, key=lambda run: (runs[run]["started"], run))
    asked = sorted({run for run, _, _ in looked}, key=lambda run: (runs[run]["started"], run))
    last = max(found.values(), key=lambda row: (runs[row["run"]]["started"], row["run"]), default=None)
    return {
        "id": name,
        "message": last["message"] if last else None,
        "status": last["status"] if last else None,
        "known": last["known"] if last else None,
        "found": len(having),
        "looked_for": len(asked),
        "first": _when(having[:1], runs),
        "last": _when(having[-1:], runs),
        "last_looked_for": _when(asked[-1:], runs),
        "kernels": _distinct(runs[run]["kernel"] for run in having),
        "hosts": _distinct(host for _, host, _ in found),
        "steadiness": "flaky" if flaky else "steady" if steady else "not repeated",
        "flaky": flaky,
        "runs": having[::-1],
    }


def _settings(database: sqlite3.Connection, found: Iterable[Key]) -> Iterable[tuple[Key, str]]:
    """Of where it was found, what the order was run with."""
    query = "SELECT setting FROM cell WHERE run = ? AND host IS ? AND place IS ?"
    for key in found:
        setting = database.execute(query, key).fetchone()
        yield key, setting[0] if setting else ""


def _looked(
    database: sqlite3.Connection, name: str, host: str | None, place: str | None, rows: Sequence[Row]
) -> Iterable[tuple[Key, str]]:
    """Runs in which it could have been found there: the order was judged, the stage came to its end.

    A rule that was asked has a finding in any case.
    """
    stage, kind, *_ = [*name.split(":"), ""]
    if host is not None:
        query = "SELECT run, setting FROM cell WHERE host = ? AND place IS ? AND status IN ('FAIL', 'PASS')"
        found = database.execute(query, (host, place)).fetchall()
        if site := name.partition(FAULT)[2]:
            # Only some of a sweep's runs may have been asked for.
            come_to = "SELECT run FROM site WHERE host = ? AND place IS ? AND site = ?"
            runs = {run for (run,) in database.execute(come_to, (host, place, site))}
            found = [(run, setting) for run, setting in found if run in runs]
        return [((run, host, place), setting) for run, setting in found]
    if stage == "inspect" and kind == "rule":
        return [((row["run"], host, place), "") for row in rows if row["status"] != Status.SKIP]
    query = "SELECT run FROM stage WHERE name = ? AND status IN ('FAIL', 'PASS')"
    return [((run, host, place), "") for (run,) in database.execute(query, (stage,))]


def _sides(some: Sequence[tuple[str, bool]]) -> dict[str, list[str]]:
    return {
        "found": sorted(run for run, was in some if was),
        "not_found": sorted(run for run, was in some if not was),
    }


def _when(some: Sequence[str], runs: dict[str, Row]) -> dict[str, Any] | None:
    return {"run": some[0], "started": runs[some[0]]["started"], "kernel": runs[some[0]]["kernel"]} if some else None


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value})
