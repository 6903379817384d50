"""Protects what is made of a labgrid place, without a lab: a machine for ssh, whose it is, how long it is waited."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kbuild.errors import HarnessError, UserError
from kbuild.hosts import spec as hosts
from kbuild.hosts.lab.coordinator import Place, Resource
from kbuild.hosts.lab.devices import as_ssh
from kbuild.hosts.lab.records import is_ours, write_record
from kbuild.hosts.spec import HostSpec, SshSettings, read_host
from kbuild.hosts.visit import reached
from kbuild.hosts.waiting import Waiting
from kbuild.paths import PROJECT

GOOD = """\
id = "epyc-1"
kind = "labgrid"
gives = ["amd", "svm", "npt"]
[labgrid]
coordinator = "lab.example:20408"
place = "epyc-1"
"""
SERVICE = Resource("NetworkService", "NetworkService", {"address": "10.0.0.7", "username": "root"}, {})
SERIAL = Resource("NetworkSerialPort", "serial", {"host": "e", "port": 4000, "protocol": "raw"}, {})
POWER = Resource("NetworkPowerPort", "pdu", {"model": "gude", "host": "pdu", "index": "3"}, {})


def host(tmp_path: Path, text: str = GOOD) -> HostSpec:
    """A host file, read."""
    path = tmp_path / "host.toml"
    path.write_text(text)
    return read_host(path)


def place(*resources: Resource, holder: str | None = "box/me", changed: float = 7.0) -> Place:
    """A place that box/me sees."""
    return Place("epyc-1", "box/me", holder, changed, None, resources)


def ssh_of(spec: HostSpec, *resources: Resource) -> SshSettings:
    """What ssh is told of a place with these."""
    there = as_ssh(spec, place(*resources))
    assert (there.kind, there.labgrid, there.id, there.gives) == ("ssh", None, spec.id, spec.gives)
    assert there.ssh is not None
    return there.ssh


def test_a_place_is_a_machine_for_ssh(tmp_path: Path) -> None:
    """labgrid's own programs switch its power and read its console; all else is as for any machine."""
    ssh = ssh_of(host(tmp_path, GOOD + 'sudo = true\noptions = ["-F", "x"]\n'), SERVICE, SERIAL, POWER)
    assert (ssh.target, ssh.options, ssh.sudo) == ("root@10.0.0.7", ("-F", "x", "-p", "22"), True)
    assert ssh.power is not None
    assert ssh.power.cycle is not None
    client = [sys.executable, "-P", "-m", "labgrid.remote.client", "-x", "lab.example:20408", "-p", "epyc-1"]
    assert shlex.split(ssh.power.cycle) == ["exec", *client, "power", "cycle"]
    assert ssh.console is not None
    assert shlex.split(ssh.console)[-4:] == ["lab.example:20408", "epyc-1", "", ""]


def test_what_a_place_has_not_its_machine_has_not(tmp_path: Path) -> None:
    ssh = ssh_of(host(tmp_path), SERVICE)
    assert (ssh.console, ssh.power) == (None, None)
    with pytest.raises(HarnessError, match="no NetworkService says where SSH is to go"):
        as_ssh(host(tmp_path), place(SERIAL, POWER))


def test_of_several_of_a_kind_the_file_says_which(tmp_path: Path) -> None:
    bmc = Resource("NetworkSerialPort", "bmc", {}, {})
    with pytest.raises(HarnessError, match=r"several of NetworkSerialPort: serial, bmc: say labgrid\.names\.console"):
        as_ssh(host(tmp_path), place(SERVICE, SERIAL, bmc))
    named = ssh_of(host(tmp_path, GOOD + 'names = { console = "bmc" }\n'), SERVICE, SERIAL, bmc)
    assert named.console is not None
    assert shlex.split(named.console)[-1] == "bmc"


@pytest.mark.parametrize(
    "params",
    [
        {"username": "root"},
        {"address": "-oProxyCommand=x", "username": "root"},
        {"address": "a b", "username": "root"},
        {"address": "10.0.0.7", "username": "-l"},
        {"address": "10.0.0.7", "username": "root", "port": 0},
        {"address": "fe80::1%eth0", "username": "root"},
    ],
)
def test_what_a_lab_says_is_no_option_of_ssh(tmp_path: Path, params: dict[str, object]) -> None:
    with pytest.raises(HarnessError, match="place epyc-1: its NetworkService") as error:
        as_ssh(host(tmp_path), place(Resource("NetworkService", "s", params, {})))
    assert "\n" not in str(error.value)


