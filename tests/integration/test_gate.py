"""Protects the main job: a released kernel passes on both vendors, and a broken one fails for the right reason."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import subprocess
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kbuild.elf.object import ElfObject
from kbuild.paths import PROJECT
from tests.integration.conftest import Tool

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
    assert done[-1]["detail"]["what"] == "footprint"


def test_rules_are_asked_and_counted(passed: dict[str, Any]) -> None:
    """6.1 keeps all rules of the default profile but the one that it is known for; those of others are not asked."""
    rules = passed["rules"]
    assert rules["answers"].keys() == {"proved", "unreached", "known"}
    assert rules["answers"]["known"] == 1
    assert sum(rules["answers"].values()) == rules["asked"]
    answers = [one for one in passed["findings"] if one["id"].startswith("inspect:rule:")]
    (known,) = (one for one in answers if one["status"] != "PASS")
    assert known["id"] == "inspect:rule:kvm-intel:l1d-flush-after-hardware-setup-in-6.1"
    assert "enable_ept" in known["known"]
    assert not passed["known_not_seen"], "what is known of other kernels was not looked for"
    assert not {one["rule"] for one in answers} & {*rules["other_kernels"]}
    (line,) = (stage["summary"] for stage in passed["stages"] if stage["name"] == "inspect")
    assert f"{rules['answers']['proved']} rules proved" in line


def test_what_init_does_not_release_is_looked_for_and_known(passed: dict[str, Any]) -> None:
    """6.1's kvm_init() and vmx.c, as docs/findings.md says; for AVIC's notifier this kernel has no driver."""
    asked = [one for one in passed["findings"] if one["rule"] == "resource"]
    found = {one["id"].removeprefix("inspect:resource:"): one for one in asked}
    both = ("debugfs_create_dir-kvm-error", "register_syscore_ops-kvm_syscore_ops-error")
    handler = "kvm-intel:kvm_set_posted_intr_wakeup_handler-pi_wakeup_handler-error"
    assert found.keys() == {f"kvm-{vendor}:{what}" for vendor in ("amd", "intel") for what in both} | {handler}
    assert all(one["status"] == "FAIL" and one["known"] for one in found.values())


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


def diff(source: Path, changes: Mapping[str, Callable[[str], str]]) -> str:
    """Changes of files below arch/x86/kvm, as a patch."""
    lines: list[str] = []
    for name, change in changes.items():
        path = f"arch/x86/kvm/{name}"
        old = (source / path).read_text()
        new = change(old)
        assert new != old
        lines += difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}")
    return "".join(lines)


@pytest.fixture
def masks_reset_once(kernel_source: Path, tmp_path: Path) -> Path:
    """A patch that resets the masks while kvm.ko loads: harmless where only one vendor's module is ever loaded."""

    def change(text: str) -> str:
        text = text.replace("\tkvm_mmu_reset_all_pte_masks();\n\n\tpte_list", "\tpte_list")
        first = "\tkvm_mmu_spte_module_init();\n"
        return text.replace(first, f"{first}\tkvm_mmu_reset_all_pte_masks();\n")

    path = tmp_path / "masks.patch"
    path.write_text(diff(kernel_source, {"mmu/mmu.c": change}))
    return path


def test_what_no_load_shows_fails_by_its_rule(
    shared_tool: Tool,
    passed: dict[str, Any],  # noqa: ARG001 (the hosts are known to load it)
    masks_reset_once: Path,
) -> None:
    """mmu.c, kvm_mmu_vendor_module_init(): masks need to be reset when a potentially different vendor module is loaded.

    Each host can load one vendor's only.
    """
    rule = "pte-masks-before-hardware-setup"
    done = shared_tool.run("gate", "--patch", masks_reset_once, "--order", "vendor-alone", "--json")
    assert done.returncode == 10, done.stderr
    data = json.loads(done.stdout)
    assert {stage["name"]: stage["status"] for stage in data["stages"]} == {
        "tree": "DONE",
        "configure": "PASS",
        "build": "PASS",
        "inspect": "FAIL",
        "load": "PASS",
    }
    found = {one["id"]: one for one in data["findings"] if one["status"] == "FAIL"}
    assert {f"inspect:rule:{module}:{rule}" for module in ("kvm-amd", "kvm-intel")} <= found.keys()
    told = found[f"inspect:rule:kvm-amd:{rule}"]
    assert told["answer"] == "violated"
    assert "svm_init" in told["witness"][0]
    assert told["witness"][-1] == "kvm_mmu_reset_all_pte_masks() has not happened on this way"

    shown = shared_tool.run("report", data["run"])
    assert shown.returncode == 10
    assert f"FAIL {rule}: kvm-amd: violated: " in shown.stdout
    assert f"also: {rule}: kvm-intel" in shown.stdout
    assert told["witness"][-1] in shown.stdout
    again = subprocess.run(["sh", "-c", told["reproduce"]], capture_output=True, text=True, timeout=300)
    assert again.returncode == 10, again.stderr
    assert f"id: {told['id']}" in again.stdout


