"""Protects places of a labgrid lab: they are waited for, held while a run uses them, and released whatever happens.

Coordinator and exporter are labgrid's own, on loopback; the device is the Debian system in QEMU of the SSH tests.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import LONG, Tool, at_work, wait_for
from tests.integration.guest import Guest, Image, load, state
from tests.integration.lab import ME, OTHER, Lab, as_user, power_switch, running_lab

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d"


@pytest.fixture
def tool(tool: Tool) -> Tool:
    """The tool of somebody whom labgrid knows by another name than whom the tests are run by."""
    return Tool({**tool.environment, **as_user(ME)}, tool.runs)


# Without a machine.


@pytest.fixture(scope="module")
def silent() -> Iterator[socket.socket]:
    """A machine that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture(scope="module")
def lab(silent: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose machines do not answer: one says nothing, the other one refuses connections."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = {"silent": silent.getsockname()[1], "closed": closed.getsockname()[1]}
        service = "{group}:\n  NetworkService:\n    address: 127.0.0.1\n    username: root\n    port: {port}\n"
        resources = "".join(service.format(group=name, port=port) for name, port in ports.items())
        with running_lab(tmp_path_factory.mktemp("lab"), resources) as lab:
            for name in ports:
                lab.make_place(name, f"{name}/*")
            lab.make_place("empty", "nowhere/*")
            yield lab


def test_a_held_place_is_waited_for_and_that_has_an_end(tool: Tool, image: Image, lab: Lab) -> None:
    """Whoever waits is told for whom; in the end it is the host's failure, and nothing has changed."""
    host = lab.host_file("closed", wait_s="2")
    by = rf"is held by {OTHER} since {TIME}"
    held = f"place closed {by}"
    with lab.held("closed"):
        done = tool.run(*load(image, host, "vendor-alone"))
        assert done.returncode == 3, done.stdout + done.stderr
        assert re.search(rf"labhost waits: {held}\n", done.stderr), done.stderr
        one = tool.transcript()
        assert one["status"] == "MISS"
        assert re.fullmatch(rf"{held}, and was waited for 2 s", one["reason"]), one["reason"]
        checked = tool.run("host.check", "--host", host)
        assert (checked.returncode, lab.holder("closed"), lab.waiting()) == (0, OTHER, [])
    said = " ".join(checked.stdout.split())
    assert re.search(rf"labhost: for more: the place {by}: a run waits for it", said), checked.stdout


def test_who_waits_can_be_interrupted(tool: Tool, image: Image, lab: Lab) -> None:
    """Ctrl-C leaves labgrid's queue, too."""
    with lab.held("closed"):
        waits = tool.start(*load(image, lab.host_file("closed"), "vendor-alone"))
        wait_for(lambda: lab.waiting() == [ME], waits)
        waits.send_signal(signal.SIGINT)
        out, err = waits.communicate(timeout=60)
        assert (waits.returncode, lab.waiting(), lab.holder("closed")) == (130, [], OTHER), out + err


def test_what_is_wrong_with_a_place_is_said_in_one_line(tool: Tool, image: Image, lab: Lab, tmp_path: Path) -> None:
    """An unknown place, a coordinator that is away, an exporter that is: the hosts' failures, not the kernel's."""
    other = tmp_path / "other.yaml"
    other.write_text("targets:\n  main:\n    resources:\n      RemotePlace:\n        name: another\n")
    wrong = {
        "unknown": ("nowhere", {}, r"no place 'nowhere'; it has: closed, empty, silent"),
        "away": ("closed", {"coordinator": '"127.0.0.1:1"'}, r"coordinator 127\.0\.0\.1:1: cannot be reached: "),
        "nobody": ("closed", {"coordinator": '"nobody.invalid"'}, r"coordinator nobody\.invalid: cannot be reached: "),
        "empty": ("empty", {}, r"place empty: .*is its exporter up\?"),
        "other": ("closed", {"environment": f'"{other}"'}, r"other\.yaml: none of its targets has 'RemotePlace"),
        "closed": ("closed", {}, r"root@127\.0\.0\.1: cannot be reached: .*Connection refused"),
    }
    hosts = [lab.host_file(place, name=name, **keys) for name, (place, keys, _) in wrong.items()]
    more = [word for host in hosts[1:] for word in ("--host", str(host))]
    done = tool.run(*load(image, hosts[0], "vendor-alone"), *more)
    checked = tool.run("host.check", "--json", "--host", hosts[0], *more)
    assert (done.returncode, checked.returncode) == (3, 3), done.stdout + done.stderr + checked.stdout
    transcripts = {one["host"]: one for one in tool.record()["transcripts"]}
    surveys = {one["host"]: one["hindrances"] for one in json.loads(checked.stdout)["hosts"]}
    for name, (_, _, says) in wrong.items():
        assert transcripts[name]["status"] == "MISS"
        reasons = [transcripts[name]["reason"], *surveys[name]]
        assert [bool(re.search(says, one)) for one in reasons] == [True, True], (name, reasons)
        assert not any("\n" in one for one in reasons)
    assert lab.holder("closed") is None


def test_a_place_that_a_killed_run_held_is_released(tool: Tool, image: Image, lab: Lab, silent: socket.socket) -> None:
    """`kill -9` leaves it held; `host.restore` releases it, also where the machine in it does not answer."""
    host = lab.host_file("silent")
    killed = tool.start(*load(image, host, "vendor-alone"))
    wait_for(lambda: lab.holder("silent") == ME, killed)
    killed.kill()
    killed.communicate()
    silent.close()  # what nobody waits for any more
    assert lab.holder("silent") == ME
    done = tool.run("host.restore", host)
    assert (done.returncode, lab.holder("silent")) == (3, None), done.stdout + done.stderr
    assert "cannot be reached" in done.stderr
    assert "a run that was killed" in done.stderr


def test_a_place_that_the_user_holds_stays_his(tool: Tool, image: Image, lab: Lab) -> None:
    """Who acquired a place by hand wants to use it, and goes on to hold it."""
    host = lab.host_file("closed")
    with lab.held("closed", who=ME):
        for words in (load(image, host, "vendor-alone"), ["host.restore", str(host)]):
            done = tool.run(*words)
            assert done.returncode == 3, done.stdout + done.stderr
            assert "Connection refused" in done.stdout + done.stderr
            assert lab.holder("closed") == ME


# With one.


@pytest.fixture(scope="module")
def switched() -> list[bool]:
    """What the power switch was told: on or off."""
    return []


@pytest.fixture(scope="module")
def guest_lab(guest: Guest, switched: list[bool], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with the machine: its serial line by TCP, its power by HTTP."""

    def switch(on: bool) -> None:
        switched.append(on)
        for command in ("system_reset", "cont") if on else ("stop",):
            guest.monitor(command)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        serial = free.getsockname()[1]
    listens = f"TCP-LISTEN:{serial},bind=127.0.0.1,fork,reuseaddr"
    argv = ["setpriv", "--pdeathsig", "KILL", "--", "socat", listens, f"UNIX-CONNECT:{guest.folder}/console"]
    socat = subprocess.Popen(argv)
    try:
        with power_switch(switch) as url:
            resources = (
                "rack:\n"
                f"  NetworkService:\n    address: 127.0.0.1\n    username: root\n    port: {guest.port}\n"
                f"  NetworkSerialPort:\n    host: 127.0.0.1\n    port: {serial}\n    protocol: raw\n"
                f"  NetworkPowerPort:\n    model: simplerest\n    host: '{url}'\n    index: 0\n"
            )
            with running_lab(tmp_path_factory.mktemp("lab"), resources) as lab:
                lab.make_place("all", "rack/*")
                lab.make_place("service", "rack/NetworkService")
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
@pytest.mark.parametrize("drivers", ["resources", "environment"])
def test_a_panic_is_seen_and_ended_by_the_labs_own_means(
    tool: Tool, guest: Guest, guest_lab: Lab, switched: list[bool], tmp_path: Path, drivers: str
) -> None:
    """A kernel that stays where it panicked: the lab's console says why, and its power switch ends that."""
    before = state(guest)
    monitor, off = f"UNIX-CONNECT:{guest.folder}/monitor", tmp_path / "off"
    more: dict[str, str] = {}
    if drivers == "environment":
        # All by drivers that the user has named, and the key, too.
        commands = {
            "cmd_off": f"touch {off}",
            "cmd_on": "sh -c " + shlex.quote(f"printf 'system_reset\\ncont\\n' | socat - {monitor}"),
        }
        power = "".join(f"        {key}: {line!r}\n" for key, line in commands.items())
        (tmp_path / "lab.yaml").write_text(
            "targets:\n  main:\n    resources:\n      RemotePlace:\n        name: service\n    drivers:\n"
            f"      ExternalPowerDriver:\n{power}"
            f"      ExternalConsoleDriver:\n        cmd: 'socat -u UNIX-CONNECT:{guest.folder}/console -'\n"
            f"      SSHDriver:\n        keyfile: {guest.folder}/key\n"
        )
        more = {"environment": f'"{tmp_path}/lab.yaml"'}
    place = "all" if drivers == "resources" else "service"
    switched.clear()
    host = host_of(guest_lab, guest, place, boot_s=150, **more)
    with at_work(tool, load(guest.image, host, LONG)) as work:
        guest.ssh(
            "echo 0 > /proc/sys/kernel/panic; echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
            check=False,
        )
        out, err = work.communicate(timeout=900)
    assert work.returncode == 10, out + err
    one = tool.transcript()
    assert "sysrq triggered crash" in str(one["findings"])
    assert (one["status"], guest_lab.holder(place)) == ("FAIL", None)
    assert switched == [False, True] if drivers == "resources" else off.exists()
    assert state(guest) == before
