"""Several processes of one program, as `jax.distributed` joins them: each runs the same script, on one mesh of devices.

What the host decides each process decides by itself. It has to come to the same in all, or they wait for one another.
"""

import zlib

import jax
import numpy as np


def spans(tree):
    """Whether arrays of a tree lie on devices of several processes."""
    arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return jax.process_count() > 1 and not all(
        isinstance(array, jax.core.Tracer) or array.is_fully_addressable for array in arrays
    )


def gathered(array):
    """An array of which each process has the whole."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return _multihost().process_allgather(array, tiled=True)


def of_all(number):
    """What each process has for a number, an array with that of the first one first; all wait for one another."""
    return _multihost().process_allgather(np.float32(number))


def require_same(array, what):
    """Refuse what differs between processes; all have to ask."""
    checksum = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
    found = _multihost().process_allgather(np.uint32(checksum))
    if (found != found[0]).any():
        raise ValueError(
            f"got {what} with other numbers in one process than in another, expected the same in each: give solvers "
            "that draw at random v0= or rng=, and run one version of SciPy on like machines; of batches of which each "
            "process has its own, make arrays on all devices, jax.make_array_from_process_local_data(sharding, batch)"
        )


def of_first(content):
    """What the first process gives, bytes or None, in all."""
    mine = b"" if content is None else b"+" + content
    size = int(_multihost().broadcast_one_to_all(np.uint32(len(mine))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(mine))] = np.frombuffer(mine, np.uint8)[:size]
    received = np.asarray(_multihost().broadcast_one_to_all(padded)).tobytes()
    return received[1:] if received else None


def by_first(act):
    """What the first process does for all, who learn when it is done, and what the system said where it failed."""
    said = None
    if jax.process_index() == 0:
        try:
            act()
        except OSError as error:
            said = str(error).encode()
    if (said := of_first(said)) is not None:
        raise OSError(said.decode())


def _multihost():
    from jax.experimental import multihost_utils  # which few need

    return multihost_utils
