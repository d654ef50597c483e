"""A loader worker ends with the process that started it.

torch's own watch looks every five seconds, and never while the worker is busy inside a dataset. This one is a thread
that looks twice a second, whatever the worker does.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

_SECONDS = 0.5
_watched_by: int | None = None


def end_with_parent() -> None:
    """In a child process: end it (no clean-up, it has nothing of its own) soon after its parent is gone."""
    global _watched_by
    parent = multiprocessing.parent_process()
    if parent is None or _watched_by == os.getpid():
        return
    _watched_by = os.getpid()
    threading.Thread(target=_watch, args=(parent.sentinel, os.getppid()), daemon=True, name="parent").start()


def _watch(sentinel: int, parent: int) -> None:
    # The sentinel serves every start method, but a process forked later may hold its other end open; the parent's
    # number serves fork and spawn (under forkserver it is the server's).
    while not wait([sentinel], timeout=_SECONDS) and os.getppid() == parent:
        pass
    os._exit(1)
