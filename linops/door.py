"""The door: the one place where NumPy meets JAX. Vectors are checked and cast, blocks are cut, results are checked."""

import math

import numpy as np
from scipy.linalg.blas import ddot, sdot

from linops.arrays import require_threads
from linops.precision import is_number, say_loss
from linops.program.settings import Scope
from linops.space import Space


class Door:
    """Products of an operator with arrays of the host, and with those of the device.

    It holds arrays and programs and no operator, so that an operator may keep its doors without a cycle. It is a
    contract: what it lacks, the products themselves, each builder of doors has in its own way, `compiled.Compiled` as
    one program.

    - `_of_vector(v)`, `_of_block(V)`, `_of_diagonal(V, start)`: of NumPy arrays of its dtype, at most `block_width`
      columns; fresh NumPy arrays.
    - `_on_device(v)`: A v or A V of device arrays of its dtype.
    - `tree_product(v)`: of an element of the domain, a tree of device arrays.
    """

    def __init__(self, operator, name, check_finite):
        self.name = name
        self.check_finite = check_finite
        self.rows, self.columns = operator.shape
        self.dtype = operator.dtype
        self.codomain: Space = operator.codomain
        self.scope = operator._scope
        self._runs_anywhere = self.scope == Scope(False)
        self._shape_of_vectors = (self.columns,)
        self._warned = False

    def matvec(self, v):
        """A v for a NumPy vector: a fresh, writable NumPy vector of the operator's dtype."""
        require_threads()
        given = v
        if v.dtype != self.dtype:
            v = self.coerce(v)
        if v.shape != self._shape_of_vectors:
            raise ValueError(self._shape_message(v))
        if not (self._runs_anywhere or self.scope.is_entered):
            with self.scope.entered():
                return self.matvec(given)
        result = self._of_vector(v)
        if self.check_finite and not all_finite(result):
            self._refuse(result, given)
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
            result[:, start : start + piece.shape[1]] = self._of_block(piece)
        if self.check_finite and not all_finite(result):
            self._refuse(result, given)
        return result

    def diagonal_of(self, block, start):
        """The entries (start + i, i) of A V."""
        diagonal = self._of_diagonal(block, start)
        if self.check_finite and not all_finite(diagonal):
            raise FloatingPointError(f"the diagonal of {self.name} has NaN or Inf; expected finite numbers")
        return diagonal

    def device_product(self, v):
        """A v or A V for a concrete device array, which stays there."""
        if v.ndim not in (1, 2) or v.shape[0] != self.columns:
            raise ValueError(self._shape_message(v))
        with self.scope.entered():
            return self._on_device(self.coerce(v))

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

    def _refuse(self, result, v):
        """Refuse NaN and Inf that a product of finite numbers has. NaN in is NaN out: solvers make such vectors."""
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
            "expected finite numbers: look whether the point, args and data are finite, whether targets are those that "
            "a loss is for, and at the function near its point (jax.config.jax_debug_nans shows where), or pass "
            "check_finite=False"
        )


def all_finite(array):
    """Whether all entries are finite: a finite sum says so, of squares the fastest, and is faster."""
    squares = _SQUARES.get(array.dtype.char)
    if squares and 0 < array.size <= OF_ONE_THREAD:
        entries = array if array.ndim == 1 else array.ravel("K")
        if math.isfinite(squares(entries, entries)):
            return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(array, axis=None)) or np.isfinite(array).all())


_SQUARES = {"f": sdot, "d": ddot}
OF_ONE_THREAD = 10_000  # entries up to which OpenBLAS takes one: others spin on, and take cores from XLA
