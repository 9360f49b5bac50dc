"""Operators and their closure: sums, products, scalings, powers, transposes, conjugates."""

import dataclasses
import functools
import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from linops import dense
from linops.door import Door, is_traced
from linops.space import Space

static = functools.partial(dataclasses.field, metadata={"static": True})


class Operator(LinearOperator):
    """A linear map between two Spaces of pytrees: a SciPy `LinearOperator` of shape (m, n), and a JAX pytree.

    A subclass is a frozen dataclass. Its annotated fields are arrays, pytrees and operators, which are the leaves of
    the pytree, or `static()`, which is code. It defines `domain`, `codomain` and `_mv`, the product of trees in
    traceable JAX; where it knows more than `jax.linear_transpose` finds, `_mv_transposed` or `_transposed` as well.

    NumPy in gives NumPy out: fresh, writable, of the operator's dtype. A `jax.Array` in gives a `jax.Array`, with no
    transfer to the host, also under `jit`, `vmap` and `grad`.
    """

    domain: Space
    codomain: Space
    ndim = 2
    symmetric = False
    _xp = getattr(aslinearoperator(np.eye(1)), "_xp", None)  # what SciPy 1.18 sets in an __init__ that we do not run

    def __init_subclass__(cls):
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        is_static = {field.name: "static" in field.metadata for field in dataclasses.fields(cls)}
        data = tuple(name for name, no in is_static.items() if not no)
        code = tuple(name for name, yes in is_static.items() if yes)

        def flatten_with_keys(self):
            leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in data]
            return leaves, tuple(getattr(self, name) for name in code)

        def flatten(self):
            return tuple(getattr(self, name) for name in data), tuple(getattr(self, name) for name in code)

        def unflatten(aux, leaves):
            return cls._make(**dict(zip(data, leaves, strict=True)), **dict(zip(code, aux, strict=True)))

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

    @classmethod
    def _make(cls, **fields):
        """An instance with these fields, whatever the constructor of the class takes."""
        self = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        return self

    def _replace(self, **changes):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self._make(**{**fields, **changes})

    # What a subclass may define beside its product.

    def _mv_transposed(self, w):
        return jax.linear_transpose(self._mv, self.domain.struct)(w)[0]

    def _transposed(self):
        return Transposed(self)

    def _residual_form(self):
        """The same operator after one linearization, in traceable JAX; composites linearize their factors."""
        factors = {name: factor.linearize() for name, factor in self._factors().items()}
        return self._replace(**factors) if factors else self

    def _factors(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Operator)}

    # Shapes and dtypes.

    @functools.cached_property
    def shape(self):
        return self.codomain.size, self.domain.size

    @functools.cached_property
    def dtype(self):
        """The dtype that is computed in: the less precise one where domain and codomain, or factors, differ."""
        return _less_precise(self.domain.dtype, self.codomain.dtype, *(f.dtype for f in self._firm_factors()))

    def _firm_factors(self):
        return [factor for factor in self._factors().values() if not factor._adapts]

    @property
    def _adapts(self):
        """Whether the operator takes the Space and dtype of what it is combined with, as `Identity(n)` does."""
        return False

    @property
    def _checks_finite(self):
        return getattr(self, "check_finite", True) and all(f._checks_finite for f in self._factors().values())

    def _on(self, domain, codomain):
        """The same matrix between other Spaces of the same sizes."""
        return self if (domain, codomain) == (self.domain, self.codomain) else Respaced(self, domain, codomain)

    # Products.

    def linearize(self):
        """The same operator with the residuals of one linearization kept; an operator without any is returned as is.

        Products do this by themselves; call it where many products with one operator are made inside a jitted function.
        """
        return self._linearized or self

    @functools.cached_property
    def _linearized(self):
        """The linearized operator, or None: an operator that kept itself would be a cycle, freed late."""
        linearized = self._residual_form()
        return None if linearized is self else linearized

    @functools.cached_property
    def _traced(self):
        return is_traced(self)

    @functools.cached_property
    def _door(self):
        return Door(self.linearize(), repr(self))

    @functools.cached_property
    def _adjoint_door(self):
        return Door(self.H.linearize(), f"the adjoint of {self!r}")

    @functools.cached_property
    def _complex_door(self):
        return Door(Complexified(self).linearize(), repr(self))

    def mv(self, v):
        """The product with a pytree of `domain`, a pytree of `codomain` on the device."""
        v = self.domain.point(v)
        return self._mv(v) if self._traced or is_traced(v) else self._door.tree_product(v)

    def _vector(self, v):
        """The product with a vector, in traceable JAX."""
        return self.codomain.ravel(self._mv(self.domain.unravel(v))).astype(self.dtype)

    def _block(self, block):
        return jax.vmap(self._vector, in_axes=1, out_axes=1)(block)

    def _block_diagonal(self, block, start):
        columns = jnp.arange(block.shape[1])
        return self._block(block)[start + columns, columns]

    def _tree(self, *leaves):
        return self._mv(self.domain.treedef.unflatten(leaves))

    def __matmul__(self, other):
        if type(other) is np.ndarray and other.ndim == 1 and not self._traced and other.dtype == self.dtype:
            return self._door.matvec(other)
        if _is_scalar(other):
            raise ValueError(f"{self!r} @ {other!r}: a scalar cannot be an operand of @; use * instead")
        return self.dot(other)

    def dot(self, other):
        """A v, A V, A B or c A, by what `other` is: a vector, a block of columns, an operator or a scalar."""
        if isinstance(other, Operator):
            return Product.of(self, other)
        if _is_scalar(other):
            return Scaled.of(other, self)
        if (foreign := _as_foreign(other)) is not None:
            return LinearOperator.dot(self, foreign)
        other = _as_array(other)
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    def matvec(self, v):
        """A v: (n,) to (m,), (n, 1) to (m, 1), and each row of a batch (..., n) to (..., m)."""
        v = _as_array(v)
        columns = self.shape[1]
        if v.ndim == 1:
            return self._product(v)
        if v.shape == (columns, 1):
            return self._product(v)
        if v.ndim == 0 or v.shape[-1] != columns:
            raise ValueError(f"{self!r} got an array of shape {v.shape}, expected ({columns},), ({columns}, 1) or (..., {columns})")
        return self._product(v.reshape(-1, columns).T).T.reshape(*v.shape[:-1], self.shape[0])

    def matmat(self, block):
        """A V: (n, k) to (m, k)."""
        block = _as_array(block)
        if block.ndim != 2:
            raise ValueError(f"{self!r} got an array of shape {block.shape}, expected a block ({self.shape[1]}, k)")
        return self._product(block)

    def rmatvec(self, w):
        """Aᴴ w, with the shapes of `matvec`."""
        if type(w) is np.ndarray and w.ndim == 1 and not self._traced and w.dtype == self.dtype:
            return self._adjoint_door.matvec(w)
        return self.H.matvec(w)

    def rmatmat(self, block):
        """Aᴴ W: (m, k) to (n, k)."""
        return self.H.matmat(block)

    def _product(self, v):
        """A v or A V, for an array of one or two dimensions."""
        if self._traced or isinstance(v, jax.core.Tracer):
            return self._traced_product(jnp.asarray(v))
        needs_complex = jnp.issubdtype(v.dtype, jnp.complexfloating) and not _is_complex(self.dtype)
        door = self._complex_door if needs_complex else self._door
        if isinstance(v, jax.Array):
            return door.device_product(v)
        product = door.matvec(v) if v.ndim == 1 else door.matmat(v)
        return np.asmatrix(product.reshape(-1, *v.shape[1:])) if isinstance(v, np.matrix) else product

    def _traced_product(self, v):
        if v.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r} got an array of shape {v.shape}, expected ({self.shape[1]},) or ({self.shape[1]}, k)")
        if jnp.issubdtype(v.dtype, jnp.complexfloating) and not _is_complex(self.dtype):
            return Complexified(self)._traced_product(v)
        v = v.astype(self.dtype)
        return self._vector(v) if v.ndim == 1 else self._block(v)

    # SciPy calls these on the factors of its own composites.
    _matvec = matvec
    _rmatvec = rmatvec
    _matmat = matmat
    _rmatmat = rmatmat

    # Transposes.

    def transpose(self):
        """Aᵀ, of shape (n, m)."""
        return self if self.symmetric else self._transposed()

    def adjoint(self):
        """Aᴴ, the conjugate of Aᵀ."""
        return Conjugate.of(self.T)

    T = property(transpose)
    H = property(adjoint)
    _transpose = transpose
    _adjoint = adjoint

    # Algebra. What is not ours goes to SciPy's lazy algebra.

    def __add__(self, other):
        if isinstance(other, Operator):
            return Sum.of(self, other)
        foreign = _as_foreign(other)
        return NotImplemented if foreign is None else LinearOperator.__add__(self, foreign)

    def __radd__(self, other):
        foreign = _as_foreign(other)
        return NotImplemented if foreign is None else foreign + self

    def __neg__(self):
        return Scaled.of(-1, self)

    def __sub__(self, other):
        if isinstance(other, Operator):
            return self + -other
        foreign = _as_foreign(other)
        return NotImplemented if foreign is None else LinearOperator.__add__(self, -foreign)

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, other):
        return self.dot(other)

    def __rmul__(self, other):
        return Scaled.of(other, self) if _is_scalar(other) else self.__rmatmul__(other)

    def __rmatmul__(self, other):
        """v A, which is Aᵀ v for a vector and (Aᵀ Vᵀ)ᵀ for rows."""
        if (foreign := _as_foreign(other)) is not None:
            return foreign @ self
        if _is_scalar(other):
            raise ValueError(f"{other!r} @ {self!r}: a scalar cannot be an operand of @; use * instead")
        return (self.T @ _as_array(other).T).T

    rdot = __rmatmul__

    def __truediv__(self, other):
        if not _is_scalar(other):
            raise ValueError(f"{self!r} / {other!r}: an operator is divided by scalars only; to solve a system, use scipy.sparse.linalg")
        return Scaled.of(1 / other, self)

    def __pow__(self, power):
        if not isinstance(power, numbers.Integral) or power < 0:
            raise ValueError(f"{self!r} ** {power!r}: expected an integer power >= 0; for inverses, use scipy.sparse.linalg")
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r} ** {power}: expected a square operator")
        return Power(self._on(self.domain, self.domain), int(power))

    def __array_function__(self, func, types, args, kwargs):
        """`np.dot(A, v)`, which SciPy's trust-ncg and trust-krylov call, is A @ v. All else NumPy answers by itself."""
        if func is np.dot:
            return operator.matmul(*args, **kwargs)
        return func._implementation(*args, **kwargs)

    # Dense forms.

    def toarray(self):
        """The dense matrix, a NumPy array of shape (m, n): columns or rows, whichever are fewer, in blocks."""
        self._require_arrays("toarray")
        return dense.toarray(self.T._door).T.copy() if self.shape[0] < self.shape[1] else dense.toarray(self._door)

    def diagonal(self):
        """The entries A[i, i], a NumPy array of shape (min(m, n),), from as many products in blocks."""
        self._require_arrays("diagonal")
        return dense.diagonal(self._door)

    def _require_arrays(self, method):
        if self._traced:
            raise TypeError(
                f"{self!r}.{method}() was called on an operator that belongs to a jit, vmap or grad in progress; expected "
                "arrays, since the result is NumPy: call it outside, or multiply a jnp.eye inside"
            )


