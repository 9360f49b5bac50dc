"""The algebra of operators and its closure: sums, products, scalings, powers, transposes, conjugates."""

import functools
import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator

from linops.arrays import as_array, as_foreign, as_number, as_scalar, as_summand, brief, is_scalar, reciprocal
from linops.holomorphy import complex_space, extended
from linops.precision import complex_dtype, is_complex, loses_precision, lowest, say_nested
from linops.products import Products, require_lapack, static
from linops.space import Space


class Operator(Products):
    """A linear map between two Spaces of pytrees: a SciPy `LinearOperator` of shape (m, n), and a JAX pytree.

    A subclass becomes a frozen dataclass. Its annotated fields are arrays, pytrees and operators, the leaves of the
    pytree, or are marked as code by `linops.products.static()`. It defines `domain`, `codomain` and `_mv`, the product
    of trees in traceable JAX; where it knows more than `jax.linear_transpose` finds, `_mv_transposed` or `_transposed`.

    NumPy in gives NumPy out: fresh, writable, of the operator's dtype. A `jax.Array` in gives a `jax.Array`, with no
    transfer to the host, also under `jit`, `vmap` and `grad`.
    """

    # Products with operators and scalars; those with arrays are inherited.

    def __matmul__(self, other):
        if type(other) is np.ndarray and other.ndim == 1 and not self._traced and other.dtype == self.dtype:
            return self._door.matvec(other)
        if is_scalar(other):
            raise ValueError(f"{self!r} @ {other!r}: a scalar cannot be an operand of @; use * instead")
        return self.dot(other)

    def dot(self, other):
        """A v, A V, A B or c A, by what `other` is: a vector, a block of columns, an operator or a scalar."""
        if isinstance(other, Operator):
            return Product.of(self, other)
        if is_scalar(other):
            return Scaled.of(other, self)
        if (foreign := as_foreign(other)) is not None:
            return LinearOperator.dot(self, foreign)
        other = as_array(other)
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    # Transposes, and the same matrix over other Spaces.

    def _transposed(self):
        return Transposed(self)

    def _complexified(self):
        return Complexified(self)

    def _on(self, domain, codomain):
        """The same matrix between other Spaces of the same sizes; from then on it does not adapt."""
        if (domain, codomain) == (self.domain, self.codomain) and not self._adapts:
            return self
        if self._adapts and domain == codomain:
            return self._replace(**{name: factor._on(domain, domain) for name, factor in self._factors().items()})
        return Respaced(self, domain, codomain)

    def transpose(self):
        """Aᵀ, of shape (n, m)."""
        if self.symmetric:
            return self
        return Conjugate.of(self) if self.hermitian else self._transposed()

    def adjoint(self):
        """Aᴴ, the conjugate of Aᵀ."""
        return self if self.hermitian else Conjugate.of(self.T)

    T = property(transpose)
    H = property(adjoint)
    _transpose = transpose
    _adjoint = adjoint

    # Algebra. What is not ours goes to SciPy's lazy algebra.

    def __add__(self, other):
        if isinstance(other, Operator):
            return Sum.of(self, other)
        foreign = as_summand(other)
        return NotImplemented if foreign is None else LinearOperator.__add__(self, foreign)

    def __radd__(self, other):
        if type(other) is int and other == 0:  # what sum(operators) starts with
            return self
        foreign = as_summand(other)
        return NotImplemented if foreign is None else foreign + self

    def __neg__(self):
        return Scaled.of(-1, self)

    def __sub__(self, other):
        if isinstance(other, Operator):
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
        return Scaled.of(other, self) if is_scalar(other) else self.__rmatmul__(other)

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
            raise ValueError(f"{self!r} / {other!r}: expected a scalar; to solve a system, use scipy.sparse.linalg")
        return Scaled.of(reciprocal(other), self)

    def __pow__(self, power):
        if not isinstance(power, numbers.Integral) or power < 0:
            raise ValueError(
                f"{self!r} ** {power!r}: expected an integer power >= 0; for inverses, use scipy.sparse.linalg"
            )
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r} ** {power}: expected a square operator")
        square = self if self.domain == self.codomain else self._on(self.domain, self.domain)
        return Power(square, int(power))

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
        return func._implementation(*args, **kwargs)


