"""The door: the one place where operators are compiled and where NumPy meets JAX.

An operator is a pytree: its arrays are leaves, its code is the tree definition. A method of it is traced once for
each tree definition, and compiled once for each program (see `linops.program`). A `Door` is an
operator made ready for many products: flattened once, so that a product costs a few microseconds of Python.
"""

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg.blas import ddot, sdot

from linops.arrays import require_threads
from linops.precision import is_number, say_loss
from linops.program.settings import Scope
from linops.program.staged import Flat
from linops.space import Space


def concrete(compute):
    """The arrays of a computation that no jit, vmap or grad in progress has to do with.

    The context that sees to it is entered only where it is needed: what is traced in it runs constants one by one, and
    compiles each.
    """
    result = compute()
    if not is_traced(result):
        return result
    with jax.ensure_compile_time_eval():
        return compute()


def is_traced(tree):
    """Whether `tree` belongs to a jit, vmap or grad in progress."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def memory_budget(share):
    """Bytes that a `share` of the default device's memory makes."""
    stats = jax.local_devices()[0].memory_stats() or {}
    total = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(total * share)


def block_budget():
    """Bytes that the intermediates of a block of columns may take: what a CPU caches, a share of a GPU's memory."""
    return CACHE_BYTES if jax.default_backend() == "cpu" else memory_budget(BLOCK_SHARE)


# What is compiled: functions of an operator and arrays, in traceable JAX.


def tree_product(A, *leaves):
    """The product with an element of the domain, given by its leaves."""
    product = A._mv(A.domain.treedef.unflatten(leaves))
    shapes = tuple(map(jnp.shape, jax.tree.leaves(product)))
    if jax.tree.structure(product) != A.codomain.treedef or shapes != A.codomain.shapes:
        raise ValueError(
            f"a product with {A!r} gave a tree of structure {jax.tree.structure(product)} and shapes {list(shapes)}, "
            f"expected an element of its codomain, {A.codomain.treedef} and {list(A.codomain.shapes)}; what jax.vmap "
            "returns is many operators, to be multiplied inside of jax.vmap"
        )
    return product


def array_product(A, v):
    """The product with a vector; one leaf keeps its shape: a loop of XLA that ends in a reshape divides each index."""
    product = tree_product(A, *jax.tree.leaves(A.domain.unravel(v)))
    leaf = jax.tree.leaves(product)[0] if len(A.codomain.shapes) == 1 else A.codomain.ravel(product)
    return leaf.astype(A.dtype)


def vector_product(A, v):
    """The product with a vector, a vector."""
    return jnp.ravel(array_product(A, v))


def block_product(A, block):
    """A V, of columns that lead inside: a vmap over another axis fails for some operations, sparse ones say."""
    return jax.vmap(functools.partial(vector_product, A))(block.T).T


def diagonal_of_block(A, block, start):
    """The entries (start + i, i) of A V: a sum and no gather, for rows may lie on several devices."""
    rows, columns = (jnp.arange(count, dtype=start.dtype) for count in (A.shape[0], block.shape[1]))
    return jnp.sum(jnp.where(rows[:, None] == start + columns[None, :], block_product(A, block), 0), axis=0)


def dense_matrix(A):
    """The matrix, linearization and products in one."""
    return block_product(A.linearize(), jnp.eye(A.shape[1], dtype=A.dtype))


