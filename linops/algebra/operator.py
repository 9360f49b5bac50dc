"""The algebra of operators and its closure: products, scalings, powers, transposes, conjugates; sums are in `sums`."""

import functools

import jax
import jax.numpy as jnp

from linops.algebra.factors import outermost
from linops.algebra.points import AtPoint
from linops.arrays import as_conjugate, as_factor, as_number, is_at_least_zero
from linops.node import static
from linops.precision import complex_dtype, is_complex, say_nested
from linops.products import vector_product
from linops.realify import complex_space, extended
from linops.space import Space, common


class Operator(AtPoint):
    """A linear map between two Spaces of pytrees: a SciPy `LinearOperator` of shape (m, n), and a JAX pytree.

    A subclass becomes a frozen dataclass. Its annotated fields are arrays, pytrees and operators, the leaves of the
    pytree, or are marked as code by `linops.static()`. It defines `domain`, `codomain` and `_mv`, the product
    of trees in traceable JAX; where it knows more than `jax.linear_transpose` finds, `_mv_transposed` or `_transposed`.

    NumPy in gives NumPy out: fresh, writable, of the operator's dtype. A `jax.Array` in gives a `jax.Array`, with no
    transfer to the host, also under `jit`, `vmap` and `grad`.
    """

    # What arithmetic makes.

    def _times(self, other):
        return Product.of(self, other)

    def _scaled(self, scalar):
        return Scaled.of(scalar, self)

    def _power(self, power):
        return Power(self if self.domain == self.codomain else self._on(self.domain, self.domain), power)

    # What a product is made of, for `Gram.found`.

    def _chain(self, last):
        """The factors of a product, of which the last, or the first, takes the scalars."""
        return [self]

    def _unscaled(self):
        """The scalars by which an operator is multiplied, and the operator without."""
        return [], self

    # Transposes, and the same matrix over other Spaces.

    def _transposed(self):
        return Transposed(self)

    def _complexified(self):
        return Complexified(self)

    def _on(self, domain, codomain):
        """The same matrix between other Spaces of the same sizes."""
        if (domain, codomain) == (self.domain, self.codomain):
            return self
        if self._adapts and domain == codomain:
            return self._with_factors({name: A._on(domain, domain) for name, A in self._factors().items()})
        return Respaced(self, domain, codomain)

    def transpose(self):
        """Aᵀ, of shape (n, m)."""
        if self._equals_transpose:
            return self
        return Conjugate.of(self) if self.hermitian else self._transposed()

    def adjoint(self):
        """Aᴴ, the conjugate of Aᵀ."""
        return self if self._equals_adjoint else Conjugate.of(self.T)

    def to_lineax(self):
        """The same as a `lineax.FunctionLinearOperator` on pytrees, with its claims as tags, where lineax is installed.

        `A.mv` by itself is the callable that matfree, optimistix and jax.scipy take.
        """
        import lineax

        claims = {
            lineax.symmetric_tag: self._equals_adjoint,
            lineax.positive_semidefinite_tag: self.positive_semidefinite,
        }
        tags = frozenset(tag for tag, is_claimed in claims.items() if is_claimed)
        return lineax.FunctionLinearOperator(self.linearize().mv, self.domain.struct, frozenset(tags))

    T = property(transpose)
    H = property(adjoint)
    _transpose = transpose
    _adjoint = adjoint


class Transposed(Operator):
    """Aᵀ."""

    operator: Operator

    domain = property(lambda self: self.operator.codomain)
    codomain = property(lambda self: self.operator.domain)

    @functools.cached_property
    def _door(self):
        return self.operator._transposed_door

    def _listeners(self):
        return [(listener, not of_adjoint) for listener, of_adjoint in self.operator._listeners()]

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
    positive_semidefinite = property(lambda self: self.operator.positive_semidefinite)

    @classmethod
    def of(cls, operator):
        if operator._real:
            return operator
        return operator.operator if isinstance(operator, Conjugate) else cls(operator)

    def _mv(self, v):
        return jax.tree.map(jnp.conj, self.operator._mv(jax.tree.map(jnp.conj, v)))

    def _transposed(self):
        return Conjugate.of(self.operator.T)

    def _chain(self, last):
        return [Conjugate.of(factor) for factor in self.operator._chain(last)]

    def _unscaled(self):
        scalars, operator = self.operator._unscaled()
        return [as_conjugate(scalar) for scalar in scalars], Conjugate.of(operator)