class Transposed(Operator):
    """Aᵀ."""

    operator: Operator

    domain = property(lambda self: self.operator.codomain)
    codomain = property(lambda self: self.operator.domain)

    @functools.cached_property
    def _door(self):
        return self.operator._transposed_door

    def _mv(self, w):
        return self.operator._mv_transposed(w)

    def _mv_transposed(self, v):
        return self.operator._mv(v)

    def _transposed(self):
        return self.operator


class Conjugate(Operator):
    """The elementwise conjugate of A: v -> conj(A conj(v))."""

    operator: Operator

    domain = property(lambda self: self.operator.domain)
    codomain = property(lambda self: self.operator.codomain)
    symmetric = property(lambda self: self.operator.symmetric)
    hermitian = property(lambda self: self.operator.hermitian)

    @classmethod
    def of(cls, operator):
        if not is_complex(operator.dtype):
            return operator
        return operator.operator if isinstance(operator, Conjugate) else cls(operator)

    def _mv(self, v):
        return jax.tree.map(jnp.conj, self.operator._mv(jax.tree.map(jnp.conj, v)))

    def _transposed(self):
        return Conjugate.of(self.operator.T)


class Complexified(Operator):
    """A real-linear operator from real vectors on complex ones: A (u + iv) = A u + i A v."""

    operator: Operator

    domain = property(lambda self: complex_space(self.operator.domain))
    codomain = property(lambda self: complex_space(self.operator.codomain))
    _dtype = property(lambda self: complex_dtype(self.operator._precision))
    symmetric = property(lambda self: self.operator.symmetric)
    _adapts = property(lambda self: self.operator._adapts)

    def _mv(self, v):
        return extended(self.operator._mv, v, self.operator.domain, self.codomain)

    def _mv_transposed(self, w):
        # The transpose of a real-linear map to complex vectors is w -> Re(Aᵀ w).
        return extended(self.operator._mv_transposed, w, self.operator.codomain, self.domain)

    def _transposed(self):
        return Complexified(self.operator.T) if not is_complex(self.operator.codomain.dtype) else Transposed(self)

    def _on(self, domain, codomain):
        """As it adapts, the operator itself takes complex Spaces."""
        return self.operator._on(domain, codomain) if self._adapts else super()._on(domain, codomain)


class Respaced(Operator):
    """The same matrix between other Spaces of the same sizes."""

    operator: Operator
    domain: Space = static()
    codomain: Space = static()

    def _mv(self, v):
        return self.codomain.unravel(self.operator._vector(self.domain.ravel(v).astype(self.operator.dtype)))

    def _transposed(self):
        return self.operator.T._on(self.codomain, self.domain)

    symmetric = property(lambda self: self.operator.symmetric and self.domain == self.codomain)


class Scaled(Operator):
    """c A, for a scalar c, which is data: another c compiles nothing."""

    scalar: jax.Array
    operator: Operator

    @classmethod
    def of(cls, scalar, operator):
        number = as_number(scalar)
        if is_complex(jnp.result_type(number)) and not is_complex(operator.dtype):
            operator = Complexified(operator)
        if operator._adapts and not isinstance(number, jax.Array):  # rounded where its dtype is known
            return cls._make(scalar=number, operator=operator)
        scaled = cls(as_scalar(scalar, operator.dtype), operator)
        scaled._say_nested()
        return scaled

    domain = property(lambda self: self.operator.domain)
    codomain = property(lambda self: self.operator.codomain)
    symmetric = property(lambda self: self.operator.symmetric)
    _adapts = property(lambda self: self.operator._adapts)

    def _mv(self, v):
        return jax.tree.map(lambda leaf: as_scalar(self.scalar, leaf.dtype) * leaf, self.operator._mv(v))

    def _residual_form(self):
        return super()._residual_form()._replace(scalar=as_scalar(self.scalar, self.dtype))

    def _say_nested(self):
        scalars, inner = [self.scalar], self.operator
        while isinstance(inner, Scaled):
            scalars, inner = [*scalars, inner.scalar], inner.operator
        if len(scalars) > 1:
            say_nested(scalars, self.dtype)

    def _transposed(self):
        return self._replace(operator=self.operator.T)

    def _on(self, domain, codomain):
        operator = self.operator._on(domain, codomain)
        return self if operator is self.operator else Scaled.of(self.scalar, operator)


