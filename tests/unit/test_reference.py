"""Protects docs/reference.md and docs/adding.md: they are what the code gives, and takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from kbuild.dmesg import signatures
from kbuild.elf.rules.spec import read_rules
from kbuild.hosts.spec import read_host
from kbuild.paths import PROJECT
from kbuild.profile import SHIPPED

TEXT = (PROJECT / "docs/reference.md").read_text("utf-8")


def test_the_reference_is_what_the_code_gives() -> None:
    argv = [sys.executable, str(PROJECT / "scripts/reference"), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_there_is_is_named() -> None:
    for kind in (".", "orders", "hosts", "rules"):
        for path in (SHIPPED / kind).glob("*.toml"):
            assert f"`{path.stem}`" in TEXT or f"`--rules {path.stem}`" in TEXT, path


def examples() -> dict[str, str]:
    """The TOML files of docs/adding.md, by their first table or key."""
    text = (PROJECT / "docs/adding.md").read_text("utf-8")
    host, rule, signature = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return {"host": host, "rule": rule, "signature": signature}


def test_what_the_docs_add_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(examples()["host"])
    assert read_host(path).id == "qemu-svm-rome"
    path.write_text(examples()["rule"])
    assert [one.id for one in read_rules((path,)).orders] == ["irqfd-before-the-vcpu-cache"]
    path.write_text(examples()["signature"])
    assert [one.id for one in signatures.load(path).signatures] == ["bus-lost"]