def test_a_rule_that_is_known_to_be_broken_does_not_count(
    shared_tool: Tool, passed: dict[str, Any], tmp_path: Path
) -> None:
    """6.1 makes the cache before hardware_setup(), as mmu-setup-thread.toml says of all released kernels."""
    default = (PROJECT / "profiles/default.toml").read_text()
    known = "".join(
        f'[[known]]\nfinding = "inspect:rule:*:pte-list-desc-cache-{name}"\nreason = "as it was released"\n'
        for name in ("after-tdp-is-known", "after-hardware-setup", "that-nobody-asks-for")
    )
    known += '[[known]]\nfinding = "inspect:rule:*:thread-pte-masks-*"\nreason = "it is kept"\n'
    profile = tmp_path / "profile.toml"
    profile.write_text(f"{default}\n{known}")
    folder = Path(passed["folder"]) / "artifacts"
    ask = ("gate", "--modules", folder, "--kernel", folder / "bzImage", "--profile", profile, "--json")
    one = ("--order", "vendor-alone", "--host", "qemu-svm", "--rules", "mmu-setup-thread")
    done = shared_tool.run(*ask, *one)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["rules"]["answers"] == {"known": 2, "proved": 1}
    assert [one["known"] for one in data["findings"] if one["answer"] == "violated"] == ["as it was released"] * 4
    assert [one["reason"] for one in data["known_not_seen"]] == ["it is kept"], "the others were not asked, or broke"
    assert shared_tool.run(*ask, *one, "--no-known").returncode == 10


