"""Protects the user from guessing: wrong input is one line that says what and where, and exit status 2."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import PROFILE, Tool, write_profile


def refusal(tool: Tool, *arguments: str | Path) -> str:
    """The line that a task says."""
    done = tool.run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gate", "--quiet", "--tree", "/nowhere"], "no such folder"),
        (["gate", "--quiet", "--tree", "/etc/passwd"], "a file, not a folder"),
        (["gate", "--quiet", "--tree", "debian:2.6"], "debian:2.6: the archive has no linux-source-2.6"),
        (["gate", "--quiet", "--package", "linux-image-nothing"], "the archive has no such package"),
        (["gate", "--quiet", "--order", "tdp-off", "--order", "tdp-off"], "--order tdp-off: given twice"),
        (["gate", "--quiet", "--flavour", "fault", "--from", "9", "--to", "3"], "--from 9 --to 3: the last one comes"),
        (["gate", "--quiet", "--host", "qemu-svm", "--host", "qemu-svm"], "--host qemu-svm: given twice"),
        (["gate", "--quiet", "--tree", "debian:6.1", "--rev", "HEAD"], "not a git checkout"),
        (["gate", "--quiet", "--patch", "/nowhere.patch"], "cannot be read: No such file"),
        (["gate", "--quiet", "--patch", "/etc/passwd"], "/etc/passwd: not a patch"),
        (["gate", "--quiet", "--patch", "/etc/passwd", "--package", "linux-image-amd64"], "is built already"),
        (["gate", "--quiet", "--profile", "nothing"], "no such profile; known: default"),
        (["gate", "--quiet", "--order", "nothing"], "--order nothing: no such file"),
        (["gate", "--quiet", "--rules", "nothing"], "--rules nothing: no such file, here or in profiles/rules/"),
        (["gate", "--quiet", "--rules", "kvm", "--rules", "kvm"], "the rule 'pte-masks-before-hardware-setup' is in"),
        (["load", "--quiet", "--modules", "/usr/share/doc", "--kernel", "/dev/null"], "has no modules"),
        (["inspect", "--modules", "/usr/share/doc"], "has no modules"),
        (["explain", "KVM_INTLE"], "KVM_INTEL"),
        (["report", "nothing"], "no such run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words(tool: Tool, arguments: list[str], expected: str) -> None:
    assert expected in refusal(tool, *arguments)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("CONFIG_KVM_INTLE=m", ["more.config:1: ", "KVM_INTLE", "KVM_INTEL"]),
        ("CONFIG_X86_UP_APIC=y", ["more.config:1: ", "X86_32", "arch/x86/Kconfig:"]),
    ],
    ids=["no such symbol", "blocked"],
)
def test_a_symbol_that_does_not_take_effect(tool: Tool, tmp_path: Path, line: str, expected: list[str]) -> None:
    profile = write_profile(tmp_path, "-refused", f"{line}  # a test\n")
    said = refusal(tool, "gate", "--profile", profile, "--quiet")
    assert all(word in said for word in expected), said


def test_a_profile_with_a_wrong_key(tool: Tool, tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    text = PROFILE.format(title="a test", fragments='"base"', local_version="-x").replace("hosts =", "host =")
    profile.write_text(text)
    line = 1 + text.splitlines().index('host = ["qemu-svm", "bochs-vmx"]')
    assert refusal(tool, "gate", "--profile", profile, "--quiet").startswith(f"{profile}:{line}: load.host: ")


def test_a_profile_with_rules_that_are_nowhere(tool: Tool, tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    text = PROFILE.format(title="a test", fragments='"base"', local_version="-x") + '[inspect]\nrules = ["kmv"]\n'
    profile.write_text(text)
    said = refusal(tool, "gate", "--profile", profile, "--quiet")
    assert said.startswith(f"{profile}:{text.count(chr(10))}: inspect.rules: no file for 'kmv'; ")


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        ("Makefile", "not a kernel tree: there is no Makefile"),
        ("arch/x86/kvm", "a kernel tree without arch/x86/kvm: nothing to build here"),
    ],
)
def test_folders_that_are_no_tree(tool: Tool, tmp_path: Path, lacking: str, expected: str) -> None:
    tree = small_tree(tmp_path)
    (tree / lacking).rename(tmp_path / "away")
    assert refusal(tool, "gate", "--tree", tree, "--quiet") == f"{tree}: {expected}"


def small_tree(folder: Path) -> Path:
    """The least that is a kernel tree with KVM for x86."""
    tree = folder / "linux"
    (tree / "arch/x86/kvm").mkdir(parents=True)
    (tree / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 1\n")
    (tree / "arch/x86/kvm/x86.c").write_text("int x;\n")
    return tree


def test_patches(tool: Tool, tmp_path: Path) -> None:
    """One that does not apply, and one on top of changes; the checkout is small, and in a cache that is thrown away."""
    tree = small_tree(tmp_path)
    who = ["-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", tree, *words], check=True)
    patch = tmp_path / "x.patch"
    patch.write_text("--- a/arch/x86/kvm/x86.c\n+++ b/arch/x86/kvm/x86.c\n@@ -1 +1 @@\n-int y;\n+int z;\n")
    tool.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    for rev in ([], ["--rev", "HEAD"]):
        said = refusal(tool, "gate", "--tree", tree, *rev, "--patch", patch, "--quiet")
        assert said.startswith(f"{patch}:3: does not apply to arch/x86/kvm/x86.c of {tree} ")
    (tree / "arch/x86/kvm/x86.c").write_text("int y;\n")
    said = refusal(tool, "gate", "--tree", tree, "--patch", patch, "--quiet")
    assert "changes: arch/x86/kvm/x86.c: commit or stash them, or give --rev HEAD" in said


def test_invoke_s_own_refusal_is_no_verdict(tool: Tool) -> None:
    assert tool.run("gate", "--nonsense").returncode == 1
