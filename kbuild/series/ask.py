"""What a series is asked for, and its entries: commits of a range, patches of an mbox, versions of packages."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kbuild import log
from kbuild.build.artifacts import file_digest
from kbuild.cache.limit import cache_limit, trim
from kbuild.configure import git
from kbuild.configure.apt import find, oldest_first
from kbuild.errors import UserError
from kbuild.gate.request import GateRequest, profile_of
from kbuild.outcome import Status
from kbuild.progress import Prefixed, Reporter
from kbuild.record import open_record
from kbuild.series.apply import apply
from kbuild.series.commits import SHORT, commits_of
from kbuild.series.judge import Judge, entries_of
from kbuild.series.mail import read_mbox
from kbuild.seriesrecord import Entry, SeriesRecord, begin, holding, key_of
from kbuild.setting import files_of

CLUSTER_AHEAD = 3
"""Entries that a cluster loads at once: with one alone its workers wait for the last cells of each."""
_IMAGE = re.compile(r"linux-image-(\d+\.\d+)")
_VERSION = re.compile(r"(?<=^linux-image-)\d[^-]*-(?:\d[^-]*-)*")


@dataclass(frozen=True, kw_only=True)
class SeriesRequest:
    """Which entries, and what to ask of each."""

    gate: GateRequest
    """The question; `tree` and `rev` as the user gave them."""
    range: str | None = None
    mbox: str | None = None
    packages: str | None = None
    stop: bool = False


@dataclass(frozen=True)
class Asked:
    """The entries, and where they come from."""

    source: str
    entries: list[Entry]
    request: Callable[[Entry], GateRequest]
    based: bool = False
    """Whether the patches say themselves what they stand on."""


def series(
    request: SeriesRequest,
    reporter: Reporter,
    tell: Callable[[SeriesRecord, Entry], None],
    asked: Asked | None = None,
) -> SeriesRecord:
    """Judge each entry against the one before it. One that did not come to its end is gone on with.

    `tell` is called when an entry begins and when it is over; `asked` is what `ask` gave, where somebody called it
    already. Raises UserError where the input is wrong.
    """
    log.configure(request.gate.verbosity)
    limit = cache_limit(request.gate.cache_gb)
    asked = asked or ask(request)
    key = key_of([*question(request.gate), str(request.stop), *(one.id for one in asked.entries)])
    with holding(key) as ours:
        if not ours:
            raise UserError(f"{asked.source}: another inv series is at it with the same options; wait for its end")
        made = begin(key, request.gate.command, asked.source, asked.entries)
        started = time.time()
        Judge(
            made,
            asked.request,
            lambda entry: Prefixed(reporter, entry.name),
            lambda entry: tell(made.record, entry),
            request.stop,
            CLUSTER_AHEAD if request.gate.cluster else 1,
        ).run()
        trim(limit, spare_since=started)
    return made.record


def ask(request: SeriesRequest) -> Asked:
    """Which entries there are. Patches of an mbox are applied. Raises UserError where the input is wrong."""
    given = [name for name in ("range", "mbox", "packages") if getattr(request, name)]
    if len(given) != 1:
        what = f"--{' and --'.join(given)} are given" if given else "none is given"
        raise UserError(f"series: give one of --range BASE..TIP, --mbox FILE and --packages GLOB; {what}")
    if request.packages:
        return _packages(request, request.packages)
    return _range(request, request.range) if request.range else _mbox(request, request.mbox or "")


def checkout_of(gate: GateRequest, option: str) -> Path:
    """The git checkout that was asked for. Raises UserError for what is none."""
    folder = Path(gate.tree).expanduser().resolve()
    if gate.tree.startswith("debian:") or not git.is_checkout(folder):
        raise UserError(f"{option}: --tree {gate.tree} is no git checkout; give the one that the commits are for")
    return folder


def _range(request: SeriesRequest, asked: str) -> Asked:
    folder = checkout_of(request.gate, f"--range {asked}")
    if request.gate.rev:
        raise UserError(f"--rev {request.gate.rev}: --range says which commits")
    base, commits = commits_of(folder, asked)
    entries = entries_of((base.id, base.subject), [(one.id, one.subject) for one in commits])
    return Asked(f"{asked} of {request.gate.tree}", entries, of_tree(request.gate, str(folder)))


def of_tree(gate: GateRequest, tree: str) -> Callable[[Entry], GateRequest]:
    """What to ask of each entry that is a commit of a checkout."""
    return lambda entry: replace(gate, tree=tree, rev=entry.id, boot_ahead=False)


def _mbox(request: SeriesRequest, name: str) -> Asked:
    mailbox = read_mbox(name)
    if request.gate.tree.startswith("debian:"):
        # A package's source has no commits to put patches on.
        on = f"commit {mailbox.base[:SHORT]} (its base-commit)" if mailbox.base else "a commit that nobody names"
        raise UserError(f"--mbox {name}: it stands on {on}: give --tree CHECKOUT, and perhaps --rev COMMIT")
    based = mailbox.base is not None
    applied = apply(checkout_of(request.gate, f"--mbox {name}"), mailbox, request.gate.rev)
    entries = entries_of((applied.base.id, applied.base.subject), [(one.id, one.subject) for one in applied.commits])
    for mail in mailbox.mails[len(applied.commits) :]:
        failed = applied.failed is mail
        entries.append(
            Entry(
                id=f"patch {mail.number}",
                subject=mail.subject,
                status=Status.FAIL if failed else Status.SKIP,
                reason=f"does not apply to {applied.base.id[:SHORT]} and the patches before it"
                if failed
                else "comes after a patch that does not apply",
                evidence=list(applied.rejected) if failed else [],
            )
        )
    return Asked(f"{name} on {applied.base.id[:SHORT]}", entries, of_tree(request.gate, str(applied.repository)), based)


def _packages(request: SeriesRequest, glob: str) -> Asked:
    match = _IMAGE.match(glob)
    if not match:
        raise UserError(f"--packages {glob}: begin with a series, such as linux-image-6.12.*-amd64")
    apt, _ = find(f"linux-image-{match[1]}-none", match[1])
    names = [one for one in apt.names(f"linux-image-{match[1]}") if fnmatch.fnmatchcase(one, glob)]
    # What depends on another package has no files, and what is not signed yet is the same kernel again.
    names = [one for one in names if not one.endswith(("-dbg", "-unsigned")) and re.search(r"-\d+\.\d+\.\d", one)]
    versions = {f"{name}={version}": version for name, several in apt.versions_of(names).items() for version in several}
    if not versions:
        raise UserError(f"--packages {glob}: the archive has no such kernel package")
    order = {version: number for number, version in enumerate(oldest_first(set(versions.values())))}
    kinds = {one: kind_of(one) for one in versions}
    ids = sorted(versions, key=lambda one: (len(kinds[one]), kinds[one], order[versions[one]], one))
    entries = entries_of(None, [(one, one.partition("=")[0]) for one in ids])
    for entry in entries:
        entry.kind = kinds[entry.id]
    return Asked(glob, entries, lambda entry: replace(request.gate, package=entry.id))


def kind_of(package: str) -> str:
    """The name of a kernel's package without its version: `linux-image-rt-amd64`."""
    return _VERSION.sub("", package.partition("=")[0], count=1)


def question(gate: GateRequest) -> list[str]:
    """All that an answer to a commit depends on, but for this tool and the machine: what its files say, not where."""
    profile = profile_of(gate)
    release = profile.settings.release
    files = dict(files_of(profile))
    baseline = gate.baseline or (release and release.baseline and str(profile.path.parent / release.baseline))
    said = [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in files.items()]
    if baseline:
        folder, record = open_record(baseline)
        said.append(f"baseline {record.id if folder.is_dir() else file_digest(folder)}")
    runs = [" ".join(some) for some in profile.orders.values()]
    return [str(gate.flavour), str(gate.no_known), str(gate.look), gate.tree, *said, *runs]
