"""Load orders (docs/orders.md): what a file may say, under which conditions, and the steps that come of it on one host.

`format` has the file's tables, `read` reads and checks one, `conditions` asks what holds on a host, `plan` makes of an
order and a host's facts the plans that are run: placeholders filled in, repeats unrolled, one plan for each setting.
"""
