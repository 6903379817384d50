"""Places of a labgrid lab: each is a machine that is reached by SSH, while a run holds it.

`held.py` acquires a place and releases it, `coordinator.py` asks labgrid's coordinator for that over a connection of
`session.py`, `records.py` keeps what runs have acquired, `devices.py` says how the place's resources and drivers make a
machine for `ssh`, and `console.py` is the process that reads its serial line. labgrid takes a second to load: who is
outside of this folder imports from it where it is needed.
"""
