"""What lies on the disk: takes the folders that stages fill, gives what is there, removes it on demand or at a limit.

Never removes what somebody uses, and never a run unless it is asked for: runs are evidence, all else can be made again.
"""
