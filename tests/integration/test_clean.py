"""Protects a gate from a clean-up at the same time, and the way from Invoke's configuration to the cache's limit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from kbuild.configure.tree import Tree
from tests.integration.conftest import Tool, wait_for, write_profile

pytestmark = pytest.mark.kernel


@pytest.fixture
def cache(kernel_tree: Tree, tmp_path: Path) -> Path:
    """A cache with Debian's 6.1 and nothing else; the source itself is everybody's."""
    slot = tmp_path / "cache/kvm-kbuild/trees" / kernel_tree.slot.name
    slot.mkdir(parents=True)
    (slot / "src").symlink_to(kernel_tree.source)
    return tmp_path / "cache"


def clean(tool: Tool, cache: Path, *arguments: str) -> dict[str, Any]:
    done = tool.run("clean", *arguments, "--json", XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_what_a_gate_uses_stays_while_it_runs(tool: Tool, cache: Path, kernel_tree: Tree) -> None:
    gate = tool.start("gate", XDG_CACHE_HOME=str(cache))

    def compiled() -> int:
        logs = list(tool.runs.glob("*/build.log")) if tool.runs.is_dir() else []
        return logs[0].read_text().count("  CC ") if logs else 0

    wait_for(lambda: compiled() > 0, gate)
    done = clean(tool, cache, "--all")
    assert {one["kind"] for one in done["skipped"]} >= {"trees", "builds"}
    assert {one["reason"] for one in done["skipped"]} == {"in use"}
    assert [one["kind"] for one in clean(tool, cache, "--all", "--kind", "runs")["skipped"]] == ["runs"]
    before = compiled()
    wait_for(lambda: compiled() > before, gate)  # it goes on as if nothing had been
    gate.send_signal(signal.SIGTERM)
    assert gate.communicate(timeout=60) is not None
    assert gate.returncode == 130
    assert not clean(tool, cache, "--all")["skipped"]
    left = clean(tool, cache)["entries"]
    assert [one["kind"] for one in left] == ["runs"], "evidence stays"
    assert (kernel_tree.source / "Makefile").is_file()


def test_the_limit_is_invoke_s(tool: Tool, cache: Path, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, "-limit")
    done = tool.run("configure", "--profile", profile, XDG_CACHE_HOME=str(cache), INVOKE_KBUILD_CACHE_GB="0.0001")
    assert done.returncode == 0, done.stderr
    assert "the cache is over its limit" in done.stderr
    (build,) = [one for one in clean(tool, cache)["entries"] if one["kind"] == "builds"]
    assert Path(build["path"], ".config").is_file(), "what the run itself used stays"
    done = tool.run("configure", "--profile", profile, XDG_CACHE_HOME=str(cache), INVOKE_KBUILD_CACHE_GB="much")
    assert done.returncode == 2
    assert done.stderr == "kbuild.cache_gb = much: write how many gigabytes the cache may take, such as 40\n"
