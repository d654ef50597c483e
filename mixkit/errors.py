"""The two kinds of failure that a command may end with.

A `UserError` is something the user can mend (a key, a file, a name): one message, exit status 2, nothing written.
A `WorldError` is a fault of the world (disk, network, a killed process): one message, exit status 1, and the same
command goes on where it stopped. Everything else is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """A mistake in what the user gave; the message names file, key and remedy."""

    exit_status = 2


class WorldError(Exception):
    """Something outside failed; finished work is kept and the same command goes on."""

    exit_status = 1