class Sum(Operator):
    """A + B."""

    left: Operator
    right: Operator

    @classmethod
    def of(cls, left, right):
        if left.shape != right.shape:
            raise ValueError(f"{left!r} + {right!r}: expected operators of one shape")
        left, right = _over_one_field(left, right)
        if _adapt(left, right):
            return cls(left, right)
        domain = _common_space((left, left.domain), (right, right.domain))
        codomain = _common_space((left, left.codomain), (right, right.codomain))
        return cls(left._on(domain, codomain), right._on(domain, codomain))

    domain = property(lambda self: self.left.domain)
    codomain = property(lambda self: self.left.codomain)
    symmetric = property(lambda self: self.left.symmetric and self.right.symmetric)
    _adapts = property(lambda self: self.left._adapts and self.right._adapts)

    def _mv(self, v):
        return jax.tree.map(jnp.add, self.left._mv(v), self.right._mv(v))

    def _transposed(self):
        return Sum.of(self.left.T, self.right.T)


class Product(Operator):
    """A B."""

    left: Operator
    right: Operator
    symmetric: bool = static()

    @classmethod
    def of(cls, left, right):
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"{left!r} @ {right!r}: expected as many rows on the right as columns on the left")
        left, right = _over_one_field(left, right)
        if _adapt(left, right):
            return cls(left, right, _is_transpose(left, right))
        middle = _common_space((left, left.domain), (right, right.codomain))
        domain = middle if right._adapts else right.domain
        codomain = middle if left._adapts else left.codomain
        return cls(left._on(middle, codomain), right._on(domain, middle), _is_transpose(left, right))

    domain = property(lambda self: self.right.domain)
    codomain = property(lambda self: self.left.codomain)
    _adapts = property(lambda self: self.left._adapts and self.right._adapts)

    def _mv(self, v):
        return self.left._mv(self.right._mv(v))

    def _transposed(self):
        return Product.of(self.right.T, self.left.T)


class Power(Operator):
    """A ** p, for an integer p >= 0."""

    operator: Operator
    power: int = static()

    domain = codomain = property(lambda self: self.operator.domain)
    symmetric = property(lambda self: self.operator.symmetric)
    _adapts = property(lambda self: self.operator._adapts)

    def _mv(self, v):
        return jax.lax.fori_loop(0, self.power, lambda _, v: self.operator._mv(v), v)

    def _transposed(self):
        return self._replace(operator=self.operator.T)


def _is_transpose(left, right):
    """Whether one operator is known to be the transpose of the other, as in J.T @ J."""
    return (isinstance(left, Transposed) and left.operator is right) or (
        isinstance(right, Transposed) and right.operator is left
    )


def _adapt(left, right):
    """Whether a sum or product adapts further."""
    return left._adapts and right._adapts and left.domain == right.domain


def _common_space(*pairs):
    """The Space to combine operators on: one that is firm, rather a tree than flat, of the lowest precision of all."""
    firm = [space for operator, space in pairs if not operator._adapts] or [pairs[0][1]]
    dtype_of_all = lowest(space.dtype for space in firm)
    space = min(firm, key=lambda space: space.is_flat)
    dtypes = tuple(dtype_of_all if loses_precision(dtype, dtype_of_all) else dtype for dtype in space.dtypes)
    return Space(space.treedef, space.shapes, dtypes)


def _over_one_field(left, right):
    if is_complex(left.dtype) and not is_complex(right.dtype):
        return left, Complexified(right)
    if is_complex(right.dtype) and not is_complex(left.dtype):
        return Complexified(left), right
    return left, right
