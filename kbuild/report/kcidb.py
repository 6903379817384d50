"""A run as KCIDB's JSON, schema 5.3 (https://docs.kernelci.org/kcidb/): a checkout, a build, tests, issues, incidents.

Each order on each host is a test, and each answer to a rule. Known findings are issues, with incidents where they came.
Nothing is sent anywhere; files have no addresses, so none are named.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbuild.errors import UserError
from kbuild.outcome import Finding, Status, to_json, worst
from kbuild.report import clean, gist

if TYPE_CHECKING:
    from kbuild.record import Record
    from kbuild.transcript import Transcript

ORIGIN = "kvm_kbuild"
"""Who sends it; KCIDB's maintainers give everyone who does a name."""
MAX_EXCERPT = 16384
"""Characters, by the schema."""
_LINES = 100
_LEVEL = 3
Data = dict[str, Any]


def render_kcidb(record: Record, folder: Path, origin: str = ORIGIN) -> str:
    """The report as JSON. Raises UserError for an origin that KCIDB does not take."""
    return to_json(kcidb(record, folder, origin)).decode() + "\n"


def kcidb(record: Record, folder: Path, origin: str = ORIGIN) -> Data:
    """The report as data."""
    if not re.fullmatch(r"[a-z0-9_]+", origin):
        raise UserError(f"--origin {origin}: small letters, digits and _ only")
    tests = [*_stage_tests(record), *_rule_tests(record), *_order_tests(record)]
    if (more := gist.unexplained(record, worst(Status(test["status"]) for test in tests))) is not None:
        tests.append(_test("verdict", more[0], more[1], 0))
    for test in tests:
        test |= {"id": f"{origin}:{record.id}/{test['id']}", "build_id": _build_id(record, origin), "origin": origin}
        test.setdefault("start_time", record.started)
    data = {
        "version": {"major": 5, "minor": _LEVEL},
        "checkouts": [_checkout(record, folder, origin)],
        "builds": [_build(record, origin)],
        "tests": tests,
        "issues": [*_issues(record, origin)],
        "incidents": [*_incidents(record, origin)],
    }
    cleaned: Data = _cleaned(data)
    return cleaned


def unjudged(name: str, why: str, where: str, origin: str = ORIGIN) -> Data:
    """The report on a source that there is no run of: `where` tells it from others of the same name."""
    digest = hashlib.sha256(f"{where}\n{name}".encode()).hexdigest()[:40]
    checkout = {"id": f"{origin}:{digest}", "origin": origin, "comment": clean.one_line(f"{name}: {why}")}
    data: Data = _cleaned({"version": {"major": 5, "minor": _LEVEL}, "checkouts": [{**checkout, "valid": False}]})
    return data


def _cleaned(data: Any) -> Any:
    """The schema takes no NUL anywhere, and nobody a control character; lines stay lines."""
    if isinstance(data, dict):
        return {clean.visible(key): _cleaned(value) for key, value in data.items()}
    if isinstance(data, list):
        return [*map(_cleaned, data)]
    return "\n".join(map(clean.visible, data.split("\n"))) if isinstance(data, str) else data


def _checkout(record: Record, folder: Path, origin: str) -> Data:
    commit = record.tree.get("commit", "")
    data = {
        "id": _checkout_id(record, origin),
        "origin": origin,
        "comment": clean.one_line(" ".join(part for part in (gist.asked(record), gist.identity(record)) if part)),
        "start_time": record.started,
        "valid": any(stage.name in ("tree", "files") and stage.status == Status.DONE for stage in record.stages),
        "misc": {key: value for key, value in record.tree.items() if key != "source"},
    }
    if re.fullmatch(r"[0-9a-f]{40}", commit.partition(" ")[0]):
        data["git_commit_hash"] = commit.partition(" ")[0]
        data["patchset_hash"] = _patches(folder)
    return data


def _patches(folder: Path) -> str:
    """As KCIDB says: of the digests of what was changed in the checkout, and of all patches on top, in this order."""
    files = [folder / "tree.patch", *sorted((folder / "patches").glob("*"))]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest() if digests else ""


def _checkout_id(record: Record, origin: str) -> str:
    """One for the same source, or the same shipped files, in each run."""
    what = "\n".join(f"{key}={value}" for key, value in sorted(record.tree.items()) if key not in ("asked", "source"))
    shipped = "" if "version" in record.tree else "\n".join(sorted(record.artifacts.values()))
    return f"{origin}:{hashlib.sha256((what + shipped).encode()).hexdigest()[:40]}"


def _build_id(record: Record, origin: str) -> str:
    return f"{origin}:{record.id}"