class Transposed(Operator):
    """Aᵀ."""

    operator: Operator

    domain = property(lambda self: self.operator.codomain)
    codomain = property(lambda self: self.operator.domain)

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

    @classmethod
    def of(cls, operator):
        if not _is_complex(operator.dtype):
            return operator
        return operator.operator if isinstance(operator, Conjugate) else cls(operator)

    def _mv(self, v):
        return jax.tree.map(jnp.conj, self.operator._mv(jax.tree.map(jnp.conj, v)))

    def _transposed(self):
        return Conjugate(self.operator.T)


class Complexified(Operator):
    """A real operator on complex vectors: A (x + iy) = A x + i A y."""

    operator: Operator

    domain = property(lambda self: _complex_space(self.operator.domain))
    codomain = property(lambda self: _complex_space(self.operator.codomain))
    dtype = property(lambda self: np.dtype(jnp.result_type(self.operator.dtype, jnp.complex64)))
    symmetric = property(lambda self: self.operator.symmetric)

    def _mv(self, v):
        parts = jax.tree.map(lambda leaf: jnp.stack([leaf.real, leaf.imag]), v)
        return jax.tree.map(lambda leaf: jax.lax.complex(leaf[0], leaf[1]), jax.vmap(self.operator._mv)(parts))

    def _transposed(self):
        return Complexified(self.operator.T)


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


