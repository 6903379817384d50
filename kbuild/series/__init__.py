"""Many gates in order: each commit of a range or mbox, or each version of a package, against the one before it.

Takes a range, an mbox or package names; gives a series on record: of each entry its run, what it is to blame for, what
it mends, and what it changed in the objects. Judges nothing itself: that is `kbuild.gate`'s.
"""
