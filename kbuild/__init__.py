"""Build, inspect and load the x86 KVM modules, and judge the result.

An ordinary typed library: `tasks.py` is its command line, scripts may import it.
Stages are folders and import only earlier ones (`tests/unit/test_layout.py` holds the order):
configure -> build -> elf -> dmesg -> hosts -> load -> gate -> report.
"""