@pytest.fixture(scope="session")
def broken(kernel_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch that puts a BUG() into svm_init(), and lets vmx_init() return an error."""
    changes: dict[str, Callable[[str], str]] = {
        "svm/svm.c": lambda text: text.replace("r = kvm_x86_vendor_init(", "BUG();\n\tr = kvm_x86_vendor_init("),
        "vmx/vmx.c": lambda text: text.replace("r = kvm_x86_vendor_init(", "return -EIO;\n\tr = kvm_x86_vendor_init("),
    }
    path = tmp_path_factory.mktemp("broken") / "broken.patch"
    path.write_text(diff(kernel_source, changes))
    return path


@pytest.fixture(scope="session")
def failed(shared_tool: Tool, passed: dict[str, Any], broken: Path) -> dict[str, Any]:  # noqa: ARG001 (comes first)
    """The gate of 6.1 with the patch, on hosts where the real one just passed."""
    done = shared_tool.run("gate", "--patch", broken, "--json")
    assert done.returncode == 10, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_the_build_can_be_done_again_by_hand(
    failed: dict[str, Any], kernel_source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From nothing, in another folder, without this tool and without ccache, patch included: the very same bytes.

    Of a whole kernel this takes a CPU ten minutes. Without --all-kernels only KVM's objects are made, and their code is
    what the modules have.
    """
    run, whole = Path(failed["folder"]), request.config.getoption("--all-kernels")
    script, objects = tmp_path / "reproduce.sh", tmp_path / "objects"
    goals = "bzImage modules"
    text = (run / "reproduce.sh").read_text()
    assert text.endswith(f" {goals}\n")
    script.write_text(text if whole else text.removesuffix(f"{goals}\n") + "arch/x86/kvm/\n")
    script.chmod((run / "reproduce.sh").stat().st_mode)
    for name in ("config", "patches"):
        (tmp_path / name).symlink_to(run / name)
    subprocess.run([script, kernel_source, objects], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    built = {name for name in failed["artifacts"] if name.endswith(".ko")}
    if not whole:
        made = {path.name: path for path in (objects / "arch/x86/kvm").glob("kvm*.o") if f"{path.stem}.ko" in built}
        assert len(made) == len(("kvm", *VENDORS))
        code = {name: code_of(path) for name, path in made.items()}
        assert code == {name: code_of(run / "artifacts" / f"{Path(name).stem}.ko") for name in made}
        return
    modules = [(objects / line).with_suffix(".ko") for line in (objects / "modules.order").read_text().split()]
    made = {path.name: path for path in [*modules, objects / "arch/x86/boot/bzImage", objects / "vmlinux"]}
    assert built < set(made)
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in made.items()}
    assert digests == {name: failed["artifacts"][name] for name in made}


def code_of(path: Path) -> dict[str, str]:
    """By section with code, a digest of it."""
    elf = ElfObject(path.read_bytes())
    code = [section for section in elf.sections if "X" in section.flags]
    return {section.name: hashlib.sha256(elf.content(section)).hexdigest() for section in code}


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


def builds(tool: Tool, *patches: Path) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status and findings of 6.1's build with patches, and what make said."""
    done = tool.run("build", "--json", *(word for patch in patches for word in ("--patch", patch)))
    log = tool.latest() / "build.log"
    return done.returncode, json.loads(done.stdout)["findings"], log.read_text() if log.exists() else ""


@pytest.fixture
def append(kernel_source: Path, tmp_path: Path) -> Callable[[str, str], tuple[Path, int]]:
    """Makes patches that put text at the end of a file: gives the patch, and the number of its first new line.

    Each is another one in each session: what an object folder knows of its earlier builds is not built again.
    """

    def make(file: str, text: str) -> tuple[Path, int]:
        patch = tmp_path / f"{len(list(tmp_path.iterdir()))}.patch"
        mark = f"{'#' if file.endswith('Kconfig') else '//'} {uuid.uuid4()}\n"
        patch.write_text(diff(kernel_source, {file: lambda old: old + text + mark}))
        return patch, (kernel_source / "arch/x86/kvm" / file).read_text().count("\n") + 1

    return make


def test_a_compile_error_has_file_and_line(
    shared_tool: Tool,
    failed: dict[str, Any],  # noqa: ARG001 (another patch in the same folder)
    append: Callable[[str, str], tuple[Path, int]],
) -> None:
    patch, line = append("svm/svm.c", "int f(void) { return nothing; }\n")
    status, (found, *_), log = builds(shared_tool, patch)
    assert status == 10
    assert (found["file"], found["line"]) == ("arch/x86/kvm/svm/svm.c", line)
    assert found["message"].startswith(f"arch/x86/kvm/svm/svm.c:{line}: error: ")
    assert "make[" in log, "the rest of it"


def test_what_modpost_refuses_has_its_module(
    shared_tool: Tool,
    failed: dict[str, Any],  # noqa: ARG001 (another patch in the same folder)
    append: Callable[[str, str], tuple[Path, int]],
) -> None:
    """Everything compiles and does not fit: a symbol that nobody has, and code that outlives what it calls."""
    code = """int nobody_has_this(void);
static noinline int __init at_init(void) { return nobody_has_this(); }
int later(void);
int later(void) { return at_init(); }
"""
    patch, _ = append("svm/svm.c", code)
    status, findings, _ = builds(shared_tool, patch)
    assert status == 10
    error, *warnings = (one for one in findings if one["status"] == "FAIL")
    assert error["message"] == 'modpost: kvm-amd: "nobody_has_this" [arch/x86/kvm/kvm-amd.ko] undefined!'
    assert error["id"].startswith("build:error:kvm-amd:nobody_has_this-")
    assert error["message"] == shared_tool.record()["stages"][-1]["reason"]
    (mismatch,) = warnings
    assert mismatch["module"] == "kvm-amd"
    assert "section mismatch in reference: later" in mismatch["message"]


def test_patches_in_turn_build_what_differs_and_forget_nothing(
    shared_tool: Tool, failed: dict[str, Any], broken: Path, append: Callable[[str, str], tuple[Path, int]]
) -> None:
    """make says a warning once, when it compiles the file: the tree has it until the file is compiled without."""
    unused, line = append("svm/svm.c", "static int f(void) { return 0; }\n")
    other, _ = append("vmx/vmx.c", "/* another file changed */\n")
    first = builds(shared_tool, unused)
    second = builds(shared_tool, unused, other)
    for status, findings, _ in (first, second):
        (found,) = (one for one in findings if one["id"].startswith("build:warning:"))
        assert status == 10
        assert found["id"] == "build:warning:arch/x86/kvm/svm/svm.c:-Wunused-function"
        assert (found["line"], found["option"]) == (line, "-Wunused-function")
    assert set(re.findall(r"  CC \[M\]  (\S+)", second[2])) == {"arch/x86/kvm/vmx/vmx.o"}
    status, findings, log = builds(shared_tool, other)
    assert (status, findings) == (0, [])
    assert set(re.findall(r"  CC \[M\]  (\S+)", log)) == {"arch/x86/kvm/svm/svm.o"}
    assert builds(shared_tool, broken) == (0, [], ""), "built before"
    assert json.loads(shared_tool.run("report", "latest", "--json").stdout)["artifacts"] == failed["artifacts"]
    assert builds(shared_tool) == (0, [], ""), "the tree below is as it was"


def test_only_a_change_that_kconfig_reads_is_configured_anew(
    shared_tool: Tool,
    failed: dict[str, Any],  # noqa: ARG001 (another patch in the same folder)
    append: Callable[[str, str], tuple[Path, int]],
) -> None:
    def configured(*changes: tuple[str, str]) -> str:
        patches = [word for file, text in changes for word in ("--patch", append(file, text)[0])]
        done = shared_tool.run("build", "--json", *patches)
        (summary,) = (one["summary"] for one in json.loads(done.stdout)["stages"] if one["name"] == "configure")
        return str(summary).split(" symbols")[1]

    source = ("vmx/vmx.c", "/* not looked at by Kconfig */\n")
    configured(source)  # whatever was configured before: perhaps this test's last patch, of an earlier session
    assert configured(source) == ", as before"
    assert configured(source, ("Kconfig", "config KVM_KBUILD_TEST\n\tdef_bool n\n")) == " took effect"


def test_hosts_boot_while_an_edit_of_a_module_is_built(
    shared_tool: Tool,
    failed: dict[str, Any],  # noqa: ARG001 (another patch in the same folder)
    append: Callable[[str, str], tuple[Path, int]],
) -> None:
    """The kernel itself is as it was. What an edit gives that does not compile needs no host."""

    def gate(text: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
        done = shared_tool.run("gate", "--json", "--order", "vendor-alone", "--patch", append("svm/svm.c", text)[0])
        lines = (shared_tool.latest() / "log.jsonl").read_text().splitlines()
        return done.returncode, [json.loads(line) for line in lines], json.loads(done.stdout)

    gate("/* whatever was built here before: perhaps with another configuration */\n")
    status, events, data = gate("/* an edit */\n")
    assert status == 0
    assert {one["boot"] for one in data["transcripts"]} == {1}
    names = [(event["event"], event.get("host")) for event in events]
    for host in VENDORS:
        assert names.index(("boot.whole.start", host)) < names.index(("make", None)) < names.index(("boot.fetch", host))
        assert names.count(("boot", host)) == 1
    folders = {path.name for path in (shared_tool.latest() / "hosts/bochs-vmx/boot-1").iterdir()}
    assert {"console.log", "agent.log"} <= folders
    assert not {"disk", "initramfs"} & folders

    status, events, _ = gate("does not compile\n")
    assert status == 10
    # They begin one after the other, and make may have come to its end before that.
    assert {event.get("host") for event in events if event["event"] == "boot.whole.start"} <= {*VENDORS}
    assert not (shared_tool.latest() / "hosts").exists()
    assert shared_tool.processes() == {}


def test_another_kernel_is_booted_anew(
    shared_tool: Tool,
    failed: dict[str, Any],  # noqa: ARG001 (another patch in the same folder)
    kernel_source: Path,
    tmp_path: Path,
) -> None:
    name = "init/calibrate.c"
    old = (kernel_source / name).read_text().splitlines(True)
    new = [*old, f'const char kvm_kbuild_test[] __attribute__((used)) = "{uuid.uuid4()}";\n']
    patch = tmp_path / "other.patch"
    patch.write_text("".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")))
    done = shared_tool.run("gate", "--order", "vendor-alone", "--patch", patch)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (shared_tool.latest() / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("boot.ahead-unused") == len(VENDORS)
    kernels = {event["host"] for event in events if event["event"] == "boot"}
    assert kernels == {*VENDORS}
    assert shared_tool.processes() == {}
