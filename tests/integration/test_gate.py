"""Protects the main job: a released kernel passes on both vendors, and a broken one fails for the right reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kbuild.configure.tree import open_tree
from tests.integration.conftest import Tool, write_profile

pytestmark = pytest.mark.kernel

VENDORS = {"qemu-svm": "kvm_amd", "bochs-vmx": "kvm_intel"}


@pytest.fixture(scope="session")
def passed(shared_tool: Tool) -> dict[str, Any]:
    """The gate of Debian's 6.1."""
    done = shared_tool.run("gate", "--json")
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def steps(data: dict[str, Any], host: str, order: str) -> list[dict[str, Any]]:
    (transcript,) = (one for one in data["transcripts"] if (one["host"], one["order"]) == (host, order))
    found: list[dict[str, Any]] = transcript["steps"]
    return found


@pytest.mark.parametrize(("host", "vendor"), VENDORS.items())
def test_both_vendors_load_and_run_guests(passed: dict[str, Any], host: str, vendor: str) -> None:
    assert passed["verdict"] == "PASS"
    assert {one["status"] for one in passed["transcripts"]} == {"PASS"}
    done = steps(passed, host, "vendor-alone")
    loads = [(step["module"], step["errno"], step["added"] is not None) for step in done if step["action"] == "load"]
    assert loads == [("irqbypass", None, True), ("kvm", None, True), (vendor, None, False)]
    smokes = [step["detail"] for step in done if step["action"] == "smoke"]
    assert {one["kind"] for one in smokes} == {"real-mode", "long-mode"}
    assert all(one["output"] for one in smokes)
    unloads = [step["module"] for step in done if step["action"] == "unload"]
    assert unloads == [vendor, "kvm", "irqbypass"], "what was loaded by itself goes by itself, in the other direction"
    assert done[-1]["detail"] == {"what": "footprint"}


def test_each_log_line_belongs_to_the_step_that_caused_it(passed: dict[str, Any]) -> None:
    """arch/x86/kvm/svm/svm.c, svm_hardware_setup(): says so while kvm_amd loads, and at no other time."""
    lines = {
        step["module"]: [line["text"] for line in step["log"]]
        for step in steps(passed, "qemu-svm", "vendor-alone")
        if step["action"] == "load"
    }
    assert any("Nested Paging enabled" in text for text in lines["kvm_amd"])
    assert not any("Nested Paging" in text for name in ("irqbypass", "kvm") for text in lines[name])


def test_refusals_are_expected_and_cite_the_kernel(passed: dict[str, Any]) -> None:
    for host, other in (("qemu-svm", "kvm_intel"), ("bochs-vmx", "kvm_amd")):
        for order, errno in (("wrong-vendor-first", "EOPNOTSUPP"), ("second-vendor-while-first-is-loaded", "EEXIST")):
            (refused,) = (step for step in steps(passed, host, order) if step["module"] == other and step["errno"])
            assert (refused["errno"], refused["expected"]) == (errno, errno)
            assert ".c, " in refused["why"]


