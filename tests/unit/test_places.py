"""Protects how machines share the CPUs, and the disk that a running machine gets its modules from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kbuild.build.selftests import Programs
from kbuild.errors import HarnessError, UserError
from kbuild.hosts.base import Limits
from kbuild.hosts.disk import SECTOR, SIZE, fill_disk, make_disk
from kbuild.hosts.spec import BochsSettings, HostSpec, QemuSettings, SshSettings
from kbuild.load.places import MIN_RUNNING, Place, Places, machines_at_once, share


def host(usual_boot_s: float | None) -> HostSpec:
    return HostSpec(
        id=f"boots-in-{usual_boot_s}",
        kind="qemu",
        gives=("amd",),
        qemu=QemuSettings(cpu="EPYC"),
        limits=Limits(usual_boot_s=usual_boot_s),
    )


@pytest.mark.parametrize(
    ("boots", "orders", "cpus", "shares"),
    [
        ((1, 2.5), 7, 1, [1, 1]),
        ((1, 2.5), 7, 2, [1, 1]),
        ((1, 2.5), 7, 3, [1, 2]),
        ((1, 2.5), 7, 4, [1, 3]),
        ((1, 2.5), 7, 6, [3, 3]),  # the slow one has enough
        ((1, 2.5), 7, 64, [3, 3]),
        ((1, 2.5), 1, 64, [1, 1]),  # nothing to share
        ((1, 2.5), 3, 64, [1, 1]),
        ((None,), 7, 2, [2]),
    ],
)
def test_free_cpus_go_to_the_slowest_hosts(
    boots: tuple[float | None, ...], orders: int, cpus: int, shares: list[int]
) -> None:
    assert share([host(boot) for boot in boots], orders, cpus) == shares


def test_a_machine_more_than_cpus_where_it_costs_no_boot() -> None:
    kept = host(1)
    booted = HostSpec(id="bochs", kind="bochs", gives=("intel",), bochs=BochsSettings(model="corei7_haswell_4770"))
    assert machines_at_once([kept], 2) == machines_at_once([kept, kept], 2) == 3
    assert machines_at_once([kept, booted], 2) == machines_at_once([booted], 2) == 2


def test_a_machine_of_its_own_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has CPUs of its own, and somebody waits for it: all such are at work at once, beside the emulators."""
    remote = [HostSpec(id=f"ssh-{at}", kind="ssh", gives=("amd",), ssh=SshSettings(target="there")) for at in range(5)]
    emulated = [host(1), host(2), host(3), host(4)]
    at_work: list[str] = []
    all_at_work, over = threading.Semaphore(0), threading.Event()

    @contextmanager
    def boot(_request: object, spec: HostSpec, *_: object) -> Iterator[None]:
        at_work.append(spec.id)
        all_at_work.release()
        assert over.wait(60)
        yield

    monkeypatch.setattr("kbuild.load.places.boot", boot)
    request: Any = SimpleNamespace()

    def work(place: Place) -> None:
        with place.boot(request, (), 1, None, lambda *_: None):
            pass

    with Places([*emulated, *remote], 1, cpus=1) as places:
        done = [place.submit(partial(work, place)) for place in places]
        try:
            for _ in range(len(remote) + MIN_RUNNING):
                assert all_at_work.acquire(timeout=60)
            assert {spec.id for spec in remote} < set(at_work)
            assert len(at_work) == len(remote) + MIN_RUNNING
        finally:
            over.set()
        for one in done:
            one.result()
    assert set(at_work) == {spec.id for spec in (*emulated, *remote)}


def test_a_machine_that_cannot_get_its_modules_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is not there: any reason will do. The order runs in a machine that boots with its modules."""
    ended: list[int] = []

    @contextmanager
    def boot(_request: object, _spec: object, number: int, *_: object) -> Iterator[SimpleNamespace]:
        folder = tmp_path / f"boot-{number}"
        folder.mkdir()
        session = SimpleNamespace(hello="hello", ended=None)
        machine = SimpleNamespace(pause=lambda: None, resume=lambda: None)
        yield SimpleNamespace(number=number, folder=folder, session=session, machine=machine)
        ended.append(number)

    monkeypatch.setattr("kbuild.load.places.boot", boot)
    (tmp_path / "kernel").touch()
    request: Any = SimpleNamespace(kernel=tmp_path / "kernel", command_line=(), modules={}, selftests=Programs())
    place = Place(host(None), 1, threading.Semaphore(1))
    place.submit(lambda: place.boot_ahead(request)).result()
    assert (tmp_path / "boot-1").exists()

    def run() -> tuple[int, list[int]]:
        with place.boot(request, (), 2, None, lambda *_: None) as started:
            return started.number, [*ended]

    assert place.submit(run).result() == (2, [1])
    assert not (tmp_path / "boot-1").exists(), "nothing of it is left"
    place.close()
    assert ended == [1, 2]


def test_a_disk_holds_what_was_put_on_it_last(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_disk(disk)
    assert disk.stat().st_size == SIZE
    assert disk.stat().st_blocks < 100, "a hole"
    fill_disk(disk, {"a.ko": b"x" * 3000, "b.ko": b"y"})
    fill_disk(disk, {"b.ko": b"z" * 513, "a.ko": b""})
    data = disk.read_bytes()
    assert len(data) == SIZE
    magic, a, b, end = data.split(b"\n")[:4]
    assert (magic, end) == (b"kvm-kbuild modules", b"end")
    assert a.split()[1::2] == [b"0", b"a.ko"]
    start, size, _, name = b.split()
    assert (size, name) == (b"513", b"b.ko")
    assert data[int(start) * SECTOR :][:513] == b"z" * 513


def test_a_disk_that_cannot_be_made_is_the_hosts_failure(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"gone/disk: cannot be made: No such file or directory"):
        make_disk(tmp_path / "gone" / "disk")
    with pytest.raises(HarnessError, match=r"disk: cannot be written: No such file or directory"):
        fill_disk(tmp_path / "disk", {})


def test_modules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk")
    with pytest.raises(UserError, match=r"large\.ko: the modules have more than 63 MiB"):
        fill_disk(tmp_path / "disk", {"large.ko": bytes(SIZE)})
