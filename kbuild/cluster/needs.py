"""What a worker has and a cell needs, as Dask's resources: a worker takes no more cells than it has units for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kbuild.hosts import bochs, nested, qemu
from kbuild.hosts.spec import HostSpec

NETWORK = "network-"
"""Before the name of a lab's network that a worker is in."""
PLENTY = 1000
"""Of a network: only the worker's CPUs set a limit."""


def needs(spec: HostSpec) -> dict[str, int]:
    """What a worker must have to run orders on a host."""
    if spec.qemu is not None:
        hardware = {"vmx" if spec.vendor == "intel" else "svm": 1} if spec.qemu.accel == "kvm" else {}
        return {"qemu": 1, **hardware}
    if spec.bochs is not None:
        return {"bochs": 1}
    remote = spec.ssh or spec.labgrid
    network = remote.network if remote is not None else None
    return {f"{NETWORK}{network}": 1} if network else {}


def offers(cpus: int, networks: Sequence[str]) -> dict[str, int]:
    """What this machine has, as a worker that uses so many of its CPUs. A guest is asked for VMX and SVM."""
    emulators = {"qemu": qemu.missing(), "bochs": bochs.missing()}
    have = [name for name, missing in emulators.items() if not missing]
    if "qemu" in have:
        have += [one for one in ("vmx", "svm") if nested.hindrance(qemu.PROGRAM, "host", one) is None]
    return dict.fromkeys(have, cpus) | {f"{NETWORK}{name}": PLENTY for name in networks}


def room(workers: Iterable[tuple[int, Mapping[str, float]]], needed: Mapping[str, int]) -> int:
    """How many cells with these needs can be at work at once; a worker is its CPUs and what it has."""
    return sum(
        min([cpus, *(int(has.get(name, 0) // count) for name, count in needed.items())]) for cpus, has in workers
    )
