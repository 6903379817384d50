"""Protects the tool from a kernel that says too much, or what nobody can read: memory and disk stay bounded, what is
whole is judged, what is missing is never a PASS, and the next order runs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kbuild.hosts.bochs import MAX_SCREEN
from kbuild.hosts.emulator import MAX_LOG, MAX_SAID
from kbuild.paths import PROJECT
from kbuild.transcript import FIRST_CHARACTERS, FIRST_LINES, LAST_CHARACTERS, LAST_LINES
from tests.integration.conftest import make_tool

pytestmark = pytest.mark.kernel

MEMORY_KB = 512 << 10
REST = 4 << 20
"""What else is in a boot's folder: commands, configurations, the lines that say how much was cut."""
LINES = 1_000_000
"""As in dt_flood.c."""

ORDER = """
id = "{name}"
title = "a module that says too much"
modules = ["dt_flood"]

[[step]]
load = "dt_flood"
params = {{ how = "{how}" }}

[[step]]
unload = "dt_flood"

[[step]]
check = "footprint"
"""

Transcripts = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def module(kernel_build: Path, kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a module that was built out of tree."""
    folder = tmp_path_factory.mktemp("flood")
    shutil.copy(PROJECT / "tests/data/modules/dt_flood.c", folder)
    (folder / "Makefile").write_text("obj-m := dt_flood.o\n")
    where = [f"O={kernel_build}", f"M={folder}", "LOCALVERSION=-kbuild"]
    argv = ["make", "-s", "-C", str(kernel_source), *where, "modules"]
    subprocess.run(argv, check=True, capture_output=True)
    return folder


def load(folder: Path, module: Path, kernel_build: Path, orders: dict[str, str], hosts: list[str]) -> Transcripts:
    """Orders (id to what the module does) on hosts, in one run; what the tool took of memory and disk is bounded."""
    words: list[str | Path] = [word for host in hosts for word in ("--host", host)]
    for name, how in orders.items():
        (folder / f"{name}.toml").write_text(ORDER.format(name=name, how=how))
        words += ["--order", folder / f"{name}.toml"]
    for tool in make_tool(folder):
        kernel = kernel_build / "arch/x86/boot/bzImage"
        done = tool.run("load", "--modules", module, "--kernel", kernel, *words, "--json")
        assert "Traceback" not in done.stderr
        data = json.loads(done.stdout)
        run = Path(data["folder"])
        events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert events[-1]["peak_memory_kb"] < MEMORY_KB
        for boot in run.glob("hosts/*/boot-*"):
            size = sum(path.stat().st_size for path in boot.iterdir())
            assert size < 2 * MAX_LOG + MAX_SAID + MAX_SCREEN + REST
        for transcript in data["transcripts"]:
            for lines in (*(step["log"] for step in transcript["steps"]), transcript.get("console", [])):
                texts = [line["text"] if isinstance(line, dict) else line for line in lines]
                assert len(texts) <= FIRST_LINES + LAST_LINES + 1
                assert sum(map(len, texts)) < FIRST_CHARACTERS + LAST_CHARACTERS + 200
        assert tool.processes() == {}
        found = {(one["host"], one["order"]): one for one in data["transcripts"]}
        for place, one in found.items():
            one["findings"] = [f for f in data["findings"] if (f["host"], f["order"]) == place]
            one["boot_folder"] = run / "hosts" / one["folder"]
        return found
    raise AssertionError


@pytest.fixture(scope="module")
def transcripts(module: Path, kernel_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Transcripts:
    orders = {"log": "log", "agent": "agent", "after-rubbish": "", "cut": "cut", "after-a-cut": ""}
    return load(tmp_path_factory.mktemp("run"), module, kernel_build, orders, ["qemu-svm"])


def kinds(transcript: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["id"].split(":")[1], one["status"]) for one in transcript["findings"]}


@pytest.mark.parametrize("order", ["after-rubbish", "after-a-cut"])
def test_the_next_order_is_judged_as_if_nothing_had_been(transcripts: Transcripts, order: str) -> None:
    assert transcripts["qemu-svm", order]["status"] == "PASS"
    assert transcripts["qemu-svm", order]["findings"] == []


def test_a_million_lines_are_counted_and_no_pass(transcripts: Transcripts) -> None:
    transcript = transcripts["qemu-svm", "log"]
    assert transcript["status"] == "ERROR", "something among them may have mattered"
    assert [step["action"] for step in transcript["steps"]] == ["load", "unload", "check"], "the order goes on"
    assert kinds(transcript) == {("log-lost", "ERROR")}
    flood = transcript["steps"][0]
    assert flood["errno"] is None, "the load itself went well"
    (cut,) = (line["text"] for line in flood["log"] if line["source"] == "cut")
    lines = [int(line["text"].split()[2]) for line in flood["log"] if line["text"].startswith("dt_flood: line ")]
    assert lines == sorted(lines)
    assert len(lines) + int(cut.split()[1]) + flood["log_lost"] >= LINES
    assert str(flood["log_lost"]) in transcript["findings"][0]["message"]


def test_rubbish_on_the_agent_s_line_is_kept_and_no_pass(transcripts: Transcripts) -> None:
    transcript = transcripts["qemu-svm", "agent"]
    assert transcript["status"] == "ERROR"
    assert kinds(transcript) == {("broken-line", "ERROR")}
    load, unload, check = transcript["steps"]
    assert (load["errno"], load["status"]) == (None, "ERROR")
    assert (unload["status"], check["status"]) == ("PASS", "PASS")
    sent = (transcript["boot_folder"] / "agent.log").read_bytes()
    assert sum(byte >= 0x80 for byte in sent) > 10_000, "half of 30,000 random bytes"


def test_a_line_that_the_guest_s_end_cut_is_told_and_its_end_is_judged(transcripts: Transcripts) -> None:
    transcript = transcripts["qemu-svm", "cut"]
    assert transcript["status"] == "FAIL"
    assert kinds(transcript) == {("no-answer", "FAIL"), ("broken-line", "DONE")}
    (broken,) = (one for one in transcript["findings"] if one["status"] == "DONE")
    assert '{"ev":"log","id":1,"seq":12,"te' in broken["evidence"][0]


def test_rubbish_without_end_on_the_console_has_bounds_and_no_pass(
    module: Path, kernel_build: Path, tmp_path: Path
) -> None:
    """The load does not end in the step's time, which is short here: a console takes milliseconds for a line."""
    hosts = []
    for name in ("qemu-svm", "bochs-vmx"):
        text = (PROJECT / f"profiles/hosts/{name}.toml").read_text()
        assert text.count("step_s = 30") == 1
        (tmp_path / f"{name}.toml").write_text(text.replace("step_s = 30", "step_s = 5"))
        hosts.append(str(tmp_path / f"{name}.toml"))
    found = load(tmp_path, module, kernel_build, {"console": "console", "after": ""}, hosts)
    for host in ("qemu-svm", "bochs-vmx"):
        transcript = found[host, "console"]
        assert transcript["status"] in ("ERROR", "FAIL"), "that it did not end; or the function in which it was seen"
        (step,) = transcript["steps"]
        assert step["reason"].startswith("load dt_flood: the guest did not come to an end within ")
        assert found[host, "after"]["status"] == "PASS"
        assert (transcript["boot_folder"] / "console.log").stat().st_size > 0
