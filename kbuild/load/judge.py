"""Who is to blame for an errno that was not expected: the kernel, where the host has been seen to do the same."""

from __future__ import annotations

from kbuild.load.knowledge import Knowledge
from kbuild.load.orders.format import SUCCEEDED, SUCCESS, Expectation
from kbuild.load.protocol import errno_name
from kbuild.load.request import LoadRequest
from kbuild.outcome import Status

Judged = tuple[Status, str | None]


class Judge:
    """Of one host. What it is known to do is kept with the run that has seen it."""

    def __init__(self, host: str, knowledge: Knowledge, request: LoadRequest) -> None:
        self._host = host
        self._knowledge = knowledge
        self._request = request

    def errno(self, doing: str, number: int, expectation: Expectation, known: str | None = None) -> Judged:
        """Hold an errno against what was expected. `doing`: for a person, `load kvm_amd`.

        `known`: what the host does not do where its emulator lacks something, such as `load:kvm_amd`.
        """
        if number == expectation.errno_number:
            return Status.PASS, None
        reason = f"{doing}: expected {expectation.errno or SUCCEEDED}, got {errno_name(number) or SUCCEEDED}"
        if expectation is not SUCCESS:
            reason += f" ({expectation.why})"
        return self.blamed(reason, known if expectation.errno is None else None)

    def blamed(self, reason: str, known: str | None) -> Judged:
        """Whose fault that is."""
        if known is None:
            return Status.FAIL, reason
        what, _, of = known.partition(":")
        run = self._knowledge.has_done(known, self._request.kind)
        done = {"load": "load it", "smoke": "run this guest"}.get(what, f"do that ({of})")
        if run is None:
            return Status.ERROR, f"{reason}; no kernel of this kind was seen to {done} on {self._host} yet"
        did = {"load": "loaded it", "smoke": "run this guest"}.get(what, f"done that ({of})")
        return Status.FAIL, f"{reason}; {self._host} has {did} with a kernel of this kind (run {run})"

    def note(self, known: str) -> None:
        """The host has done that."""
        self._knowledge.note(known, self._request.kind, self._request.run)
