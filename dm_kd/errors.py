"""Old names of what is in run.py. Delete this file when nothing imports it."""

from dm_kd.run import Stopped, UserError, nearest, refuse_difference  # noqa: F401

DamagedError = LockedError = DivergedError = StorageError = UserError
