"""What +, -, *, /, @ and ** mean between operators, arrays, scalars, and the operators of others."""

import numbers
import operator

import jax
import numpy as np
from scipy.sparse.linalg import LinearOperator

from linops.arrays import as_array, as_foreign, as_summand, brief, is_scalar, reciprocal
from linops.linear_map import LinearMap, require_lapack
from linops.program.jaxpr.private import of_numpy


class Arithmetic(LinearMap):
    """An operator as an operand; `_times`, `_plus`, `_scaled`, `_power` come from `linops.algebra` and `sums`."""

    # Products with operators and scalars; those with arrays are inherited.

    def __matmul__(self, other):
        if self._takes(other):
            return self._door.matvec(other)
        if is_scalar(other):
            raise ValueError(f"{self!r} @ {other!r}: a scalar cannot be an operand of @; use * instead")
        return self.dot(other)

    def dot(self, other):
        """A v, A V, A B or c A, by what `other` is: a vector, a block of columns, an operator or a scalar."""
        if isinstance(other, LinearMap):
            return self._times(other)
        if is_scalar(other):
            return self._scaled(other)
        if (foreign := as_foreign(other)) is not None:
            return LinearOperator.dot(self, foreign)
        other = as_array(other)
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    # Algebra. What is not ours goes to SciPy's lazy algebra.

    def __add__(self, other):
        if isinstance(other, LinearMap):
            return self._plus(other)
        foreign = as_summand(other)
        return NotImplemented if foreign is None else LinearOperator.__add__(self, foreign)

    def __radd__(self, other):
        if type(other) is int and other == 0:  # what sum(operators) starts with
            return self
        foreign = as_summand(other)
        return NotImplemented if foreign is None else foreign + self

    def __neg__(self):
        return self._scaled(-1)

    def __sub__(self, other):
        if isinstance(other, LinearMap):
            return self + -other
        foreign = as_summand(other)
        if foreign is None:
            return NotImplemented
        minus_one = -np.ones((), foreign.dtype)[()]  # of its dtype: SciPy's -foreign turns float32 into float64
        return LinearOperator.__add__(self, foreign * minus_one)

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, other):
        return self.dot(other)

    def __rmul__(self, other):
        return self._scaled(other) if is_scalar(other) else self.__rmatmul__(other)

    def __rmatmul__(self, other):
        """The product v A from the left: Aᵀ v for a vector, (Aᵀ Vᵀ)ᵀ for rows."""
        if (foreign := as_foreign(other)) is not None:
            return foreign @ self
        if is_scalar(other):
            raise ValueError(f"{other!r} @ {self!r}: a scalar cannot be an operand of @; use * instead")
        return (self.T @ as_array(other).T).T

    rdot = __rmatmul__

    def __truediv__(self, other):
        if not is_scalar(other):
            raise ValueError(f"{self!r} / {other!r}: expected a scalar; to solve a system, use linops.inverse")
        return self._scaled(reciprocal(other))

    def __pow__(self, power):
        if not isinstance(power, numbers.Integral) or power < 0:
            raise ValueError(f"{self!r} ** {power!r}: expected an integer power >= 0; for inverses, use linops.inverse")
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r} ** {power}: expected a square operator")
        return self._power(int(power))

    def __call__(self, block):
        """A V for a block of columns, as lobpcg calls operators; all else is refused.

        SciPy's minimize and least_squares call what they get as hess= and jac= with a point. An operator that answered
        with its product would be taken for the matrix there.
        """
        if isinstance(block, np.ndarray | jax.Array) and block.ndim == 2:
            return self.matmat(block)
        raise TypeError(
            f"{self!r} was called with {brief(block)}, expected a block of columns ({self.shape[1]}, k); a product is "
            "A @ v, and the operator at another point A.at(x), as in hess=A.at"
        )

    def __array_function__(self, func, types, args, kwargs):
        """`np.dot(A, v)`, which SciPy's trust-ncg and trust-krylov call, is A @ v. All else NumPy answers by itself."""
        if func is np.dot:
            return operator.matmul(*args, **kwargs)
        if func is np.common_type:
            require_lapack(self.dtype)
        return of_numpy(func, args, kwargs)