class Complexified(Operator):
    """A real-linear operator from real vectors on complex ones: A (u + iv) = A u + i A v."""

    operator: Operator

    domain = property(lambda self: complex_space(self.operator.domain))
    codomain = property(lambda self: complex_space(self.operator.codomain))
    _dtype = property(lambda self: complex_dtype(self.operator._precision))
    symmetric = property(lambda self: self.operator._equals_transpose)
    hermitian = property(lambda self: self.operator._equals_adjoint)
    positive_semidefinite = property(lambda self: self.operator.positive_semidefinite)
    _real = property(lambda self: not is_complex(self.operator.codomain.dtype))
    _adapts = property(lambda self: self.operator._adapts)

    def _mv(self, v):
        return extended(self.operator._mv, v, self.operator.domain, self.codomain)

    def _mv_transposed(self, w):
        # The transpose of a real-linear map to complex vectors is w -> Re(Aᵀ w).
        return extended(self.operator._mv_transposed, w, self.operator.codomain, self.domain)

    def _transposed(self):
        return Complexified(self.operator.T) if self._real else Transposed(self)

    def _chain(self, last):
        return [Complexified(factor) for factor in self.operator._chain(last)]

    def _unscaled(self):
        scalars, operator = self.operator._unscaled()
        return scalars, Complexified(operator)

    def _on(self, domain, codomain):
        """As it adapts, the operator itself takes complex Spaces."""
        return self.operator._on(domain, codomain) if self._adapts else super()._on(domain, codomain)


class Respaced(Operator):
    """The same matrix between other Spaces of the same sizes."""

    operator: Operator
    domain: Space = static()
    codomain: Space = static()

    def _mv(self, v):
        return self.codomain.unravel(vector_product(self.operator, self.domain.ravel(v).astype(self.operator.dtype)))

    def _transposed(self):
        return self.operator.T._on(self.codomain, self.domain)

    def _chain(self, last):
        return self.operator._chain(last)

    symmetric = property(lambda self: self.operator._equals_transpose and self.domain == self.codomain)
    hermitian = property(lambda self: self.operator._equals_adjoint and self.domain == self.codomain)
    positive_semidefinite = property(lambda self: self.hermitian and self.operator.positive_semidefinite)
    _real = property(lambda self: self.operator._real)


class Scaled(Operator):
    """c A, for a scalar c, which is data: another c compiles nothing."""

    scalar: jax.Array
    operator: Operator

    @classmethod
    def of(cls, scalar, operator):
        number = as_number(scalar)
        operator = Complexified(operator) if is_complex(number.dtype) and not is_complex(operator.dtype) else operator
        if operator._adapts and not isinstance(number, jax.Array):  # rounded where its dtype is known
            return cls._make(scalar=number, operator=operator)
        scaled = cls(as_factor(scalar, operator.dtype), operator)
        if len(scalars := scaled._unscaled()[0]) > 1:
            say_nested(scalars, operator.dtype)
        return scaled

    def _residual_form(self):
        form = super()._residual_form()
        is_number = not isinstance(self.scalar, jax.Array | jax.ShapeDtypeStruct)  # of what adapts
        return form._replace(scalar=as_factor(self.scalar, self.dtype)) if is_number else form

    domain = property(lambda self: self.operator.domain)
    codomain = property(lambda self: self.operator.codomain)
    symmetric = property(lambda self: self.operator._equals_transpose)
    hermitian = property(lambda self: self.operator._equals_adjoint and not is_complex(jnp.result_type(self.scalar)))
    _is_semidefinite = property(lambda self: is_at_least_zero(self.scalar) and self.operator._is_semidefinite)
    _adapts = property(lambda self: self.operator._adapts)

    def _mv(self, v):
        return jax.tree.map(lambda leaf: as_factor(self.scalar, leaf.dtype) * leaf, self.operator._mv(v))

    def _transposed(self):
        return self._replace(operator=self.operator.T)

    def _on(self, domain, codomain):
        operator = self.operator._on(domain, codomain)
        return self if operator is self.operator else Scaled.of(self.scalar, operator)

    def _chain(self, last):
        factors = self.operator._chain(last)
        outer = -1 if last else 0
        factors[outer] = self._replace(operator=factors[outer])
        return factors

    def _unscaled(self):
        scalars, operator = self.operator._unscaled()
        return [self.scalar, *scalars], operator


