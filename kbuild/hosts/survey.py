"""Hosts by their names or files: listed, asked what they can be used for, provisioned, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from kbuild.errors import KbuildError, UserError
from kbuild.hosts.spec import HostSpec, SshSettings, check, describe, hindrance, is_remote, read_host
from kbuild.hosts.ssh.away import look
from kbuild.hosts.ssh.client import Client
from kbuild.hosts.ssh.facts import Facts, hindrances
from kbuild.hosts.ssh.provision import provision
from kbuild.hosts.visit import put_back
from kbuild.profile import ALL, find_hosts

AT_ONCE = 16
"""Hosts that are asked side by side: most of it is waiting for them."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """One host, as it is now."""

    host: str
    kind: str
    gives: tuple[str, ...]
    """As its file says."""
    what: str = ""
    """An emulator's version, or what a machine is: system, kernel, CPUs."""
    hindrances: tuple[str, ...] = ()
    """Why no order can be run there; empty: it can be used."""
    missing: tuple[str, ...] = ()
    """What it lacks to be used for more, or to say more when a kernel goes down."""


def survey(spec: HostSpec) -> Survey:
    """Ask a host, and change nothing there. An emulator may be started for a second."""
    one = Survey(host=spec.id, kind=spec.kind, gives=spec.gives)
    try:
        if lacks := check(spec):
            return msgspec.structs.replace(one, hindrances=tuple(lacks))
        if spec.labgrid is not None:
            return _place(one, spec)
        if spec.ssh is not None:
            return _remote(one, spec, spec.ssh)
        reason = hindrance(spec)
        return msgspec.structs.replace(one, what=describe(spec), hindrances=(reason,) if reason else ())
    except KbuildError as error:
        return msgspec.structs.replace(one, hindrances=(str(error),))


def _place(one: Survey, spec: HostSpec) -> Survey:
    """A place that somebody else holds is his: its machine is not asked."""
    from kbuild.hosts.lab.held import seen  # labgrid takes a second to load

    place, there = seen(spec)
    assert there.ssh is not None
    if place.obstacle is None:
        return _remote(one, there, there.ssh)
    what, waits = f"place {place.name}, {there.ssh.target}", f"the place {place.obstacle}: a run waits for it"
    return msgspec.structs.replace(one, what=what, missing=(waits,))


def _remote(one: Survey, spec: HostSpec, ssh: SshSettings) -> Survey:
    facts = look(Client(ssh))
    memory = int(facts["memory_kb"]) / (1 << 20) if facts["memory_kb"].isdigit() else 0
    return msgspec.structs.replace(
        one,
        what=f"{facts['system']}, {facts['release']}, {facts['cpus']} CPUs, {memory:.0f} GB",
        hindrances=tuple(hindrances(facts, spec)),
        missing=tuple(_missing(facts, spec, ssh)),
    )


def _missing(facts: Facts, spec: HostSpec, ssh: SshSettings) -> Iterator[str]:
    if more := sorted({*facts.gives} - {*spec.gives}):
        yield f"its CPU has {', '.join(more)}, and gives does not say so: orders that need it are left out"
    if ssh.power is None:
        yield "no command for its power: after a hang it waits for somebody who switches it off and on"
    kept = [name for name, there in (("pstore", facts.pstore), ("kdump", facts["kdump"] == "1")) if there]
    if not ssh.console and not kept:
        yield "no console, no pstore, no kdump: when its kernel goes down nothing says why (inv host.provision)"
    elif not ssh.console:
        yield f"no console: a kernel's last words are read in {' and '.join(kept)}, after the next boot"
    if facts["panic"] == "0":
        yield "kernel.panic is 0: after a panic its kernel stays as it is (inv host.provision)"
    if ssh.kernel == "running":
        yield f'kernel = "running": only modules of its {facts["release"]} can be tried'
    if facts["owner"]:
        yield f"in use by {facts['owner']}"


def hosts_named(names: Sequence[str]) -> list[tuple[HostSpec, Path]]:
    """Host files by their names, paths or globs, each read; none: all. Raises UserError for what names no host."""
    try:
        return [(read_host(path), path) for path in find_hosts(names or (ALL,), Path.cwd())]
    except KeyError as error:
        raise UserError(f"--host {error.args[0]}: no such file, here or in profiles/hosts/") from None


def list_hosts(found: Sequence[tuple[HostSpec, Path]]) -> dict[str, Any]:
    """What `host.list --json` prints."""
    hosts = [{"host": spec.id, "kind": spec.kind, "gives": spec.gives, "file": str(path)} for spec, path in found]
    return {"asked": False, "hosts": hosts}


def survey_hosts(found: Sequence[tuple[HostSpec, Path]]) -> dict[str, Any]:
    """What `host.check --json` prints: each host asked, side by side."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        surveys = list(pool.map(survey, [spec for spec, _ in found]))
    return {"asked": True, "hosts": [msgspec.to_builtins(one) for one in surveys]}


def restore_host(name: str, *, force: bool) -> str:
    """Put a host back as a run found it that could not do so itself; says what was done. Raises as `Target` does."""
    ((spec, path), *more) = hosts_named([name])
    if more or not is_remote(spec):
        raise UserError(f"{path}: not one host that is reached by SSH: only these are somebody's machines")
    return put_back(spec, force=force)


def provision_host(
    target: str, options: tuple[str, ...], words: Sequence[str], key: Path | None, *, sudo: bool
) -> bool:
    """Make a machine a test host (`provision`); what is done is printed as it is done.

    Raises UserError for a target that ssh could take for an option, and as `provision` does.
    """
    try:
        settings = msgspec.convert({"target": target, "options": options, "sudo": sudo}, SshSettings)
    except msgspec.ValidationError:
        raise UserError(f"host.provision: '{target}' is nothing that ssh could reach: give USER@HOST") from None
    return provision(settings, words, key, lambda line: print(line, flush=True))
