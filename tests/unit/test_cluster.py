"""Protects what is handed to which worker, and what is taken from one: files by content, logs below their folder."""

from __future__ import annotations

import asyncio
import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kbuild.cluster import fan
from kbuild.cluster.address import scheduler_address
from kbuild.cluster.cell import Cell, Failed, Lacks, code_version, keep, lacking, run_cell
from kbuild.cluster.needs import needs, room
from kbuild.elf.rules.spec import Rules
from kbuild.errors import HarnessError, UserError
from kbuild.hosts.base import Limits
from kbuild.hosts.spec import BochsSettings, HostSpec, QemuSettings, SshSettings
from kbuild.outcome import Status
from kbuild.paths import PROJECT
from kbuild.profile import SHIPPED

QEMU = HostSpec(id="q", kind="qemu", gives=("amd", "svm"), qemu=QemuSettings(cpu="EPYC"), limits=Limits(usual_boot_s=1))
NESTED = HostSpec(id="n", kind="qemu", gives=("intel", "vmx"), qemu=QemuSettings(cpu="host", accel="kvm"))
BOCHS = HostSpec(
    id="b", kind="bochs", gives=("intel",), bochs=BochsSettings(model="corei7"), limits=Limits(usual_boot_s=3)
)
FAR = HostSpec(id="f", kind="ssh", gives=("amd",), ssh=SshSettings(target="far", network="lab"))
NEAR = HostSpec(id="g", kind="ssh", gives=("amd",), ssh=SshSettings(target="near"))


def test_a_worker_takes_what_it_has_for() -> None:
    assert [needs(one) for one in (QEMU, NESTED, BOCHS, FAR, NEAR)] == [
        {"qemu": 1},
        {"qemu": 1, "vmx": 1},
        {"bochs": 1},
        {"network-lab": 1},
        {},
    ]
    workers = [(4, {"qemu": 4.0, "vmx": 4.0}), (2, {"qemu": 2.0, "bochs": 2.0}), (8, {"network-lab": 1000.0})]
    assert [room(workers, needs(one)) for one in (QEMU, NESTED, BOCHS, FAR, NEAR)] == [6, 4, 2, 8, 14]
    assert room([], needs(QEMU)) == 0


@pytest.mark.parametrize("wrong", ["lab:8786", "http://lab:80", "tcp://lab", "tcp://:1", "tcp://a b:1", "-x"])
def test_what_is_no_address_is_said(wrong: str) -> None:
    with pytest.raises(UserError, match="no address of a Dask scheduler"):
        scheduler_address(wrong)
    assert scheduler_address("tls://[::1]:8786") == "tls://[::1]:8786"


def test_cells_are_as_many_as_can_be_at_work_and_the_slow_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan, "plans_for", lambda *_: [])
    orders = [SimpleNamespace(id=name, many=name == "sweep") for name in ("a", "sweep", "b", "c")]
    request: Any = SimpleNamespace(hosts=(QEMU, BOCHS, FAR), orders=tuple(orders))
    found = [
        (spec.id, [order.id for order in some])
        for spec, some in fan.cut(request, lambda spec: {"q": 2, "b": 9, "f": 8}[spec.id])
    ]
    assert found == [
        ("b", ["sweep"]),
        ("b", ["a"]),
        ("b", ["b"]),
        ("b", ["c"]),
        ("q", ["sweep"]),
        ("q", ["a", "c"]),
        ("q", ["b"]),
        ("f", ["a", "sweep", "b", "c"]),
    ]


def packed(digest: str) -> bytes:
    cell = Cell(
        spec=QEMU, orders=(), only={}, again=max, command_line=(), rules=Rules(), run="r", release="6.1", kernel=None,
        files={"bzImage": digest}, selftests={}, absent={},
    )  # fmt: skip
    return pickle.dumps(cell)


@pytest.mark.usefixtures("private_cache")
def test_a_worker_says_what_it_lacks(tmp_path: Path) -> None:
    """What it is given is kept under its own SHA-256."""
    digest = hashlib.sha256(b"kernel").hexdigest()
    assert run_cell(code_version(), packed(digest)) == Lacks((digest,))
    asyncio.run(keep(b"something else"))
    assert lacking([digest]) == [digest]
    asyncio.run(keep(b"kernel"))
    assert lacking([digest]) == []
    kept = tmp_path / "cache/kvm-kbuild/artifacts" / digest[:2] / digest
    assert kept.read_bytes() == b"kernel"
    kept.unlink()
    assert run_cell(code_version(), packed(digest)) == Lacks((digest,))


def test_a_worker_with_other_code_is_not_believed() -> None:
    answer = run_cell("another", packed("0" * 64))
    assert isinstance(answer, Failed)
    assert answer.status == Status.MISS
    assert "another version of this tool" in answer.reason


def test_the_code_s_version_is_of_all_that_judges() -> None:
    """Profiles too: signatures say what a log means, and an order's file what is done."""
    assert SHIPPED.is_relative_to(PROJECT)
    assert code_version() == code_version()
    assert len(code_version()) == 16


def archive(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as some:
        for name, text in files.items():
            some.writestr(name, text)
    return buffer.getvalue()


def test_logs_of_several_cells_lie_side_by_side(tmp_path: Path) -> None:
    boots: dict[str, int] = {}
    into = tmp_path / "hosts"
    first = fan._unpack(archive({"q/boot-1/agent.log": "one", "q/boot-2/agent.log": "two"}), into, "q", boots)
    second = fan._unpack(archive({"q/boot-1/agent.log": "three"}), into, "q", boots)
    assert (first, second) == ({1: 1, 2: 2}, {1: 3})
    assert [(into / f"q/boot-{number}/agent.log").read_text() for number in (1, 2, 3)] == ["one", "two", "three"]
    assert sorted(path.name for path in into.iterdir()) == ["q"]


def test_a_transcript_names_the_folder_that_its_logs_are_in() -> None:
    assert fan.moved("q/boot-1", "q", 3) == "q/boot-3"
    assert fan.moved("q/boot-1/from-snapshot-2", "q", 3) == "q/boot-3/from-snapshot-2"
    assert fan.moved("q/boot-1/../../../etc", "q", 1) == "q/boot-1/etc"
    assert fan.moved(None, "q", 1) is None


def test_logs_stay_below_their_folder(tmp_path: Path) -> None:
    into = tmp_path / "run/hosts"
    fan._unpack(archive({"../../escaped": "x", "/tmp/kvm-kbuild-escaped": "x", "q/boot-1/log": "x"}), into, "q", {})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["log"]
    assert not Path("/tmp/kvm-kbuild-escaped").exists()
    with pytest.raises(HarnessError, match="logs of a worker cannot be kept"):
        fan._unpack(b"no archive", into, "q", {})
