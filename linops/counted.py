"""A door that is listened to: who counts, times, limits or shows products hooks in here, and the door stays as it is.

A listener has three methods. A product of an operator may be several of the one that is counted: `matvecs` and
`rmatvecs` say how many products with it and with its transpose or adjoint.

- `begin(v, matvecs, rmatvecs)`: before v, a vector, block or tree, is multiplied; what it raises stops the product.
- `undo(v, matvecs, rmatvecs)`: the product was not made, for it raised, or was interrupted.
- `end(v, product, matvecs, rmatvecs, start, stop)`: after it, with the readings of `time.perf_counter`.

and a fourth, `report(matvecs, text, rmatvecs)`, of products in programs, where none of the others is called, and
`remaining`, how many products it still allows.
"""

import collections
import time

import jax

from linops.products import is_traced


def counted(door, listeners):
    """The door, listened to: one pair for each product that is heard, of a listener and whether it is an adjoint's."""
    counts = collections.Counter(listeners)
    for listener in dict.fromkeys(listener for listener, _ in counts):
        door = Counted(door, listener, counts[listener, False], counts[listener, True])
    return door


def allowed(listeners, most):
    """So many products at most, and no more than all listeners still allow."""
    heard = collections.Counter(listener for listener, _ in listeners)
    return min([most, *(listener.remaining // count for listener, count in heard.items())])


def told(listeners, matvecs):
    """Listeners hear of products that were made in one program, where none is seen; in a jit nothing is heard."""
    if is_traced(matvecs):
        return
    for listener, is_adjoint in listeners:
        counts = {"matvecs": 0, "rmatvecs": int(matvecs)} if is_adjoint else {"matvecs": int(matvecs)}
        listener.report(**counts)


class Counted:
    """A `Door` whose products one listener hears of; to it a block is as many products as it has columns."""

    def __init__(self, door, listener, matvecs, rmatvecs):
        self._door = door
        self._heard = listener, matvecs, rmatvecs
        self.rows, self.columns, self.dtype = door.rows, door.columns, door.dtype

    @property
    def block_width(self):
        return self._door.block_width

    def matvec(self, v):
        return heard(*self._heard, 1, self._door.matvec, v)

    def matmat(self, block):
        return heard(*self._heard, block.shape[1], self._door.matmat, block)

    def diagonal_of(self, block, start):
        return heard(*self._heard, block.shape[1], self._door.diagonal_of, block, start)

    def device_product(self, v):
        return heard(*self._heard, v.shape[1] if v.ndim == 2 else 1, self._on_device, v)

    def tree_product(self, v):
        return heard(*self._heard, 1, self._of_tree, v)

    # What a device still computes has no time yet: it is waited for.

    def _on_device(self, v):
        return jax.block_until_ready(self._door.device_product(v))

    def _of_tree(self, v):
        return jax.block_until_ready(self._door.tree_product(v))


def heard(listener, matvecs, rmatvecs, columns, multiply, v, *options):
    """`multiply(v, *options)`, a product with so many columns, of which a listener hears."""
    matvecs, rmatvecs = matvecs * columns, rmatvecs * columns
    listener.begin(v, matvecs, rmatvecs)
    start = time.perf_counter()
    try:
        product = multiply(v, *options)
    except BaseException:
        listener.undo(v, matvecs, rmatvecs)
        raise
    listener.end(v, product, matvecs, rmatvecs, start, time.perf_counter())
    return product
