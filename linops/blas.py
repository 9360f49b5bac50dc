"""BLAS held to one thread, where threadpoolctl is installed: OpenBLAS's threads spin on between calls, and XLA waits.

On two cores `linalg.eigsh` takes 1.5 times as long without, and a hundred times as long where another process computes.
"""

import contextlib
import functools
import threading


@functools.cache
def _controller():
    """What finds the BLAS libraries of the process, once; None where threadpoolctl is not installed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    import scipy.linalg.cython_lapack  # noqa: F401  of which XLA takes its LAPACK

    return ThreadpoolController()


class _Users:
    """Threads that are within: the first one sets the limit, and the last one lifts it."""

    def __init__(self):
        self.lock, self.count, self.limit = threading.Lock(), 0, None


_users = _Users()


@contextlib.contextmanager
def one_blas_thread():
    """A context in which BLAS has one thread."""
    if (controller := _controller()) is None:
        yield
        return
    with _users.lock:
        _users.count += 1
        if _users.count == 1:
            _users.limit = controller.limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _users.lock:
            _users.count -= 1
            if _users.count == 0:
                _users.limit.restore_original_limits()
