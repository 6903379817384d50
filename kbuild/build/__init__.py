"""Kernel and modules out of a configured tree: takes a tree and a configuration, gives artifacts and findings.

What was built before from the same bytes is not built again. Never writes into a source folder,
and never judges what the artifacts do.
"""
