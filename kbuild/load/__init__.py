"""Load modules on hosts: takes orders, hosts and artifacts, gives transcripts and findings.

A small program, the agent (`agent/`, contract in `docs/agent.md`), does on the host what an order's
steps say and answers line by line; `protocol` writes its commands and reads its answers. Whatever
comes from a host is untrusted and bounded. This stage never builds anything of the kernel's, never
loads a module into the machine it runs on itself, and never takes silence for success.
"""