class Product(Operator):
    """A B."""

    left: Operator
    right: Operator

    @classmethod
    def of(cls, left, right):
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"{left!r} @ {right!r}: expected as many rows on the right as columns on the left")
        left, right = over_one_field(left, right)
        product = Gram.found(left._chain(last=False), right._chain(last=True))
        return cls._joined(left, right) if product is None else product._on(right.domain, left.codomain)

    @classmethod
    def _of_chains(cls, lefts, rights):
        product = Gram.found(lefts, rights)
        return functools.reduce(cls._joined, [*lefts, *rights]) if product is None else product

    @classmethod
    def _joined(cls, left, right):
        """The product of two operators between which nothing reads as a Gram matrix."""
        if adapt(left, right):
            return cls(left, right)
        middle = common_space((left, left.domain), (right, right.codomain))
        domain = middle if right._adapts else right.domain
        codomain = middle if left._adapts else left.codomain
        return cls(left._on(middle, codomain), right._on(domain, middle))

    domain = property(lambda self: self.right.domain)
    codomain = property(lambda self: self.left.codomain)
    _adapts = property(lambda self: self.left._adapts and self.right._adapts)

    def _mv(self, v):
        return self.left._mv(self.right._mv(v))

    def _transposed(self):
        return Product._joined(self.right.T, self.left.T)

    def _chain(self, last):
        return [*self.left._chain(last), *self.right._chain(last)]


class Gram(Operator):
    """Aᵀ W A, or Aᴴ W A; Aᵀ A or Aᴴ A without W. It holds A once, so that A is linearized once wherever it goes."""

    operator: Operator
    weight: Operator | None = None
    conjugate: bool = static(default=False)  # Aᴴ in place of Aᵀ

    @classmethod
    def of(cls, operator, weight=None, conjugate=False):
        if weight is not None:
            operator, weight = over_one_field(operator, weight)
            middle = common_space((operator, operator.codomain), (weight, weight.domain), (weight, weight.codomain))
            operator = operator._on(middle if operator._adapts else operator.domain, middle)
            weight = weight._on(middle, middle)
        return cls(operator, weight, conjugate and not operator._real)

    @classmethod
    def found(cls, lefts, rights):
        """The product of the factors of two products where it reads as B Aᵀ W A C, else None; W is read in turn."""
        if (found := outermost(lefts, rights)) is None:
            return None
        i, j, scalars, A, conjugate = found
        before, between, after = lefts[:i], (lefts[i + 1 :], rights[:j]), rights[j + 1 :]
        gram = cls.of(A, Product._of_chains(*between) if any(between) else None, conjugate)
        product = Product._of_chains([*before, gram], after) if after else Product._of_chains(before, [gram])
        return functools.reduce(lambda product, scalar: Scaled.of(scalar, product), scalars, product)

    domain = codomain = property(lambda self: self.operator.domain)
    _adapts = property(lambda self: all(factor._adapts for factor in self._factors().values()))

    # Claims follow from A and W as they are: they stay true when their arrays change.
    symmetric = property(lambda self: not self.conjugate and (self.weight is None or self.weight._equals_transpose))
    hermitian = property(lambda self: self._has_adjoint and (self.weight is None or self.weight._equals_adjoint))
    positive_semidefinite = property(
        lambda self: self._has_adjoint and (self.weight is None or self.weight.positive_semidefinite)
    )
    _is_semidefinite = property(
        lambda self: self._has_adjoint and (self.weight is None or self.weight._is_semidefinite)
    )
    _has_adjoint = property(lambda self: self.conjugate or self.operator._real)

    def _listeners(self):
        if not (heard := super()._listeners()):
            return heard
        left = self.operator.H if self.conjugate else self.operator.T
        return left._listeners() + heard

    def _mv(self, v):
        left = self.operator.H if self.conjugate else self.operator.T
        product = self.operator._mv(v)
        return left._mv(product if self.weight is None else self.weight._mv(product))

    def _transposed(self):
        operator = Conjugate.of(self.operator) if self.conjugate else self.operator
        return self._replace(operator=operator, weight=self.weight.T)


class Power(Operator):
    """A ** p, for an integer p >= 0."""

    operator: Operator
    power: int = static()

    domain = codomain = property(lambda self: self.operator.domain)
    symmetric = property(lambda self: self.operator._equals_transpose)
    hermitian = property(lambda self: self.operator._equals_adjoint)
    positive_semidefinite = property(
        lambda self: self.hermitian and (self.power % 2 == 0 or self.operator.positive_semidefinite)
    )
    _adapts = property(lambda self: self.operator._adapts)

    def _listeners(self):
        return self.power * super()._listeners()

    def _mv(self, v):
        return jax.lax.fori_loop(0, self.power, lambda _, v: self.operator._mv(v), v)

    def _transposed(self):
        return self._replace(operator=self.operator.T)


def adapt(left, right):
    """Whether a sum or product adapts further."""
    return left._adapts and right._adapts and left.domain == right.domain


def common_space(*pairs):
    """The Space to combine operators on, of those that are firm."""
    return common([space for operator, space in pairs if not operator._adapts] or [pairs[0][1]])


def over_one_field(left, right):
    if is_complex(left.dtype) and not is_complex(right.dtype):
        return left, Complexified(right)
    if is_complex(right.dtype) and not is_complex(left.dtype):
        return Complexified(left), right
    return left, right
