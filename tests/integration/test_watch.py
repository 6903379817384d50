"""Protects what a developer leaves on: a gate that is ended in the middle leaves no emulator and a record that says so,
and the next one judges. The modules are given, so that no kernel is built."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kbuild.watch import WATCHED
from tests.integration.conftest import Tool, wait_for

pytestmark = pytest.mark.kernel

WATCH = """
import sys
from kbuild.watch import watch
try:
    watch(sys.argv[1], sys.argv[2:], lambda line: print(line, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_save_in_the_middle_of_a_gate(tool: Tool, kernel_build: Path, tmp_path: Path) -> None:
    for name in WATCHED:
        (tmp_path / "tree" / name).mkdir(parents=True)
    modules = tmp_path / "modules"
    modules.mkdir()
    for path in ("virt/lib/irqbypass.ko", *(f"arch/x86/kvm/{name}.ko" for name in ("kvm", "kvm-intel", "kvm-amd"))):
        (modules / Path(path).name).symlink_to(kernel_build / path)
    kernel = kernel_build / "arch/x86/boot/bzImage"
    files = ("--modules", modules, "--kernel", kernel, "--host", "qemu-svm", "--order", "ten-loads")
    argv = [sys.executable, "-c", WATCH, str(tmp_path / "tree"), *tool.argv("gate", *files)]
    process = subprocess.Popen(argv, env=tool.environment, stdout=subprocess.PIPE, text=True)

    def emulators() -> bool:
        return any(name.startswith("qemu") for name in tool.processes().values())

    def ended() -> bool:
        records = [json.loads(path.read_text()) for path in tool.runs.glob("*/record.json")]
        return any(one.get("verdict") == "PASS" for one in records)

    wait_for(emulators, process)
    (tmp_path / "tree/virt/kvm/kvm_main.c").write_text("int x;\n")
    wait_for(ended, process)
    first, second = sorted(tool.runs.glob("*/record.json"))
    # Hosts boot while modules are inspected.
    assert json.loads(first.read_text())["interrupted"] in ("inspect", "load")
    assert json.loads(second.read_text())["verdict"] == "PASS"
    (tmp_path / "tree/virt/kvm/kvm_main.c").write_text("int y;\n")
    wait_for(emulators, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert tool.processes() == {}
