"""One kernel, from a question to a verdict.

Takes a request (a tree, patches, a package or files, and a profile), gives a run on record. It calls the stages that
come before it, in their order, and judges nothing itself.
"""