class Identity(Operator):
    """The identity on a Space, or on vectors of n entries, then of the dtype of what it is combined with."""

    space: Space = static()
    adapts: bool = static(default=False)

    def __init__(self, space_or_n):
        adapts = not isinstance(space_or_n, Space)
        if adapts and (not isinstance(space_or_n, numbers.Integral) or isinstance(space_or_n, bool) or space_or_n < 0):
            raise TypeError(f"Identity got {space_or_n!r}, expected a number of rows >= 0 or a linops.Space")
        space = Space.flat(int(space_or_n), jnp.result_type(float)) if adapts else space_or_n
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "adapts", adapts)

    symmetric = True
    domain = codomain = property(lambda self: self.space)
    _adapts = property(lambda self: self.adapts)

    def _mv(self, v):
        return v

    def _on(self, domain, codomain):
        return Identity(domain) if domain == codomain else super()._on(domain, codomain)


class Scaled(Operator):
    """c A, for a scalar c, which is data: another c compiles nothing."""

    scalar: jax.Array
    operator: Operator

    @classmethod
    def of(cls, scalar, operator):
        if jnp.issubdtype(jnp.result_type(scalar), jnp.complexfloating) and not _is_complex(operator.dtype):
            operator = Complexified(operator)
        return cls(jnp.asarray(scalar).astype(operator.dtype), operator)

    domain = property(lambda self: self.operator.domain)
    codomain = property(lambda self: self.operator.codomain)
    symmetric = property(lambda self: self.operator.symmetric)
    _adapts = property(lambda self: self.operator._adapts)

    def _mv(self, v):
        return jax.tree.map(lambda leaf: self.scalar.astype(leaf.dtype) * leaf, self.operator._mv(v))

    def _transposed(self):
        return self._replace(operator=self.operator.T)

    def _on(self, domain, codomain):
        operator = self.operator._on(domain, codomain)
        return Scaled(self.scalar.astype(operator.dtype), operator)


