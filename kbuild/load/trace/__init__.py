"""Traces of loads: what has to be recorded for rules, from the kernel's lines to calls, and rules held against these.

Takes the lines of ftrace's function graph and of kprobe events, as the agent sends them; gives calls with times,
results and strings. Never proves anything: what did not happen in a trace may happen elsewhere.
"""