def test_the_way_over_an_exporter_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As labgrid's drivers do where the exporter wants it, or the user says LG_PROXY."""
    monkeypatch.delenv("LG_PROXY", raising=False)
    way = {"proxy_required": True, "proxy": "exporter.lab"}
    assert ssh_of(host(tmp_path), Resource("NetworkService", "s", SERVICE.params, way)).options[-2:] == (
        "-J",
        "exporter.lab",
    )
    assert (
        "-J"
        not in ssh_of(
            host(tmp_path), Resource("NetworkService", "s", SERVICE.params, way | {"proxy_required": False})
        ).options
    )
    monkeypatch.setenv("LG_PROXY", "gate.lab")
    assert ssh_of(host(tmp_path), SERVICE).options[-2:] == ("-J", "gate.lab")


ENVIRONMENT = """\
targets:
  main:
    resources:
      RemotePlace:
        name: epyc-1
    drivers:
      SSHDriver:
        keyfile: keys/lab
      ExternalPowerDriver:
        cmd_on: "true"
        cmd_off: "true"
      ExternalConsoleDriver:
        cmd: "true"
"""


def test_drivers_of_an_environment_are_used(tmp_path: Path) -> None:
    """It lies beside the host file; its key is beside itself, and its drivers need no resource."""
    (tmp_path / "lab.yaml").write_text(ENVIRONMENT)
    spec = host(tmp_path, GOOD + 'environment = "lab.yaml"\n')
    ssh = ssh_of(spec, SERVICE)
    assert ssh.options == ("-p", "22", "-i", str(tmp_path / "keys/lab"))
    assert ssh.console is not None
    assert ssh.power is not None
    assert f"-c {tmp_path}/lab.yaml" in str(ssh.power.cycle)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("targets: [", "cannot be read"),
        ("targets:\n  main:\n    resources: {}\n", "none of its targets has 'RemotePlace: {name: epyc-1}'"),
        (ENVIRONMENT.replace("SSHDriver", "SshDriver"), "SshDriver"),
    ],
)
def test_what_is_wrong_with_an_environment_is_said(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "lab.yaml").write_text(text)
    with pytest.raises(HarnessError, match=says) as error:
        as_ssh(host(tmp_path, GOOD + 'environment = "lab.yaml"\n'), place(SERVICE))
    assert str(error.value).startswith(str(tmp_path / "lab.yaml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"lab.example:20408"', '"lab example"', r":5: labgrid\.coordinator"),
        ('"lab.example:20408"', '"http://lab"', r":5: labgrid\.coordinator"),
        ('place = "epyc-1"', 'place = "-p"', r":6: labgrid\.place"),
        ('place = "epyc-1"', 'place = "x"\nwait_s = -1', r":7: labgrid\.wait_s"),
        ('place = "epyc-1"', 'place = "x"\ntarget = "x"', r":7: labgrid\.target: no such key"),
        ("[labgrid]", '[ssh]\ntarget = "x"\n[labgrid]', r"\[ssh\] must not be there"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=says):
        host(tmp_path, GOOD.replace(old, new))


def test_without_labgrid_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = host(tmp_path)
    monkeypatch.setattr(hosts, "find_spec", lambda _: None)
    assert hosts.check(spec) == ["labgrid is not installed in this Python's environment: pip install labgrid"]
    with pytest.raises(HarnessError, match="labgrid is not installed"):
        reached(spec, Waiting(0))


def test_whose_a_place_is_that_is_held_in_our_name(tmp_path: Path) -> None:
    """Only what a run has written down is a run's; where it was acquired anew since, somebody did that by hand."""
    lab = host(tmp_path).labgrid
    assert lab is not None
    record = tmp_path / "record.json"
    assert not is_ours(record, place())
    write_record(record, lab)  # killed before it could write when
    assert is_ours(record, place())
    write_record(record, lab, 7.0)
    assert is_ours(record, place(changed=7.0))
    assert not is_ours(record, place(changed=8.5))
    record.write_text("{")
    assert not is_ours(record, place())


def test_a_wait_says_each_reason_once_and_has_an_end() -> None:
    told: list[str] = []
    waiting = Waiting(600, told.append)
    for reason in ("a", "a", "b"):
        waiting.tell(reason)
    assert told == ["a", "b"]
    assert waiting.ended("b") is None
    assert Waiting(0).ended("b") == "b"
    assert re.fullmatch(r"b, and was waited for \d+ s", Waiting(1e-9).ended("b") or "")
    assert Waiting(600, cancelled=lambda: True).ended("b") == "interrupted while it waited: b"


def test_who_uses_no_lab_does_not_load_labgrid() -> None:
    """It takes a second."""
    code = "import sys, tasks, kbuild.load.runner, kbuild.hosts.survey; print({'labgrid', 'grpc'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
