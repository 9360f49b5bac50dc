"""How much memory residuals and blocks of columns may take."""

import os

import jax

# Shares of memory: residuals kept for one operator, the vectors of a basis, and the intermediates of one block of
# columns. On CPUs wider blocks are slower: a column of a network's Hessian at n = 2,410 took 0.5 ms in blocks of 8 to
# 16, 1.2 ms in 32, one of a network with max-pooling 1.5 ms in blocks of 8, 2.7 ms in 16, where its products one by
# one take 2.3 ms.
RESIDUAL_SHARE = 1 / 4
BASIS_SHARE = 1 / 4
BLOCK_SHARE = 1 / 64
CACHE_BYTES = 12 * 2**20


def memory_budget(share):
    """Bytes that a `share` of the default device's memory makes."""
    stats = jax.local_devices()[0].memory_stats() or {}
    total = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(total * share)


def block_budget():
    """Bytes that the intermediates of a block of columns may take: what a CPU caches, a share of a GPU's memory."""
    return CACHE_BYTES if jax.default_backend() == "cpu" else memory_budget(BLOCK_SHARE)
