"""Failing allocations: from a swept order to its points, from a report in the log to a call site.

site.py     whose allocation failed      points.py   which runs a sweep has
inject.py   one point: fault, judgement, and the host as before
"""
