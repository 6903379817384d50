"""What init code writes after it can have been read: which set-up depends on something that is settled later."""
