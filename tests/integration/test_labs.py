"""Protects places of a labgrid lab, without a machine: they are waited for, held, and released whatever happens.

Coordinator and exporter are labgrid's own, on loopback.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.hosts.lab.held import held
from kbuild.hosts.spec import read_host
from kbuild.hosts.ssh.away import cycle_power, start_console
from kbuild.hosts.waiting import Waiting
from tests.integration.conftest import Tool, wait_for
from tests.integration.guest import Image, load
from tests.integration.lab import (
    ME,
    OTHER,
    Lab,
    as_user,
    power_switch,
    running_lab,
    serial_by_tcp,
    wiring,
    write_environment,
)

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d"


@pytest.fixture
def tool(tool: Tool) -> Tool:
    """The tool of somebody whom labgrid knows by another name than whom the tests are run by."""
    return Tool({**tool.environment, **as_user(ME)}, tool.runs)


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


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, socket.socket, list[bool]]]:
    """A lab with a serial line that the test has the other end of, and a power switch that notes what it was told."""
    switched: list[bool] = []
    with contextlib.ExitStack() as stack:
        serial = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        serial.settimeout(60)
        line = serial_by_tcp(serial.getsockname()[1])
        resources = wiring("rack", 1, line, stack.enter_context(power_switch(switched.append)))
        lab = stack.enter_context(running_lab(tmp_path_factory.mktemp("lab"), resources))
        lab.make_place("wired", "rack/*")
        yield lab, serial, switched


@pytest.mark.parametrize("drivers", ["resources", "environment"])
def test_console_and_power_are_the_labs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wired: tuple[Lab, socket.socket, list[bool]], drivers: str
) -> None:
    """The host's commands for them are labgrid's drivers, of the place's resources or those that the user names."""
    lab, serial, switched = wired
    for name, value in {**as_user(ME), "XDG_STATE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    words = f"hello from {drivers}"
    switched.clear()
    if drivers == "environment":
        commands = {"cmd_off": f"touch {tmp_path}/off", "cmd_on": f"touch {tmp_path}/on"}
        # The last word keeps it from ending before it was read.
        console = f"sh -c {shlex.quote(f'echo {words}; exec sleep 60')}"
        write_environment(tmp_path / "lab.yaml", "wired", commands, console, tmp_path / "key")
        host = lab.host_file("wired", environment=f'"{tmp_path}/lab.yaml"')
    else:
        host = lab.host_file("wired")
    with held(read_host(host), Waiting(0)) as there:
        assert lab.holder("wired") == ME
        ssh = there.ssh
        assert ssh is not None
        assert ssh.console is not None
        with start_console(ssh.console) as process:
            try:
                assert process.stdout is not None
                if drivers == "resources":
                    line, _ = serial.accept()
                    # What comes before the line is all open, labgrid's driver throws away.
                    line.sendall(words.encode())
                    while not select.select([process.stdout], [], [], 1)[0]:
                        assert process.poll() is None
                        line.sendall(words.encode())
                assert process.stdout.read(len(words)).decode() == words
            finally:
                process.kill()
        cycle_power(ssh)
    assert lab.holder("wired") is None
    if drivers == "resources":
        assert switched == [False, True]
    else:
        assert ((tmp_path / "off").exists(), (tmp_path / "on").exists(), switched) == (True, True, [])
        assert ssh.options[-2:] == ("-i", str(tmp_path / "key"))
