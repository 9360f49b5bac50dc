"""How much memory residuals, chunks of data, bases and blocks of columns may take."""

import contextlib
import contextvars
import logging
import numbers
import os

import jax

# Shares of memory: residuals kept for one operator, a product over data, the vectors of a basis, and the intermediates
# of one block of columns. On CPUs wider blocks are slower: a column of a network's Hessian at n = 2,410 took 0.5 ms in
# blocks of 8 to 16, 1.2 ms in 32, one of a network with max-pooling 1.5 ms in blocks of 8, 2.7 ms in 16, where its
# products one by one take 2.3 ms.
RESIDUAL_SHARE = 1 / 4
BASIS_SHARE = 1 / 4
BLOCK_SHARE = 1 / 64
CACHE_BYTES = 12 * 2**20

log = logging.getLogger("linops")  # at level debug what was chosen for want of memory; at info, runs that go on

_limit = contextvars.ContextVar("limit", default=None)


@contextlib.contextmanager
def memory_limit(bytes):
    """A context in which linops plans with so many bytes of memory, in place of all that the device has.

    A quarter of it is for the residuals that an operator keeps, a quarter for a product over data, which is walked in
    chunks where no batch_size was given, a quarter for the basis of eigenvectors, a part for blocks of columns. What an
    operator keeps is decided at its first product. The logger "linops" says at level debug what was chosen.

    >>> with linops.memory_limit(2**20):
    ...     linops.Hessian(lambda x: jnp.sum(x**3), np.ones(10, np.float32)) @ np.ones(10, np.float32)
    array([6., 6., 6., 6., 6., 6., 6., 6., 6., 6.], dtype=float32)
    """
    if not (isinstance(bytes, numbers.Real) and bytes > 0):
        raise ValueError(f"memory_limit got {bytes!r}, expected a number of bytes > 0")
    token = _limit.set(int(bytes))
    try:
        yield
    finally:
        _limit.reset(token)


def memory_budget(share):
    """Bytes that a `share` of the memory makes, of the default device or of what a user has set."""
    total = _limit.get()
    if total is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        total = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if jax.process_count() > 1:  # which have to decide the same, on machines that are alike and not the same
            total = 1 << total.bit_length() - 1
    return int(total * share)


def block_budget():
    """Bytes that the intermediates of a block of columns may take: what a CPU caches, a share of a GPU's memory."""
    share = memory_budget(BLOCK_SHARE)
    return min(CACHE_BYTES, share) if jax.default_backend() == "cpu" else share
