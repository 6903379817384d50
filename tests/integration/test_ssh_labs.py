"""Protects gates over a place of a labgrid lab: machine and place are given back, and a panic is seen and ended.

Coordinator and exporter are labgrid's own, on loopback; the device is the Debian system in QEMU of the SSH tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import tty as terminal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import LONG, Tool, at_work, wait_for
from tests.integration.guest import Guest, Image, load, running, state
from tests.integration.lab import (
    ME,
    OTHER,
    Lab,
    as_user,
    power_switch,
    running_lab,
    serial_by_tcp,
    serial_of_exporter,
    wiring,
    write_environment,
)


@pytest.fixture
def tool(tool: Tool) -> Tool:
    """The tool of somebody whom labgrid knows by another name than whom the tests are run by."""
    return Tool({**tool.environment, **as_user(ME)}, tool.runs)


@pytest.fixture(scope="module")
def switched() -> list[bool]:
    """What the power switch was told: on or off."""
    return []


@pytest.fixture(scope="module")
def tty() -> Iterator[tuple[int, str]]:
    """A serial line of the exporter's computer: a descriptor for its other end, and its name."""
    master, line = os.openpty()
    try:
        terminal.setraw(line)
        yield master, os.ttyname(line)
    finally:
        os.close(master)
        os.close(line)


@contextlib.contextmanager
def cable(guest: Guest, end: int) -> Iterator[None]:
    """From the machine's serial line to that end of another one. What nobody reads there is lost, as on a real one: a
    machine does not stand still for it."""
    os.set_blocking(end, False)
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(guest.console))

        def carry() -> None:
            while data := console.recv(4096):
                with contextlib.suppress(BlockingIOError):
                    os.write(end, data)

        thread = threading.Thread(target=carry)
        thread.start()
        try:
            yield
        finally:
            console.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture(scope="module")