class Door:
    """An operator flattened for products with arrays of the host or of the device.

    It holds arrays and programs and no operator, so that an operator may keep its doors without a cycle.
    """

    def __init__(self, operator, name, check_finite):
        self.name = name
        self.check_finite = check_finite
        self.rows, self.columns = operator.shape
        self.dtype = operator.dtype
        self.codomain: Space = operator.codomain
        self._flat = Flat(operator, operator._scope)
        self._runs_anywhere = self._flat.scope == Scope(False)
        self._warned = False
        self._aligned = None  # from the first large vector on: memory for a copy of one, while no product uses it

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
    def staged(self):
        return self._flat.stage(array_product, jax.ShapeDtypeStruct((self.columns,), self.dtype))

    def matvec(self, v):
        """A v for a NumPy vector: a fresh, writable NumPy vector of the operator's dtype."""
        require_threads()
        given = v
        if v.dtype != self.dtype:
            v = self.coerce(v)
        if v.shape != (self.columns,):
            raise ValueError(self._shape_message(v))
        if not (self._runs_anywhere or self._flat.scope.is_entered):
            with self._flat.scope.entered():
                return self.matvec(given)
        result = self._vector_product(v)
        self._require_finite(result, given)
        return result

    def _vector_product(self, v):
        return self._large_product(v) if v.nbytes > BORDER_BYTES else self._host_product(v, np.array)

    def _host_product(self, v, copy):
        try:
            product = copy(self._multiply(v)[0])
        except jax.errors.TracerArrayConversionError:  # within a jit that has nothing to do with this product
            with jax.ensure_compile_time_eval():
                product = copy(self._multiply(v)[0])
        return product if product.ndim == 1 else product.reshape(-1)

    def _large_product(self, v):
        """XLA takes the memory of a NumPy array as it is, where that is aligned, and otherwise a copy in new memory.

        The first product is of one vector at a point, perhaps: memory of our own is as new then.
        """
        if self._aligned is None:
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

    def matmat(self, block):
        """A V for a NumPy block of columns, in as many compiled calls as the memory budget asks."""
        given, block = block, self.coerce(block)
        if block.ndim != 2 or block.shape[0] != self.columns:
            raise ValueError(self._shape_message(block))
        if block.shape[1] == 1:
            return self.matvec(np.asarray(given)[:, 0])[:, None]
        result = np.empty((self.rows, block.shape[1]), self.dtype)
        for start in range(0, block.shape[1], self.block_width):
            piece = block[:, start : start + self.block_width]
            result[:, start : start + piece.shape[1]] = self._piece(piece)
        self._require_finite(result, given)
        return result

    def diagonal_of(self, block, start):
        """The entries (start + i, i) of A V."""
        if block.shape[1] == 1:
            diagonal = self._piece(block)[start]
        else:
            diagonal = self._padded(diagonal_of_block, block, np.int32(start))[: block.shape[1]]
        if self.check_finite and not all_finite(diagonal):
            raise FloatingPointError(f"the diagonal of {self.name} has NaN or Inf; expected finite numbers")
        return diagonal

    def _piece(self, block):
        """A V for no more columns than are taken at once, one of them by the program of vectors."""
        if block.shape[1] > 1:
            return self._padded(block_product, block)[:, : block.shape[1]]
        with self._flat.scope.entered():
            return self._vector_product(block[:, 0])[:, None]

    def _padded(self, function, block, *arguments):
        """Call with the block filled up with zeros to one of a few widths, so that few programs are compiled."""
        missing = _round_up(block.shape[1]) - block.shape[1]
        block = np.pad(block, ((0, 0), (0, missing))) if missing else block
        return np.asarray(concrete(lambda: self._flat.call(function, block, *arguments)))

    def device_product(self, v):
        """A v or A V for a concrete device array, which stays there."""
        if v.ndim not in (1, 2) or v.shape[0] != self.columns:
            raise ValueError(self._shape_message(v))
        with self._flat.scope.entered():
            v = self.coerce(v)
            if v.ndim == 1:
                (product,) = self._multiply(v)
                return product if product.ndim == 1 else _raveled(product)
            if self.block_width == 1 and v.shape[1] > 0:
                return jnp.stack([self.device_product(column) for column in v.T], axis=1)
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

    def coerce(self, v):
        """`v` in the operator's dtype; that digits are lost is said once."""
        if v.dtype == self.dtype:
            return v
        if not is_number(v.dtype):
            raise TypeError(f"{self.name} got an array of dtype {v.dtype}, expected numbers")
        self._warned = self._warned or say_loss(f"the vector multiplied by {self.name}", v, self.dtype)
        with np.errstate(over="ignore"):  # what overflows is Inf, and is found in the product
            return v.astype(self.dtype)

    def _shape_message(self, v):
        return (
            f"{self.name} got an array of shape {v.shape}, expected ({self.columns},) for a vector or "
            f"({self.columns}, k) for k columns; a pytree goes to .mv"
        )

    def _require_finite(self, result, v):
        """Refuse NaN and Inf that a product of finite numbers has. NaN in is NaN out: solvers make such vectors."""
        if not self.check_finite or all_finite(result):
            return
        result, v = result.reshape(self.rows, -1), np.asarray(v).reshape(self.columns, -1)
        made = np.isfinite(v).all(axis=0) & ~np.isfinite(result).all(axis=0)
        if made.any():
            raise FloatingPointError(self._nonfinite_message(result[:, made], v[:, made]))

    def _nonfinite_message(self, result, v):
        if not np.isfinite(self.coerce(v)).all():
            return (
                f"the {v.dtype} array that {self.name} multiplies has entries beyond the largest {self.dtype}, and "
                "narrowed it is infinite; expected smaller numbers: scale the array, or compute in its precision"
            )
        rows = np.flatnonzero(~np.isfinite(result).all(axis=1))
        where = self.codomain.locate(int(rows[0])) or "the value"
        return (
            f"a product with {self.name} has NaN or Inf: {len(rows)} of {self.rows} rows, the first at {where}; "
            "expected finite numbers: look at the function near its point (jax.config.jax_debug_nans shows where), or "
            "pass check_finite=False"
        )


_raveled = jax.jit(jnp.ravel, donate_argnums=0)  # in the memory of its argument


# Shares of memory: residuals kept for one operator, and the intermediates of one block of columns. On CPUs wider
# blocks are slower: a column of a network's Hessian at n = 2,410 took 0.5 ms in blocks of 8 to 16, 1.2 ms in 32, one
# of a network with max-pooling 1.5 ms in blocks of 8, 2.7 ms in 16, where its products one by one take 2.3 ms.
RESIDUAL_SHARE = 1 / 4
BLOCK_SHARE = 1 / 64
CACHE_BYTES = 12 * 2**20
FEW = 4


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


def all_finite(array):
    """Whether all entries are finite: a finite sum says so, of squares the fastest, and is faster."""
    squares = _SQUARES.get(array.dtype.char)
    if squares and 0 < array.size <= OF_ONE_THREAD:
        entries = array.ravel("K")
        if math.isfinite(squares(entries, entries)):
            return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(array, axis=None)) or np.isfinite(array).all())


_SQUARES = {"f": sdot, "d": ddot}
OF_ONE_THREAD = 10_000  # entries up to which OpenBLAS takes one: others spin on, and take cores from XLA


def _round_up(count):
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few widths, so few compilations, and at most a third in vain."""
    power = 1 << max(0, count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power
