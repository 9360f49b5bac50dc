"""Doors of one program: an operator is a pytree, its arrays are leaves, its code is the tree definition.

A method of it is traced once for each tree definition, and compiled once for each program (see `linops.program`). A
door is the operator made ready for many products: flattened once, so that a product costs a few microseconds of Python.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from linops.budget import block_budget
from linops.door import Door
from linops.processes import gathered, require_same, spans
from linops.products import array_product, block_product, concrete, diagonal_of_block, tree_product
from linops.program.staged import Flat
from linops.space import as_whole


class Compiled(Door):
    """The door of an operator that is compiled whole."""

    def __init__(self, operator, name, check_finite):
        super().__init__(operator, name, check_finite)
        self._flat = Flat(operator, self.scope)
        self._aligned = None  # from the first large vector on: memory for a copy of one, while no product uses it

    def rebound(self, leaves):
        """The door of another operator, given by its leaves, arrays of the same types: nothing is looked up."""
        door = object.__new__(Compiled)
        vars(door).update(vars(self), _flat=self._flat.rebound(leaves))
        vars(door).pop("_multiply", None)
        vars(door).pop("_multiply_of_host", None)
        return door

    @functools.cached_property
    def _multiply(self):
        """The compiled product with a vector, bound to the operator's arrays: [a vector, or one leaf in its shape]."""
        held = *self.staged.consts, *self._flat.leaves
        ((passed, i),) = self.staged.sources
        if passed:  # as by a derivative rule that returns an array of its own
            constant = jnp.ravel(held[i])
            return lambda v: [constant]
        return functools.partial(self.staged.run, *held)

    @functools.cached_property
    def _multiply_of_host(self):
        """The same for vectors of the host: each process has them, and the product."""
        multiply, what = self._multiply, f"the vector that {self.name} multiplies"
        if not spans(self._flat.leaves):
            return multiply

        def in_all(v):
            require_same(v, what)
            return [gathered(multiply(v)[0])]

        return in_all

    @functools.cached_property
    def staged(self):
        return self._flat.stage(array_product, jax.ShapeDtypeStruct((self.columns,), self.dtype))

    def _of_vector(self, v):
        return self._large_product(v) if v.nbytes > BORDER_BYTES else self._host_product(v, np.array)

    def _of_block(self, block):
        if block.shape[1] > 1:
            return self._padded(block_product, block)[:, : block.shape[1]]
        with self.scope.entered():
            return self._of_vector(block[:, 0])[:, None]

    def _of_diagonal(self, block, start):
        if block.shape[1] == 1:
            return self._of_block(block)[start]
        return self._padded(diagonal_of_block, block, np.int32(start))[: block.shape[1]]

    def _on_device(self, v):
        if v.ndim == 1:
            (product,) = self._multiply(v)
            return product if product.ndim == 1 else _raveled(as_whole(product))
        if self.block_width == 1 and v.shape[1] > 0:
            return jnp.stack([self._on_device(column) for column in v.T], axis=1)
        starts = range(0, max(v.shape[1], 1), self.block_width)
        pieces = [self._flat.call(block_product, v[:, start : start + self.block_width]) for start in starts]
        return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)

    def tree_product(self, v):
        """A v for an element of the domain, a tree of device arrays."""
        return self._flat.call(tree_product, *jax.tree.leaves(v))

    @functools.cached_property
    def block_width(self):
        """How many columns to take at once: a power of two, such that intermediates stay within the budget.

        What a column adds to them is read from a block of a few: it is more than the intermediates of a product where
        an operation cannot share between columns what does not depend on them, as max-pooling cannot. Where not even
        a few columns fit, one is taken: the programs of two are slower than that of a vector as often as not.
        """
        few = self._flat.stage(block_product, jax.ShapeDtypeStruct((self.columns, FEW), self.dtype))
        added = max(0, few.bytes_live - self.staged.bytes_live) // (FEW - 1)
        width = block_budget() // max(1, added + (self.rows + self.columns) * self.dtype.itemsize)
        return 1 << width.bit_length() - 1 if width >= FEW else 1

    def _host_product(self, v, copy):
        try:
            product = copy(self._multiply_of_host(v)[0])
        except jax.errors.TracerArrayConversionError:  # within a jit that has nothing to do with this product
            with jax.ensure_compile_time_eval():
                product = copy(self._multiply_of_host(v)[0])
        return product if product.ndim == 1 else product.reshape(-1)

    def _large_product(self, v):
        """XLA takes the memory of a NumPy array as it is, where that is aligned, and otherwise a copy in new memory.

        The first product is of one vector at a point, perhaps: memory of our own is as new then. Other devices copy
        from any memory.
        """
        if self._aligned is None or jax.default_backend() != "cpu":
            self._aligned = []
            return self._host_product(v, to_host)
        try:
            aligned = self._aligned.pop()
        except IndexError:
            aligned = _aligned_empty(v.shape, v.dtype)
        np.copyto(aligned, v)
        result = self._host_product(aligned, to_host)
        self._aligned.append(aligned)
        return result

    def _padded(self, function, block, *arguments):
        """Call with the block filled up with zeros to one of a few widths, so that few programs are compiled."""
        missing = _round_up(block.shape[1]) - block.shape[1]
        block = np.pad(block, ((0, 0), (0, missing))) if missing else block
        if spans(self._flat.leaves):
            require_same(block, f"the block that {self.name} multiplies")
        return np.asarray(gathered(concrete(lambda: self._flat.call(function, block, *arguments))))


_raveled = jax.jit(jnp.ravel, donate_argnums=0)  # in the memory of its argument

FEW = 4  # columns, of which the memory that one more takes is read


# A vector beyond that is copied to aligned memory that is kept, and its product waited for. XLA would copy it to new
# memory, of which the pages cost more than the copy (n = 10^8: 640 ms without, 420 with), and a product that neither
# waits nor is aligned is slower, whatever the cause (a network's Hessian, n = 85,002: 18.1 ms, 15.5 with).
BORDER_BYTES = 2**16
ALIGNMENT = 64  # of XLA, in bytes


def _aligned_empty(shape, dtype):
    memory = np.empty(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + memory.size - ALIGNMENT].view(dtype).reshape(shape)


def to_host(array):
    """A NumPy copy of a device array, which is waited for: np.array waits longer."""
    return np.array(jax.block_until_ready(array))


def _round_up(count):
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few widths, so few compilations, and at most a third in vain."""
    power = 1 << max(0, count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power
