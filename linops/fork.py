"""Processes forked from one that computes with JAX: there it would hang, so that they are refused."""

import os

import jax

_forked = False  # whether this process is a child of one that computed, whose threads XLA waits for and it lacks


def _note_fork():
    global _forked
    initialized = getattr(jax._src.xla_bridge, "backends_are_initialized", lambda: True)  # no public name tells
    _forked = initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def require_threads():
    """Refuse to compute where that would hang."""
    if _forked:
        raise RuntimeError(
            "got a call in a process that was forked from one that computes with JAX, where it could wait for ever for "
            "threads that the fork did not copy; expected a process of its own: use multiprocessing with the start "
            "method spawn or forkserver"
        )
