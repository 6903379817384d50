"""Something that boots a kernel: takes a host file and a boot image, gives a running machine.

A machine has two lines: the kernel's console, which only comes, and the agent's, which goes both
ways. What comes over them is untrusted. No judgement here: whether a machine that stopped did so
for a good reason is for `load` to say.
"""