def guest_lab(
    guest: Guest, switched: list[bool], tty: tuple[int, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A lab with the machine: its serial line by TCP or by cable, its power by HTTP."""

    def switch(on: bool) -> None:
        switched.append(on)
        for command in ("system_reset", "cont") if on else ("stop",):
            guest.monitor(command)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        serial = free.getsockname()[1]
    listens = f"TCP-LISTEN:{serial},bind=127.0.0.1,fork,reuseaddr"
    argv = ["setpriv", "--pdeathsig", "KILL", "--", "socat", listens, f"UNIX-CONNECT:{guest.console}"]
    socat = subprocess.Popen(argv)
    try:
        with contextlib.ExitStack() as stack:
            power = stack.enter_context(power_switch(switch))
            resources = wiring("rack", guest.port, serial_by_tcp(serial), power)
            resources += wiring("cable", guest.port, serial_of_exporter(tty[1]), power)
            lab = stack.enter_context(running_lab(tmp_path_factory.mktemp("lab"), resources))
            lab.make_place("all", "rack/*")
            lab.make_place("service", "rack/NetworkService")
            lab.make_place("cable", "cable/*")
            yield lab
    finally:
        socat.kill()
        socat.wait()


def host_of(lab: Lab, guest: Guest, place: str = "all", boot_s: int = 240, **more: str) -> Path:
    """A host file for the machine. Whom ssh trusts, and with which key it comes, is in a configuration of its own."""
    config = lab.folder / "ssh_config"
    key = "" if "environment" in more else f"  IdentityFile {guest.folder}/key\n"
    config.write_text(
        f"Host 127.0.0.1\n{key}  IdentitiesOnly yes\n  HostKeyAlias testhost\n"
        f"  UserKnownHostsFile {guest.known_hosts}\n"
    )
    limits = f"limits = {{ boot_s = {boot_s}, step_s = 60, silent_s = 40 }}"
    return lab.host_file(place, limits, options=f'["-F", "{config}"]', **more)


def test_a_gate_waits_for_a_place_and_releases_it(tool: Tool, guest: Guest, guest_lab: Lab) -> None:
    """It goes on when the place is released, passes there, and leaves machine and place as they were."""
    before = state(guest)
    _, *words = load(guest.image, host_of(guest_lab, guest), "vendor-alone")
    with guest_lab.held("all") as release:
        gate = tool.start("gate", *words)
        wait_for(lambda: guest_lab.waiting() == [ME], gate)
        release()
        wait_for(lambda: guest_lab.holder("all") == ME, gate)
        out, err = gate.communicate(timeout=600)
    assert gate.returncode == 0, out + err
    assert f"labhost waits: place all is held by {OTHER} since" in err
    assert tool.transcript()["status"] == "PASS"
    assert (guest_lab.holder("all"), guest_lab.waiting()) == (None, [])
    assert state(guest) == before


def test_a_machine_that_nobody_knows_is_not_talked_to_there_either(tool: Tool, guest: Guest, guest_lab: Lab) -> None:
    """labgrid's own driver would take any host key; the system's ssh, which is used, does not."""
    host = host_of(guest_lab, guest)
    known = guest.known_hosts.read_text()
    guest.known_hosts.write_text("")
    try:
        done = tool.run(*load(guest.image, host, "vendor-alone"))
        assert done.returncode == 3, done.stdout + done.stderr
        assert "its host key is not the one that is known" in tool.transcript()["reason"]
        assert guest_lab.holder("all") is None
    finally:
        guest.known_hosts.write_text(known)
    checked = tool.run("host.check", "--host", host)
    assert (checked.returncode, guest_lab.holder("all")) == (0, None), checked.stdout
    assert "debian 12" in checked.stdout


@pytest.mark.usefixtures("all_kernels")
def test_one_gate_over_four_kinds_of_hosts(
    tool: Tool, image: Image, guest: Guest, guest_lab: Lab, tmp_path: Path
) -> None:
    """A kernel that was built here, at once in both emulators, on a machine by SSH, and on a place of a lab."""
    with running(image, tmp_path / "other") as other:
        machines = (guest, other)
        before = [state(one) for one in machines]
        hosts = (host_of(guest_lab, guest), other.host_file(), "qemu-svm", "bochs-vmx")
        words = ("--order", "vendor-alone", "--order", "wrong-vendor-first")
        done = tool.run("gate", "--flavour", "server", *words, *(word for host in hosts for word in ("--host", host)))
        assert done.returncode == 0, done.stdout + done.stderr
        assert [state(one) for one in machines] == before
    assert guest_lab.holder("all") is None
    record = tool.record()
    names = {"labhost", "testhost", "qemu-svm", "bochs-vmx"}
    passed = [(one["host"], one["order"], one["status"]) for one in record["transcripts"]]
    assert sorted(passed) == sorted((name, order, "PASS") for name in names for order in words[1::2])
    seen: dict[str, list[str]] = {name: [] for name in names}
    for line in (tool.latest() / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event.get("host") in names:
            seen[event["host"]].append(event["timestamp"])
    assert max(map(min, seen.values())) < min(map(max, seen.values())), "at once"


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("again", ["", "host.restore", "load"])
def test_a_run_that_ends_in_the_middle(tool: Tool, guest: Guest, guest_lab: Lab, again: str) -> None:
    """Ctrl-C gives machine and place back; after `kill -9` the next run does, or `host.restore`."""
    before = state(guest)
    host = host_of(guest_lab, guest)
    with at_work(tool, load(guest.image, host, LONG)) as work:
        work.send_signal(signal.SIGKILL if again else signal.SIGINT)
        out, err = work.communicate(timeout=300)
    if not again:
        assert work.returncode == 130, out + err
    else:
        assert guest_lab.holder("all") == ME
        words = [again, str(host)] if again == "host.restore" else load(guest.image, host, "vendor-alone")
        done = tool.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (state(guest), guest_lab.holder("all")) == (before, None)
    assert not tool.processes()


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("drivers", ["resources", "environment", "ser2net"])
def test_a_panic_is_seen_and_ended_by_the_labs_own_means(
    tool: Tool, guest: Guest, guest_lab: Lab, tty: tuple[int, str], switched: list[bool], tmp_path: Path, drivers: str
) -> None:
    """A kernel that stays where it panicked: the lab's console says why, and its power switch ends that."""
    if drivers == "ser2net" and not shutil.which("ser2net", path="/usr/sbin:/usr/bin"):
        pytest.skip("ser2net is not installed (its package brings a service, so that the tests do not bring it)")
    before = state(guest)
    monitor, off = f"UNIX-CONNECT:{guest.folder}/monitor", tmp_path / "off"
    more: dict[str, str] = {}
    if drivers == "environment":
        # All by drivers that the user has named, and the key, too.
        commands = {
            "cmd_off": f"touch {off}",
            "cmd_on": "sh -c " + shlex.quote(f"printf 'system_reset\\ncont\\n' | socat - {monitor}"),
        }
        console = f"socat -u UNIX-CONNECT:{guest.folder}/console -"
        write_environment(tmp_path / "lab.yaml", "service", commands, console, guest.folder / "key")
        more = {"environment": f'"{tmp_path}/lab.yaml"'}
    place = {"resources": "all", "environment": "service", "ser2net": "cable"}[drivers]
    switched.clear()
    host = host_of(guest_lab, guest, place, boot_s=150, **more)
    # The exporter starts ser2net, which speaks RFC 2217, when the place is acquired.
    wired = cable(guest, tty[0]) if drivers == "ser2net" else contextlib.nullcontext()
    with wired, at_work(tool, load(guest.image, host, LONG)) as work:
        guest.ssh(
            "echo 0 > /proc/sys/kernel/panic; echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
            check=False,
        )
        out, err = work.communicate(timeout=900)
    assert work.returncode == 10, out + err
    one = tool.transcript()
    assert "sysrq triggered crash" in str(one["findings"])
    assert (one["status"], guest_lab.holder(place)) == ("FAIL", None)
    assert off.exists() if drivers == "environment" else switched == [False, True]
    assert state(guest) == before