class Sum(Operator):
    """A + B."""

    left: Operator
    right: Operator

    @classmethod
    def of(cls, left, right):
        if left.shape != right.shape:
            raise ValueError(f"{left!r} + {right!r}: expected operators of one shape")
        left, right = _over_one_field(left, right)
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

    @classmethod
    def of(cls, left, right):
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"{left!r} @ {right!r}: expected as many rows on the right as columns on the left")
        left, right = _over_one_field(left, right)
        middle = _common_space((left, left.domain), (right, right.codomain))
        domain = middle if right._adapts else right.domain
        codomain = middle if left._adapts else left.codomain
        return cls(left._on(middle, codomain), right._on(domain, middle))

    domain = property(lambda self: self.right.domain)
    codomain = property(lambda self: self.left.codomain)
    symmetric = property(lambda self: _is_transpose(self.left, self.right))
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


def _common_space(*pairs):
    """The Space to combine operators on: one that is firm, rather a tree than flat, of the lower precision."""
    firm = [space for operator, space in pairs if not operator._adapts] or [pairs[0][1]]
    lowest = _less_precise(*(space.dtype for space in firm))
    return min(firm, key=lambda space: (space.is_flat, space.dtype != lowest))


def _less_precise(*dtypes):
    return min(map(np.dtype, dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


def _over_one_field(left, right):
    if _is_complex(left.dtype) and not _is_complex(right.dtype):
        return left, Complexified(right)
    if _is_complex(right.dtype) and not _is_complex(left.dtype):
        return Complexified(left), right
    return left, right


def _is_complex(dtype):
    return jnp.issubdtype(dtype, jnp.complexfloating)


def _complex_space(space):
    return Space(space.treedef, space.shapes, tuple(np.dtype(jnp.result_type(d, jnp.complex64)) for d in space.dtypes))


def _is_scalar(value):
    return isinstance(value, numbers.Number) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0)


def _as_foreign(value):
    """A SciPy LinearOperator or sparse matrix as a LinearOperator, anything else as None."""
    if isinstance(value, LinearOperator):
        return value
    return aslinearoperator(value) if scipy.sparse.issparse(value) else None


def _as_array(value):
    return value if isinstance(value, np.ndarray | jax.Array) else np.asarray(value)
