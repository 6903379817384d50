"""The kernel log: takes records, gives classified matches.

What a line means is data (`signatures.toml`). This stage knows nothing of hosts, load orders or verdicts: whether a
match was asked for is its caller's to know.
"""