def _build(record: Record, origin: str) -> Data:
    data: Data = {
        "id": _build_id(record, origin),
        "checkout_id": _checkout_id(record, origin),
        "origin": origin,
        "architecture": "x86_64",
        "start_time": record.started,
        "misc": {"kernel": record.kernel, "sha256": record.artifacts},
    }
    stage = next((one for one in gist.stages(record) if one.stage.name == "build"), None)
    if stage is None:
        return data | {"comment": "not built: the files were given"}
    data |= {"status": str(stage.status), "duration": stage.stage.seconds}
    data["comment"] = clean.one_line(stage.stage.reason or stage.stage.summary)
    data |= {"compiler": record.tools.get("gcc", record.tools.get("clang", "")), "config_name": _config(record)}
    if stage.found:
        data["log_excerpt"] = _excerpt(line for one in stage.found for line in (one.message, *one.evidence))
    return data


def _config(record: Record) -> str:
    profile = Path(record.profile).stem if record.profile else ""
    return f"{profile}:{record.flavour}" if record.flavour else profile


def _test(name: str, status: Status, comment: str, seconds: float, path: str = "") -> Data:
    """`name`: unique in the run."""
    data: Data = {"id": name, "path": path or f"{ORIGIN}.{name}", "status": str(status)}
    if comment:
        data["comment"] = clean.one_line(comment)
    return data | ({"duration": seconds} if seconds else {})


def _stage_tests(record: Record) -> Iterator[Data]:
    for one in gist.stages(record):
        if one.stage.name != "build":
            test = _test(one.stage.name, one.status, one.said or one.stage.summary, one.stage.seconds)
            if one.found:
                test["log_excerpt"] = _excerpt(line for each in one.found for line in (each.message, *each.evidence))
            yield test


def _rule_tests(record: Record) -> Iterator[Data]:
    for one in gist.rule_findings(record):
        path = f"{ORIGIN}.rules.{_part(one.module)}.{_part(gist.rule_name(one))}"
        test = _test(_rule_id(one), one.status, one.message, 0, path)
        if one.witness:
            test["log_excerpt"] = _excerpt(one.witness)
        yield test


def _rule_id(finding: Finding) -> str:
    return f"rules/{_part(finding.module)}/{clean.one_line(gist.rule_name(finding)).replace(' ', '/')}"


def _order_tests(record: Record) -> Iterator[Data]:
    for one in record.transcripts:
        path = f"{ORIGIN}.load.{_part(one.host)}.{_part(gist.order_of(one))}"
        found = gist.open_findings(one.findings)
        test = _test(_order_id(one), one.status, one.reason or one.title or one.order, one.seconds, path)
        machine = gist.machine(record.hosts.get(one.host, "not there"), record.machines.get(one.host))
        test["environment"] = {"comment": clean.one_line(machine)}
        test["misc"] = {"host": one.host, "order": one.order, "findings": [finding.id for finding in one.findings]}
        if one.reproduce:
            test["misc"]["reproduce"] = one.reproduce
        if found:
            test["log_excerpt"] = _excerpt(line for each in found for line in (each.message, *each.evidence))
        yield test


def _order_id(one: Transcript) -> str:
    return f"load/{one.host}/{clean.one_line(one.order)}"


def _part(text: str | None) -> str:
    """A part of a path in KCIDB's tree of tests."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text or "") or "_"


def _excerpt(lines: Iterator[str] | tuple[str, ...]) -> str:
    return "\n".join(clean.lines([*lines], _LINES))[:MAX_EXCERPT]


def _issue_id(name: str, origin: str) -> str:
    return f"{origin}:known/{clean.one_line(name)}"


def _issues(record: Record, origin: str) -> Iterator[Data]:
    known = {one.id: one.known for one in record.findings if one.known is not None}
    known |= {one.finding: one.reason for one in record.known_not_seen}
    for name, reason in known.items():
        yield {
            "id": _issue_id(name, origin),
            "version": 1,
            "origin": origin,
            "culprit": {"code": True, "tool": False, "harness": False},
            "comment": clean.one_line(reason or name),
        }


def _incidents(record: Record, origin: str) -> Iterator[Data]:
    """Where a known finding came, once for each test; and the declared ones that were looked for and did not come."""
    seen: set[tuple[str, str]] = set()
    for one in record.findings:
        if one.known is None:
            continue
        test = f"load/{one.host}/{clean.one_line(one.order or '')}" if one.host else _rule_id(one) if one.rule else ""
        if (one.id, test) not in seen:
            seen.add((one.id, test))
            where = {"test_id": f"{origin}:{record.id}/{test}"} if test else {"build_id": _build_id(record, origin)}
            yield _incident(one.id, f"{record.id}/{test}", True, origin) | where
    for unseen in record.known_not_seen:
        yield _incident(unseen.finding, record.id, False, origin) | {"build_id": _build_id(record, origin)}


def _incident(name: str, where: str, present: bool, origin: str) -> Data:
    digest = hashlib.sha256(f"{name}\n{where}".encode()).hexdigest()[:40]
    issue = _issue_id(name, origin)
    return {"id": f"{origin}:{digest}", "origin": origin, "issue_id": issue, "issue_version": 1, "present": present}
