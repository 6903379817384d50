"""A labgrid lab on loopback: labgrid's own coordinator and exporter, and a power switch that is a real HTTP server."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.remote.generated.labgrid_coordinator_pb2_grpc import CoordinatorStub

UP_S = 60.0
EXPORTER = "exporter"
ME, OTHER = "box/me", "elsewhere/bob"
"""Whom labgrid knows the tool and somebody else by."""


def as_user(who: str) -> dict[str, str]:
    """The environment of somebody of that name (labgrid/remote/client.py, getuser() and gethostname())."""
    host, _, user = who.partition("/")
    return {"LG_HOSTNAME": host, "LG_USERNAME": user}


@dataclass
class Lab:
    """A coordinator with an exporter."""

    folder: Path
    address: str

    def client(self, *words: str, who: str = OTHER, check: bool = True) -> str:
        """What labgrid's client says."""
        argv = [sys.executable, "-m", "labgrid.remote.client", "-x", self.address, *words]
        done = subprocess.run(argv, env={**os.environ, **as_user(who)}, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def _stub(self) -> Iterator[Any]:
        with grpc.insecure_channel(self.address) as channel:
            yield CoordinatorStub(channel)

    def make_place(self, name: str, resources: str) -> None:
        """A place with resources of the exporter's: `GROUP/KIND`."""
        with self._stub() as stub:
            stub.AddPlace(messages.AddPlaceRequest(name=name))
            stub.AddPlaceMatch(messages.AddPlaceMatchRequest(placename=name, pattern=f"{EXPORTER}/{resources}"))

    def holder(self, place: str) -> str | None:
        """Who has acquired a place."""
        with self._stub() as stub:
            (found,) = [one for one in stub.GetPlaces(messages.GetPlacesRequest()).places if one.name == place]
        return found.acquired or None

    def waiting(self) -> list[str]:
        """Who stands in labgrid's queues."""
        with self._stub() as stub:
            return [one.owner for one in stub.GetReservations(messages.GetReservationsRequest()).reservations]

    @contextlib.contextmanager
    def held(self, place: str, who: str = OTHER) -> Iterator[Callable[[], None]]:
        """Somebody has acquired a place, until what this gives is called."""
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self.client("-p", place, "release", who=who)

        self.client("-p", place, "acquire", who=who)
        try:
            yield release
        finally:
            release()

    def host_file(self, place: str, *more: str, name: str = "labhost", **lab: str) -> Path:
        """A host file for a place; `more` are lines above the table, `lab` keys of it with their TOML values."""
        table = {"coordinator": f'"{self.address}"', "place": f'"{place}"'} | lab
        lines = [f'id = "{name}"', 'kind = "labgrid"', 'gives = ["amd", "svm", "npt"]', *more, "[labgrid]"]
        path = self.folder / f"{name}.toml"
        path.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in table.items())]) + "\n")
        return path


@contextlib.contextmanager
def running_lab(folder: Path, resources: str) -> Iterator[Lab]:
    """A lab whose exporter has these resources: groups of them, in YAML."""
    (folder / "exporter.yaml").write_text(resources)
    with _process(folder, "coordinator", "-l", "127.0.0.1:0", until=r"listening on \S+:(\d+)") as port:
        lab = Lab(folder, f"127.0.0.1:{port}")
        words = ("-c", lab.address, "-n", EXPORTER, "--hostname", "127.0.0.1", "exporter.yaml")
        with _process(folder, "exporter", *words, until=r"(exporter name)"):
            wanted = len(re.findall(r"^  \w+:", resources, re.MULTILINE))
            told = folder / "coordinator.log"
            _wait(lambda: len(set(re.findall(r"set_resource (\S+ \S+)", told.read_text()))) == wanted, "resources")
            yield lab


@contextlib.contextmanager
def _process(folder: Path, program: str, *words: str, until: str) -> Iterator[str]:
    """One of labgrid's programs, once it has said that; gives the first group of it."""
    log = folder / f"{program}.log"
    argv = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-u", "-m", f"labgrid.remote.{program}", *words]
    with log.open("w") as said:
        # The coordinator keeps its places in the folder that it is started in.
        process = subprocess.Popen(argv, stdout=said, stderr=said, text=True, cwd=folder)
    try:
        _wait(lambda: process.poll() is not None or re.search(until, log.read_text()), f"{program}: {until}")
        found = re.search(until, log.read_text())
        assert found, log.read_text()
        yield found[1]
    finally:
        process.kill()
        process.wait()


def _wait(seen: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + UP_S
    while not seen():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def power_switch(switch: Callable[[bool], None]) -> Iterator[str]:
    """What `simplerest` of labgrid's power drivers asks for; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            word = self.path.rpartition("/")[2]
            if word in ("0", "1"):
                switch(word == "1")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/relay/{{index}}/{{value}}"
        finally:
            server.shutdown()


def wiring(group: str, ssh: int, serial: str, power: str) -> str:
    """A group of the exporter's resources, a machine with all that there is. `ssh` is a port, `serial` a resource."""
    return (
        f"{group}:\n"
        f"  NetworkService: {{address: 127.0.0.1, username: root, port: {ssh}}}\n"
        f"  NetworkPowerPort: {{model: simplerest, host: '{power}', index: 0}}\n"
        f"  {serial}\n"
    )


def serial_by_tcp(port: int) -> str:
    """The resource that is a serial line of some server's."""
    return f"NetworkSerialPort: {{host: 127.0.0.1, port: {port}, protocol: raw}}"


def serial_of_exporter(line: str) -> str:
    """The resource that is a serial line of the exporter's computer: it has ser2net serve that, by RFC 2217."""
    return f"RawSerialPort: {{port: {line}}}"


def write_environment(path: Path, place: str, power: dict[str, str], console: str, key: Path) -> None:
    """A labgrid environment whose drivers need no resources of the place but SSH's."""
    drivers = {
        "ExternalPowerDriver": power,
        "ExternalConsoleDriver": {"cmd": console},
        "SSHDriver": {"keyfile": str(key)},
    }
    target = {"resources": {"RemotePlace": {"name": place}}, "drivers": drivers}
    path.write_text(json.dumps({"targets": {"main": target}}))  # which is YAML, too
