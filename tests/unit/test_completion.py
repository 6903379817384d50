"""Protects completion: what a shell offers is there (tasks, options, files in profiles/, runs), in real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

import tasks
from kbuild.cache.inventory import Kind
from kbuild.configure.apt import archive
from kbuild.outcome import Status
from kbuild.paths import PROJECT
from kbuild.profile import read_profile
from kbuild.report.write import FORMATS

SCRIPT = PROJECT / "scripts/completion.bash"
ASK = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kvm_kbuild "$1"; printf "%s\\n" "${COMPREPLY[@]}"'


def offered(*words: str, cwd: Path = PROJECT, state: Path | None = None) -> list[str]:
    """What bash would offer for the last of these words, as it breaks them."""
    argv = ["bash", "-c", ASK, str(SCRIPT), *words]
    environment = {**os.environ, **({"XDG_STATE_HOME": str(state)} if state else {})}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    return sorted(done.stdout.split())


def stems(folder: str) -> list[str]:
    return sorted(path.stem for path in (PROJECT / "profiles" / folder).glob("*.toml"))


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--profile", stems(".")),
        ("--host", [*stems("hosts"), "all"]),
        ("--order", [*stems("orders"), "all"]),
        ("--rules", stems("rules")),
        ("--flavour", [one.name for one in read_profile("default").settings.flavour]),
        ("--verdict", [*map(str, Status)]),
        ("--format", FORMATS),
        ("--kind", [kind.value for kind in Kind]),
    ],
)
def test_values_are_those_that_there_are(option: str, wanted: Iterable[str]) -> None:
    assert offered("scripts/inv", "gate", option, "") == sorted(wanted)
    assert offered("scripts/inv", "gate", option, "=") == sorted(wanted)


def test_trees_are_debians_and_folders(tmp_path: Path) -> None:
    (tmp_path / "linux").mkdir()
    series = sorted(archive().series)
    inv = str(PROJECT / "scripts/inv")
    assert offered(inv, "gate", "--tree", "", cwd=tmp_path) == sorted([f"debian:{one}" for one in series] + ["linux"])
    assert offered(inv, "gate", "--tree", "debian", ":", cwd=tmp_path) == series, (
        "bash has the rest of the word already"
    )
    assert offered(inv, "gate", "--tree", "debian", ":", "7") == ["7.2"]


def test_each_option_with_values_is_one_of_a_task() -> None:
    options = {flag for name in tasks.ns.task_names for flag in tasks.ns[name].get_arguments() for flag in flag.names}
    named = re.findall(r"^ +--([a-z_]+)\)", SCRIPT.read_text(), re.MULTILINE)
    assert len(named) > 5
    assert {*named} <= options


def test_runs_by_their_ids(tmp_path: Path) -> None:
    state = tmp_path / "kvm-kbuild"
    (state / "runs/20260101-000000-0001").mkdir(parents=True)
    (state / "series/20260102-000000-0001-series").mkdir(parents=True)
    assert offered("scripts/inv", "compare", "", state=tmp_path) == ["20260101-000000-0001", "latest"]
    both = ["20260101-000000-0001", "20260102-000000-0001-series"]
    assert offered("scripts/inv", "report", "2026", state=tmp_path) == both


def test_tasks_and_options_are_invokes() -> None:
    assert offered("scripts/inv", "") == sorted(tasks.ns.task_names)
    assert offered("scripts/inv", "gate", "--fl") == ["--flavour"]
    assert offered("scripts/inv", "gate", "--watch", "--base") == ["--baseline"]


def test_another_projects_inv_is_left_alone(tmp_path: Path) -> None:
    assert offered("inv", "ga", cwd=tmp_path) == []
    assert offered("/usr/bin/inv", "ga") == []


def typed(shell: list[str], keys: str, wanted: str) -> str:
    """What a terminal shows when these keys are typed, until it shows what is wanted."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(PROJECT)
        os.environ["TERM"] = "dumb"
        os.execvp(shell[0], shell)
    shown = ""
    deadline = time.monotonic() + 60
    try:
        os.write(terminal, keys.encode())
        while wanted not in shown.replace(" \b", "") and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)
    return shown.replace(" \b", "")


def test_in_a_real_bash() -> None:
    keys = f"source {SCRIPT}\n./scripts/inv ga\t--flav\tka\t--tree debian:7\t\\\n"
    wanted = "inv gate --flavour kasan --tree debian:7.2"
    assert wanted in typed(["bash", "--norc", "--noprofile", "-i"], keys, wanted)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_in_a_real_zsh() -> None:
    start = "autoload -Uz compinit && compinit -u -D; autoload -U +X bashcompinit && bashcompinit"
    keys = f"{start}; source {SCRIPT}\n./scripts/inv ga\t--flav\tka\t"
    wanted = "inv gate --flavour kasan"
    assert wanted in typed(["zsh", "-f", "-i"], keys, wanted)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_in_a_real_fish() -> None:
    """Invoke's own, as docs/completion.md says."""
    words = 'invoke --print-completion-script fish | source; complete -C"invoke ga"; complete -C"invoke gate --fl"'
    path = f"{PROJECT / '.venv/bin'}:{os.environ['PATH']}"
    argv = ["fish", "--no-config", "-c", words]
    done = subprocess.run(
        argv, cwd=PROJECT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["gate", "--flavour"]
