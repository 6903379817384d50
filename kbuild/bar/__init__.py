"""A series, held against what the KVM x86 maintainers ask of one (Documentation/process/maintainer-kvm-x86.rst).

Takes a range or an mbox and a profile with a `[bar]`; gives a record: each patch built in each configuration, judged as
a series, the last one tested, and each point met, not met, or not tested and why. It loads and judges no kernel itself.
"""
