"""Protects the verdict on other kernels than 6.1: each series' source and its newest package, all orders, both vendors.

Only with `inv test --all-kernels`: a source takes minutes to build, and a package half a minute to boot, each.
"""

from __future__ import annotations

import json
import re

import pytest

from kbuild.configure.apt import archive, find, oldest_first
from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel

SERIES = list(archive().series)


@pytest.fixture(autouse=True)
def all_kernels(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--all-kernels"):
        pytest.skip("only with --all-kernels")


def newest_package(series: str) -> str:
    """The youngest kernel of the usual flavour that the archive has."""
    apt, _ = find(f"linux-source-{series}", series)
    pattern = re.compile(rf"linux-image-{re.escape(series)}\.\d[\d.]*(?:-\d+|\+deb\d+(?:\.\d+)?)-amd64")
    names = {name: apt.versions(name) for name in apt.names(f"linux-image-{series}.") if pattern.fullmatch(name)}
    newest = oldest_first(versions[0] for versions in names.values() if versions)[-1]
    return next(f"{name}={newest}" for name, versions in names.items() if newest in versions)


def judge(tool: Tool, *words: str) -> None:
    done = tool.run("gate", *words, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["verdict"] == "PASS"
    assert {one["status"] for one in data["transcripts"]} == {"PASS"}
    orders, hosts = ({one[key] for one in data["transcripts"]} for key in ("order", "host"))
    assert len(data["transcripts"]) == len(orders) * len(hosts)
    assert hosts == {"qemu-svm", "bochs-vmx"}


@pytest.mark.parametrize("series", SERIES)
def test_the_source(shared_tool: Tool, series: str) -> None:
    judge(shared_tool, "--tree", f"debian:{series}")


@pytest.mark.parametrize("series", SERIES)
def test_what_debian_ships(shared_tool: Tool, series: str) -> None:
    judge(shared_tool, "--package", newest_package(series))


@pytest.mark.parametrize("series", SERIES)
def test_every_order_there_is(shared_tool: Tool, series: str) -> None:
    """Settings and generated sequences included: some minutes in Bochs."""
    done = shared_tool.run("gate", "--tree", f"debian:{series}", "--order", "all", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert {one["status"] for one in data["transcripts"]} <= {"PASS", "SKIP"}
    assert len([one for one in data["transcripts"] if one["status"] == "PASS"]) > 500