def test_a_second_gate_builds_nothing_and_loads_everything_again(shared_tool: Tool, passed: dict[str, Any]) -> None:
    done = shared_tool.run("gate", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["run"] != passed["run"]
    assert not (shared_tool.latest() / "build.log").exists()
    assert data["artifacts"] == passed["artifacts"]

    def inputs(of: dict[str, Any]) -> set[str]:
        return {
            step["detail"]["input"] for one in of["transcripts"] for step in one["steps"] if step["action"] == "smoke"
        }

    assert inputs(data)
    assert not inputs(data) & inputs(passed), "a guest's answer must be to this run's question"


def test_the_record_says_what_was_judged(shared_tool: Tool, passed: dict[str, Any]) -> None:
    folder = Path(passed["folder"])
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["tree"]["package"].startswith("linux-source-6.1 6.1.")
    assert os.access(folder / "reproduce.sh", os.X_OK)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {event.get("run") for event in events} == {passed["run"]}
    stages = {event["stage"]: event["seconds"] for event in events if event["event"] == "stage"}
    assert set(stages) == {"tree", "configure", "build", "inspect", "load"}
    some = next(event for event in events if event["event"] == "step" and event["host"] == "bochs-vmx")
    assert {"stage", "host", "order", "step"} <= some.keys()
    shown = shared_tool.run("report", passed["run"])
    assert shown.returncode == 0
    assert shown.stdout.startswith("PASS")


def test_the_build_can_be_done_again_by_hand(passed: dict[str, Any], kernel_source: Path, tmp_path: Path) -> None:
    """From nothing, in another folder, without this tool and without ccache: the very same bytes."""
    script = Path(passed["folder"]) / "reproduce.sh"
    subprocess.run([script, kernel_source, tmp_path], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    modules = [(tmp_path / line).with_suffix(".ko") for line in (tmp_path / "modules.order").read_text().split()]
    made = {path.name: path for path in [*modules, tmp_path / "arch/x86/boot/bzImage", tmp_path / "vmlinux"]}
    assert {name for name in passed["artifacts"] if name.endswith(".ko")} < set(made)
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in made.items()}
    assert digests == {name: passed["artifacts"][name] for name in made}


@pytest.fixture(scope="session")
def broken_tree(kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """6.1 with a BUG() in svm_init(), and a vmx_init() that returns an error."""
    folder = tmp_path_factory.mktemp("broken") / "linux"
    subprocess.run(["cp", "-a", "--reflink=auto", kernel_source, folder], check=True)
    for file, call, instead in (
        ("svm/svm.c", "r = kvm_x86_vendor_init(&svm_init_ops);", "BUG();"),
        ("vmx/vmx.c", "r = kvm_x86_vendor_init(&vmx_init_ops);", "return -EIO;"),
    ):
        path = folder / "arch/x86/kvm" / file
        text = path.read_text()
        assert text.count(call) == 1
        path.write_text(text.replace(call, f"{instead}\n\t{call}"))
    yield folder
    # Its copy in the cache is of no use to anybody after this.
    with open_tree(str(folder)) as tree:
        slot = tree.slot
    shutil.rmtree(slot)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def failed(shared_tool: Tool, passed: dict[str, Any], broken_tree: Path) -> dict[str, Any]:  # noqa: ARG001 (comes first)
    """The gate of the broken tree, on hosts where the real one just passed."""
    done = shared_tool.run("gate", "--tree", broken_tree, "--json")
    assert done.returncode == 10, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def finding(data: dict[str, Any], host: str) -> dict[str, Any]:
    (found,) = (
        one
        for one in data["findings"]
        if (one["host"], one["order"]) == (host, "vendor-alone") and one["status"] == "FAIL"
    )
    result: dict[str, Any] = found
    return result


def test_bug_in_svm_init_fails_with_step_and_stack(failed: dict[str, Any]) -> None:
    assert failed["verdict"] == "FAIL"
    found = finding(failed, "qemu-svm")
    assert found["module"] == "kvm_amd"
    assert "svm_init" in found["id"]
    assert any("kernel BUG at arch/x86/kvm/svm/svm.c:" in line for line in found["evidence"])
    assert any("Call Trace" in line for line in found["evidence"])
    last = steps(failed, "qemu-svm", "vendor-alone")[-1]
    assert (last["action"], last["module"], last["status"]) == ("load", "kvm_amd", "FAIL")


def test_error_of_vmx_init_fails_where_the_host_is_known_to_load_it(
    failed: dict[str, Any], passed: dict[str, Any]
) -> None:
    found = finding(failed, "bochs-vmx")
    assert found["module"] == "kvm_intel"
    assert "expected success, got EIO" in found["message"]
    assert passed["run"] in found["message"], "the run that shows what this host can do"


def test_the_same_error_on_an_unknown_host_blames_nobody(tool: Tool, failed: dict[str, Any]) -> None:
    artifacts = Path(failed["folder"]) / "artifacts"
    where = ("--host", "bochs-vmx", "--order", "vendor-alone")
    done = tool.run("load", "--modules", artifacts, "--kernel", artifacts / "bzImage", *where, "--json")
    assert done.returncode == 3, done.stdout
    (transcript,) = json.loads(done.stdout)["transcripts"]
    assert transcript["status"] == "ERROR"


def test_the_command_that_shows_it_again_does(failed: dict[str, Any], shared_tool: Tool) -> None:
    command = finding(failed, "bochs-vmx")["reproduce"]
    done = subprocess.run(
        ["sh", "-c", command], env=shared_tool.environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 10, done.stderr
    assert "expected success, got EIO" in done.stdout


@contextmanager
def appended(path: Path, text: str) -> Iterator[int]:
    """A file with more at its end, for a while; gives the number of its first new line."""
    before = path.read_text()
    path.write_text(before + text)
    yield before.count("\n") + 1
    path.write_text(before)


def builds(tool: Tool, tree: Path) -> tuple[int, list[dict[str, Any]]]:
    done = tool.run("build", "--tree", tree, "--json")
    return done.returncode, json.loads(done.stdout)["findings"]


def test_a_compile_error_has_file_and_line(shared_tool: Tool, failed: dict[str, Any], broken_tree: Path) -> None:  # noqa: ARG001
    """In the object folder of the gate before: one file is compiled."""
    with appended(broken_tree / "arch/x86/kvm/svm/svm.c", "int f(void) { return nothing; }\n") as line:
        status, (found, *_) = builds(shared_tool, broken_tree)
    assert status == 10
    assert (found["file"], found["line"]) == ("arch/x86/kvm/svm/svm.c", line)
    assert found["message"].startswith(f"arch/x86/kvm/svm/svm.c:{line}: error: ")
    assert "make[" in (shared_tool.latest() / "build.log").read_text(), "the rest of it"


def test_a_warning_is_not_forgotten_by_an_incremental_build(
    shared_tool: Tool,
    failed: dict[str, Any],  # noqa: ARG001
    broken_tree: Path,
) -> None:
    """make says it once: when it compiles the file. The tree has it until the file is compiled again without."""
    kvm = broken_tree / "arch/x86/kvm"
    with appended(kvm / "svm/svm.c", "static int f(void) { return 0; }\n") as line:
        first = builds(shared_tool, broken_tree)
        with appended(kvm / "vmx/vmx.c", "/* another file changed */\n"):
            second = builds(shared_tool, broken_tree)
            assert "svm.o" not in (shared_tool.latest() / "build.log").read_text()
    for status, findings in (first, second):
        (found,) = (one for one in findings if one["id"].startswith("build:warning:"))
        assert status == 10
        assert found["id"] == "build:warning:arch/x86/kvm/svm/svm.c:-Wunused-function"
        assert (found["line"], found["option"]) == (line, "-Wunused-function")
    assert builds(shared_tool, broken_tree)[0] == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("CONFIG_KVM_INTLE=m", ["more.config:1: ", "KVM_INTLE", "KVM_INTEL"]),
        ("CONFIG_X86_UP_APIC=y", ["more.config:1: ", "X86_32", "arch/x86/Kconfig:"]),
    ],
    ids=["no such symbol", "blocked"],
)
def test_a_symbol_that_does_not_take_effect_is_the_user_s(
    tool: Tool, tmp_path: Path, line: str, expected: list[str]
) -> None:
    profile = write_profile(tmp_path, "-refused", f"{line}  # a test\n")
    done = tool.run("gate", "--profile", profile, "--quiet")
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert all(word in said for word in expected), said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gate", "--tree", "/nowhere"], "no such folder"),
        (["gate", "--tree", "debian:6.1", "--rev", "HEAD"], "not a git checkout"),
        (["gate", "--profile", "nothing"], "no such profile; known: default"),
        (["gate", "--order", "nothing"], "--order nothing: no such file"),
        (["load", "--modules", "/usr/share/doc", "--kernel", "/dev/null"], "has no modules"),
        (["inspect", "--modules", "/usr/share/doc"], "has no modules"),
        (["explain", "KVM_INTLE"], "KVM_INTEL"),
        (["report", "nothing"], "no such run"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tool: Tool, arguments: list[str], expected: str) -> None:
    done = tool.run(*arguments, "--quiet") if arguments[0] in ("gate", "load") else tool.run(*arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert expected in line


def test_invoke_s_own_refusal_is_no_verdict(tool: Tool) -> None:
    assert tool.run("gate", "--nonsense").returncode == 1
