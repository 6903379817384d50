"""Protects the verdict on kernels that misbehave for real: each way to crash is blamed on the kernel, with its step.

The modules are small ones, built against the kernel under test (tests/data/); after each crash the next order gets a
boot of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kbuild.load.session import SAMPLES
from kbuild.paths import PROJECT
from tests.integration.conftest import Tool, build_modules, make_tool

pytestmark = pytest.mark.kernel

SOURCES = [*PROJECT.glob("tests/data/dmesg/source/dt_*.c"), *PROJECT.glob("tests/data/modules/dt_*.c")]
HOSTS = ("qemu-svm", "bochs-vmx")

ORDER = """
id = "{name}"
title = "a module that misbehaves"
modules = ["dt_{name}"]

[[step]]
load = "dt_{name}"

[[step]]
unload = "dt_{name}"

[[step]]
check = "footprint"
"""

# What a module does, to the findings of its order: kind and step's action. From the sources and the kernel's own words.
EXPECTED = {
    "bug": {("kernel-bug", "load")},
    "gpf": {("general-protection-fault", "load")},
    "null": {("null-dereference", "load")},
    "warn": {("warning", "load")},
    "panic": {("panic", "load")},
    "reboot": {("no-answer", "load")},
    "triple": {("no-answer", "load")},
    "off": {("no-answer", "load")},
    "debugfs": {("leftover", "check")},
    "slab": {("slab-objects-remaining", "unload"), ("slab-still-has-objects", "unload"), ("leftover", "check")},
}


# What hangs, and where: of each the source says it.
HANGS = {
    "loop": "dt_loop_wait",
    "spin": "dt_spin_init",
    "halt": "dt_halt_init",
    "deadlock": "dt_deadlock_init",
}
HANG_LIMITS = {"step_s = 30": "step_s = 14", "silent_s = 20": "silent_s = 10"}
"""Shorter than usual, for they are waited for; a deadlock is reported after 8 to 10 seconds (profiles/default.toml)."""


@pytest.fixture(scope="module")
def modules(kernel_build: Path, kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules, built out of tree."""
    return build_modules(tmp_path_factory.mktemp("modules"), SOURCES, kernel_source, kernel_build)


@pytest.fixture(scope="module")
def transcripts(
    modules: Path, kernel_build: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Any]]:
    """All of them on both hosts, in one run: host and order to the transcript, with its findings."""
    return judged(tmp_path_factory.mktemp("crashes"), modules, kernel_build, [*EXPECTED], {})


@pytest.fixture(scope="module")
def hangs(
    modules: Path, kernel_build: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Any]]:
    """The same, of what never comes back."""
    return judged(tmp_path_factory.mktemp("hangs"), modules, kernel_build, [*HANGS], HANG_LIMITS)


def judged(
    folder: Path, modules: Path, kernel_build: Path, names: list[str], limits: dict[str, str]
) -> dict[tuple[str, str], dict[str, Any]]:
    words: list[str | Path] = []
    for name in names:
        path = folder / f"{name}.toml"
        path.write_text(ORDER.format(name=name))
        words += ["--order", path]
    for host in HOSTS:
        path = folder / f"{host}.toml"
        text = (PROJECT / f"profiles/hosts/{host}.toml").read_text()
        for old, new in limits.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        words += ["--host", path]
    for tool in make_tool(folder):
        run(tool, modules, kernel_build, words)
        data = json.loads((folder / "out").read_text())
        assert data["verdict"] == "FAIL"
        found = {(one["host"], one["order"]): one for one in data["transcripts"]}
        for (host, order), one in found.items():
            one["findings"] = [f for f in data["findings"] if (f["host"], f["order"]) == (host, order)]
            one["hosts"] = Path(data["folder"]) / "hosts"
        return found
    raise AssertionError


def run(tool: Tool, modules: Path, kernel_build: Path, words: list[str | Path]) -> None:
    kernel = kernel_build / "arch/x86/boot/bzImage"
    done = tool.run("load", "--modules", modules, "--kernel", kernel, *words, "--json")
    assert done.returncode == 10, done.stderr
    (tool.runs.parents[2] / "out").write_text(done.stdout)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", EXPECTED)
def test_the_kernel_is_blamed_for_what_it_did(
    transcripts: dict[tuple[str, str], dict[str, Any]], host: str, name: str
) -> None:
    transcript = transcripts[host, name]
    assert transcript["status"] == "FAIL"
    actions = {step["number"]: step["action"] for step in transcript["steps"]}
    found = {(f["id"].split(":")[1], actions[f["step"]]) for f in transcript["findings"] if f["status"] == "FAIL"}
    assert found == EXPECTED[name]
    assert all(finding["reproduce"] for finding in transcript["findings"])


@pytest.mark.parametrize("host", HOSTS)
def test_ids_are_the_same_on_every_host(transcripts: dict[tuple[str, str], dict[str, Any]], host: str) -> None:
    for name in EXPECTED:
        ids, others = (
            {finding["id"] for finding in transcripts[where, name]["findings"] if finding["status"] == "FAIL"}
            for where in (host, HOSTS[0])
        )
        assert ids == others, name


@pytest.mark.parametrize("host", HOSTS)
def test_a_panic_is_told_by_the_console(transcripts: dict[tuple[str, str], dict[str, Any]], host: str) -> None:
    (step,) = transcripts[host, "panic"]["steps"]
    (line,) = (line for line in step["log"] if "dt_panic: nothing works" in line["text"])
    assert line["source"] == "console"
    folder = transcripts[host, "panic"]["hosts"] / transcripts[host, "panic"]["folder"]
    assert b"dt_panic: nothing works" in (folder / "console.log").read_bytes()


@pytest.mark.parametrize("host", HOSTS)
def test_an_oops_is_told_by_the_agent_which_lives_on(
    transcripts: dict[tuple[str, str], dict[str, Any]], host: str
) -> None:
    (step,) = transcripts[host, "null"]["steps"]
    assert any(line["text"].startswith("BUG: kernel NULL pointer dereference") for line in step["log"])
    assert {line["source"] for line in step["log"]} == {"kmsg"}


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_left_behind_is_named(transcripts: dict[tuple[str, str], dict[str, Any]], host: str) -> None:
    left = {
        name: {f["id"] for f in transcripts[host, name]["findings"] if ":leftover:" in f["id"]}
        for name in ("debugfs", "slab")
    }
    assert left == {"debugfs": {"load:leftover:debugfs/kvm:debugfs"}, "slab": {"load:leftover:slab/kvm_vcpu:slab"}}
    (finding,) = (f for f in transcripts[host, "slab"]["findings"] if ":leftover:" in f["id"])
    assert "kvm_exit()'s to remove" in finding["message"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", HANGS)
def test_a_kernel_that_hangs_is_blamed_where_it_was_seen(
    hangs: dict[tuple[str, str], dict[str, Any]], host: str, name: str
) -> None:
    transcript = hangs[host, name]
    assert transcript["status"] == "FAIL"
    (finding,) = (f for f in transcript["findings"] if f["status"] == "FAIL")
    blamed = finding["id"].removeprefix(f"load:hang:dt_{name}:")
    # A sample at the entry of an interrupt may show the caller alone: then it could be that one which loops.
    assert blamed in (HANGS[name], f"dt_{name}_init")
    assert blamed in finding["message"]
    assert any(HANGS[name] in line for line in finding["evidence"])
    (file,) = (transcript["hosts"] / transcript["folder"]).glob("samples-*.json")
    assert len(json.loads(file.read_text())) == SAMPLES
