"""Protects reports of a real run: a gate writes them all, and they show what happened on the host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import junitparser
import kcidb_io
import pytest

from kbuild.report.write import FORMATS
from tests.integration.conftest import Tool

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def reports(shared_tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, of one gate on one host."""
    folder = tmp_path_factory.mktemp("reports")
    asked = [word for name in FORMATS for word in ("--report", f"{name}={folder / name}")]
    done = shared_tool.run("gate", "--host", "qemu-svm", "--order", "vendor-alone", *asked)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_page_has_the_log_the_rules_and_the_init_flow(reports: Path) -> None:
    """svm.c, svm_hardware_setup(): says so in every load. x86.c and kvm_main.c: what svm_init() calls."""
    page = (reports / "html").read_text()
    assert "Nested Paging enabled" in page
    assert "svm_init()" in page
    assert "kmem_cache_create(&#34;pte_list_desc&#34;" in page
    assert 'href="#rule-vendor-init-before-kvm-init"' in page
    assert ".init.text" in page


def test_other_programs_read_the_others(reports: Path, kernel_source: Path) -> None:
    kunit = kernel_source / "tools/testing/kunit/kunit.py"
    argv: list[str | Path] = [sys.executable, "-B", kunit, "parse", reports / "ktap"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\[PASSED\] \d+\. load kvm_amd$", done.stdout, re.MULTILINE)
    kcidb_io.schema.V5_3.validate(json.loads((reports / "kcidb").read_text()))
    suites = junitparser.JUnitXml.fromstring((reports / "junit").read_text())
    cases = [case.name for suite in suites for case in suite if case.classname == "qemu-svm"]
    assert cases == ["vendor-alone"]
    assert "\nTested-by: NAME <ADDRESS> # emulated: qemu-svm" in (reports / "text").read_text()


def test_an_old_run_is_written_the_same_again(shared_tool: Tool, reports: Path) -> None:
    (run,) = {test["build_id"].partition(":")[2] for test in json.loads((reports / "kcidb").read_text())["tests"]}
    for name in FORMATS:
        done = shared_tool.run("report", run, "--format", name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (reports / name).read_text()
