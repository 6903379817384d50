"""Protects the table of resources: kernels export each of its functions, and what they acquire can be released."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.elf.rules.spec import read_rules
from kbuild.paths import PROJECT

RESOURCES = read_rules((PROJECT / "profiles/rules/resources.toml",)).resources
NAMES = {name for one in RESOURCES for name in (*one.acquire, *one.release)}
FOLDERS = ("arch/x86", "drivers/base", "drivers/char", "drivers/cpufreq", "drivers/iommu", "fs/debugfs", "kernel", "mm")
"""Where they are defined."""
EXPORT = re.compile(r"^EXPORT_(?:SYMBOL|PER_CPU|STATIC)\w*\((\w+)[,)]", re.MULTILINE)


@pytest.fixture(scope="module")
def exported(kernel_sources: dict[str, Path]) -> dict[str, set[str]]:
    """Those that each series' source exports: no macro is, nor an inline function of a header."""
    found: dict[str, set[str]] = {}
    for series, source in kernel_sources.items():
        files = (file for folder in FOLDERS for file in source.joinpath(folder).rglob("*.c"))
        texts = (file.read_text(errors="replace") for file in files)
        found[series] = NAMES.intersection(name for text in texts for name in EXPORT.findall(text))
    return found


def test_what_a_kernel_lets_modules_acquire_it_lets_them_release(exported: dict[str, set[str]]) -> None:
    for series, names in exported.items():
        for one in RESOURCES:
            if names & {*one.acquire} and not one.slot:
                assert names & {*one.release}, (series, one.id)
    assert {one.id for one in RESOURCES if not exported["6.1"] & {*one.acquire}} == {"allocated-shrinker"}, "since 6.7"


def test_each_name_is_one_that_a_kernel_exports(exported: dict[str, set[str]]) -> None:
    if len(exported) == 1:
        pytest.skip("some are of later kernels than 6.1: only with --all-kernels")
    assert set().union(*exported.values()) == NAMES
