"""Real machines, reached by the system's OpenSSH client: what they are, and their way to a kernel and back.

`host.sh` runs on them, `client.py` calls it, `facts.py` reads what it says, `target.py` takes a host and gives it back,
`bridge.py` is the process that stands in an emulator's place.
"""
