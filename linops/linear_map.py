"""A node as a SciPy LinearOperator: shapes, dtypes, and products with vectors, blocks and trees."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator

from linops import dense
from linops.ahead import prepared
from linops.arrays import as_array
from linops.compiled import Compiled
from linops.cost import cost_of
from linops.counted import counted
from linops.node import Node
from linops.precision import is_complex, lowest, say_loss
from linops.products import block_product, is_traced, vector_product
from linops.program.jaxpr.private import ARRAY_NAMESPACE, is_called_by_lapack
from linops.program.settings import Scope, full_precision


class LinearMap(Node, LinearOperator):
    """What `Operator` is apart from its algebra: products from the Space `domain` to the Space `codomain`."""

    ndim = 2
    symmetric = False
    hermitian = False
    positive_semidefinite = False
    _xp = ARRAY_NAMESPACE

    @property
    def _is_semidefinite(self):
        """Whether it is known to be positive semidefinite, by its claim or by the signs of numbers that are no tracers.

        A claim is of code alone, and stays true whatever becomes of the arrays; this is of the arrays as they are.
        """
        return self.positive_semidefinite

    # What a subclass may define beside its product.

    def _mv_transposed(self, w):
        return jax.linear_transpose(self._mv, self.domain.struct)(w)[0]

    def _residual_form(self):
        """The same operator after one linearization, in traceable JAX; composites linearize their factors."""
        factors = {name: factor.linearize() for name, factor in self._factors().items()}
        return self._with_factors(factors) if factors else self

    def _factors(self):
        """The operators that it is made of, by the names of its fields."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, LinearMap)}

    def _with_factors(self, factors):
        return self._replace(**factors)

    # Shapes and dtypes.

    @functools.cached_property
    def shape(self):
        return self.codomain.size, self.domain.size

    @property
    def dtype(self):
        """The dtype computed in, the least precise where those of leaves and factors differ."""
        dtype = self._dtype
        if dtype.char not in OF_NUMPY and is_called_by_lapack():
            require_lapack(dtype)
        return dtype

    @functools.cached_property
    def _dtype(self):
        if len({is_complex(dtype) for dtype in (*self.domain.dtypes, *self.codomain.dtypes)}) == 2:
            raise TypeError(
                f"{type(self).__name__} has real and complex leaves in its domain and codomain, expected one field, "
                "over which it is linear: make all leaves complex, or a pair of real and imaginary parts of each"
            )
        return self._precision

    @property
    def _precision(self):
        return lowest((*self.domain.dtypes, *self.codomain.dtypes, *(f.dtype for f in self._firm_factors())))

    @functools.cached_property
    def _unit(self):
        """What products are off by, relative to their norm: eps, and more where they are made of approximate ones."""
        return max([float(jnp.finfo(self.dtype).eps), *(factor._unit for factor in self._factors().values())])

    def _firm_factors(self):
        return [factor for factor in self._factors().values() if not factor._adapts]

    @property
    def _scope(self):
        """What products are computed in: with float64 where a Space has it, on the mesh of the functions."""
        wide = self.domain.wide or self.codomain.wide
        return Scope.around([Scope(wide), *(factor._scope for factor in self._factors().values())])

    @property
    def _adapts(self):
        """Whether the operator takes the Space and dtype of what it is combined with, as `Identity(n)` does."""
        return False

    @property
    def _real(self):
        """Whether the matrix is known to be one of real numbers, whatever vectors it takes."""
        return not is_complex(self.dtype)

    @property
    def _equals_transpose(self):
        """Whether Aᵀ = A by what is claimed."""
        return self.symmetric or (self.hermitian and self._real)

    @property
    def _equals_adjoint(self):
        """Whether Aᴴ = A by what is claimed."""
        return self.hermitian or (self.symmetric and self._real)

    @functools.cached_property
    def _checks_finite(self):
        return getattr(self, "check_finite", True) and all(f._checks_finite for f in self._factors().values())

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
        if linearized is self:
            return None
        vars(linearized)["_checks_finite"] = self._checks_finite  # no field of it, for it is the same program
        return linearized

    @functools.cached_property
    def _traced(self):
        return is_traced(self)

    def _listeners(self):
        """Who hears of products: for each product with a factor that is listened to, whom, and whether as an adjoint's.

        A product of a composite is one program, in which nothing is counted: what it is made of says what it counts.
        """
        return [heard for factor in self._factors().values() for heard in factor._listeners()]

    @functools.cached_property
    def _door(self):
        return counted(Compiled(prepared(self), repr(self), self._checks_finite), self._listeners())

    @functools.cached_property
    def _transposed_door(self):
        """What `A.T @ w` goes through: kept here, for each `A.T` is a new operator."""
        return self._door if self._equals_transpose else self._other_door(self.T, f"the transpose of {self!r}")

    @functools.cached_property
    def _adjoint_door(self):
        if not is_complex(self.dtype):
            return self._transposed_door
        if self._equals_adjoint:
            return self._door
        return self._other_door(self.H, f"the adjoint of {self!r}")

    def _other_door(self, other, name):
        return counted(Compiled(self._prepared_as(other), name, self._checks_finite), other._listeners())

    def _prepared_as(self, other):
        """A transpose, linearized; where this operator is already, there is nothing to be done meanwhile."""
        return other.linearize() if "_linearized" in vars(self) else prepared(other)

    @functools.cached_property
    def _complex_door(self):
        complexified = self._complexified().linearize()
        return counted(Compiled(complexified, repr(self), self._checks_finite), self._listeners())

    def mv(self, v):
        """The product with a pytree of `domain`, a pytree of `codomain` on the device.

        Where the domain is a part of trees, by `wrt=`, it is taken from a whole one.
        """
        v = self.domain.treedef.unflatten(self.domain.leaves(self.domain.within(v)))
        if self._traced or is_traced(v):
            with full_precision():
                return self._mv(v)
        self.linearize()
        return self._door.tree_product(v)

    def matvec(self, v):
        """A v: (n,) to (m,), (n, 1) to (m, 1), and each row of a batch (..., n) to (..., m)."""
        if self._takes(v):
            return self._door.matvec(v)
        v = as_array(v)
        columns = self.shape[1]
        if v.ndim == 1 or v.shape == (columns, 1):
            return self._product(v)
        if v.ndim == 0 or v.shape[-1] != columns:
            raise ValueError(
                f"{self!r} got an array of shape {v.shape}, expected ({columns},), ({columns}, 1) or (..., {columns})"
            )
        return self._product(v.reshape(math.prod(v.shape[:-1]), columns).T).T.reshape(*v.shape[:-1], self.shape[0])

    def matmat(self, block):
        """A V: (n, k) to (m, k)."""
        block = as_array(block)
        if block.ndim != 2:
            raise ValueError(f"{self!r} got an array of shape {block.shape}, expected a block ({self.shape[1]}, k)")
        return self._product(block)

    def rmatvec(self, w):
        """Aᴴ w, with the shapes of `matvec`."""
        if self._takes(w):
            return self._adjoint_door.matvec(w)
        return self.H.matvec(w)

    def rmatmat(self, block):
        """Aᴴ W: (m, k) to (n, k)."""
        return self.H.matmat(block)

    def _takes(self, v):
        """Whether v is what a solver hands over, most often and many times: a vector of the host, as it should be."""
        return type(v) is np.ndarray and v.ndim == 1 and not self._traced and v.dtype == self._dtype

    def _product(self, v):
        """A v or A V, for an array of one or two dimensions."""
        if self._traced or isinstance(v, jax.core.Tracer):
            return self._traced_product(jnp.asarray(v))
        needs_complex = is_complex(v.dtype) and not is_complex(self.dtype)
        if v.ndim == 2:
            self.linearize()  # no program for vectors is compiled meanwhile
        door = self._complex_door if needs_complex else self._door
        if isinstance(v, jax.Array):
            return door.device_product(v)
        product = door.matvec(v) if v.ndim == 1 else door.matmat(v)
        return np.asmatrix(product.reshape(-1, *v.shape[1:])) if isinstance(v, np.matrix) else product

    def _traced_product(self, v):
        if v.shape[0] != self.shape[1]:
            raise ValueError(
                f"{self!r} got an array of shape {v.shape}, expected ({self.shape[1]},) or ({self.shape[1]}, k)"
            )
        if is_complex(v.dtype) and not is_complex(self.dtype):
            return self._complexified()._traced_product(v)
        say_loss(f"the vector multiplied by {self!r}", v, self.dtype)
        v = v.astype(self.dtype)
        with full_precision():
            return vector_product(self, v) if v.ndim == 1 else block_product(self, v)

    # SciPy calls these on the factors of its own composites.
    _matvec = matvec
    _rmatvec = rmatvec
    _matmat = matmat
    _rmatmat = rmatmat

    # Dense forms.

    def toarray(self):
        """The dense matrix, a NumPy array of shape (m, n): columns or rows, whichever are fewer, in blocks."""
        self._require_arrays("toarray")
        A = self.linearize() if self._adapts else self  # by which scalars come to their dtype
        return dense.toarray(A.T).T.copy() if self.shape[0] < self.shape[1] else dense.toarray(A)

    def diagonal(self):
        """The entries A[i, i], a NumPy array of shape (min(m, n),), from as many products in blocks."""
        self._require_arrays("diagonal")
        return dense.diagonal(self)

    def cost(self):
        """What one product with a vector costs, a `Cost`: flops, bytes, residuals, and seconds on this machine."""
        self._require_arrays("cost", "it is of the compiled product: call it outside")
        return cost_of(self)

    def _require_arrays(self, method, since="the result is NumPy: call it outside, or multiply a jnp.eye inside"):
        if self._traced:
            raise TypeError(
                f"{self!r}.{method}() was called on an operator that belongs to a jit, vmap or grad in progress; "
                f"expected arrays, since {since}"
            )


OF_NUMPY = np.typecodes["AllFloat"]


def require_lapack(dtype):
    """Refuse a dtype that NumPy does not have of its own."""
    if dtype.char not in OF_NUMPY:
        raise TypeError(
            f"got an operator with dtype={dtype}, expected one in float32 or float64, which this function of SciPy "
            "needs: convert x to float32 before the operator is made, as by jax.tree.map(jnp.float32, x)"
        )
