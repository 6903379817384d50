"""What a person or a program reads of a run: takes records, never live objects, so that any old run can be shown again.

The one exception is live progress, which is told through `kbuild.progress` while a run goes on.
"""
