"""`linops.inverse`: the inverse of an operator, or the pseudo-inverse, as an operator."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.algebra.operator import Gram, Operator, Scaled
from linops.algebra.sums import Sum
from linops.counted import allowed, told
from linops.door import Door
from linops.iterate import compute
from linops.linalg.definite import cg
from linops.linalg.general import gmres
from linops.linalg.indefinite import minres
from linops.linalg.least_squares import lsmr
from linops.linalg.operands import as_operator, as_square, fitting, require_dtype, with_nan
from linops.linalg.records import INCONSISTENT, NoConvergence
from linops.linalg.systems import Right
from linops.matrix import Identity, Matrix
from linops.node import static
from linops.precision import real_dtype
from linops.processes import gathered, require_same, spans
from linops.products import concrete, dense_matrix, is_traced, shorter_dense_matrix
from linops.program.staged import Flat

SMALL = 500  # rows or columns, of which a dense factor is made
ENTRIES = 10**7  # that it has at most


def inverse(A, method="auto", M=None, rtol=None, atol=0, maxiter=None):
    """The inverse of A, or the pseudo-inverse of a rectangular A, as an operator of shape (n, m).

    Each product solves a system on the device, to ‖b - A x‖ <= max(rtol ‖b‖, atol), computed anew. One that did not
    converge raises `linops.linalg.NoConvergence`, and is NaN within `jit`. Like any operator it has a transpose,
    takes blocks, is an argument of SciPy's solvers and of those here, as OPinv= or M=, and is differentiable in b and
    in A, by a solve with the transpose.

    Parameters
    ----------
    A : Operator
        Of shape (m, n).
    method : {"auto", "dense", "cg", "minres", "gmres", "lsmr"}
        "dense": a dense factor of A, or of the shorter side of c I + Jᵀ J, is made once, and gives the first guess and
        the preconditioner, so that a product mostly computes one residual. "auto": that, where the shorter side has at
        most 500 rows or columns and there is no M; else "cg" where A is known to be positive definite, "minres" where
        it is Hermitian, "gmres" where it is square, and "lsmr" where it is not.
    M : Operator, optional
        A preconditioner, as the solvers have it.
    rtol, atol : float
        By default eps^(2/3): 3.7e-11 in float64, 2.4e-5 in float32.
    maxiter : int, optional
        As the solver has it.

    Raises
    ------
    np.linalg.LinAlgError
        Where a dense factor shows that A is singular, or of deficient rank, to the precision at hand.
    NoConvergence
        From a product, with the record of its solver.

    Notes
    -----
    `Ai.solve(b, x0=None)` gives x and the record, whatever came of it, from a guess. `Ai.at(x)` is the inverse of
    `A.at(x)`. The small factor is that of Jᵀ (J Jᵀ + c I)^-1 J = I - c (Jᵀ J + c I)^-1, the push-through identity.

    Examples
    --------
    >>> Ai = linops.inverse(linops.Diagonal(np.array([1.0, 2.0, 4.0], np.float32)))
    >>> np.allclose(Ai @ np.ones(3, np.float32), [1, 0.5, 0.25])
    True
    """
    A = as_operator(A, None, "inverse")
    require_dtype("inverse", A)
    if method not in ("auto", "dense", *SOLVERS):
        raise ValueError(f"inverse got method={method!r}, expected 'auto', 'dense', {', '.join(map(repr, SOLVERS))}")
    if isinstance(A, Inverse) and method == "auto":
        return A.operator
    m, n = A.shape
    A = as_square(A, None, "inverse") if m == n else A
    rtol = float(jnp.finfo(real_dtype(A.dtype)).eps) ** (2 / 3) if rtol is None else rtol
    maxiter = None if maxiter is None else operator.index(maxiter)
    columns, heard = min(_shorter(A), m, n), A._listeners()
    is_small = columns <= SMALL and m * n <= ENTRIES and allowed(heard, columns) == columns
    guess = None
    if method == "dense" or (method == "auto" and M is None and is_small):
        guess = _dense(A)
        told(heard, columns)
    solver = method if method in SOLVERS else _solver(A, guess)
    if solver == "lsmr" and atol:
        raise ValueError(f"inverse got atol={atol} for {A!r}, to be solved by {solver}, expected 0: it knows rtol only")
    if solver == "lsmr" and M is not None:
        raise ValueError(f"inverse got M={M!r} for {A!r}, to be solved by lsmr, expected None: it takes none")
    return Inverse._make(
        operator=A,
        preconditioner=M,
        guess=guess,
        rtol=float(rtol),
        atol=float(atol),
        maxiter=maxiter,
        solver=solver,
        method=method,
    )


def _gmres(A, b, **options):
    """With more vectors than SciPy's 20, where the memory holds them: a product is to converge."""
    return gmres(A, b, restart=fitting([A.domain], min(A.shape[0], RESTART), 1), **options)


def _lsmr(A, b, *, x0, M, rtol, atol, maxiter, full_output):
    """`lsmr` has rtol in two places, and no preconditioner: a guess is one already."""
    maxiter = max(1, LSMR_STEPS * min(A.shape)) if maxiter is None else maxiter
    results = lsmr(A, b, atol=rtol, btol=rtol, conlim=0, maxiter=maxiter, x0=x0, full_output=full_output)
    return results[0], results[1], results[-1]


SOLVERS = {"cg": cg, "minres": minres, "gmres": _gmres, "lsmr": _lsmr}
LSMR_STEPS = 10  # times the shorter side
RESTART = 100  # vectors of gmres


class Inverse(Operator):
    """The inverse of an operator, or its pseudo-inverse, by solves."""

    operator: Operator
    preconditioner: Operator | None
    guess: Operator | None  # close to the inverse
    rtol: float = static()
    atol: float = static()
    maxiter: int | None = static()
    solver: str = static()
    method: str = static()

    domain = property(lambda self: self.operator.codomain)
    codomain = property(lambda self: self.operator.domain)
    symmetric = property(lambda self: self.operator.symmetric)
    hermitian = property(lambda self: self.operator.hermitian)
    positive_semidefinite = property(lambda self: self.operator.positive_semidefinite)
    _is_semidefinite = property(lambda self: self.operator._is_semidefinite)
    _real = property(lambda self: self.operator._real)
    _unit = functools.cached_property(lambda self: max(super()._unit, self.rtol, self.atol))

    def solve(self, b, x0=None):
        """The solution x of A x = b, or as far as it came, and the record; from a guess x0, as of a system nearby.

        b is an array (m,) or (m, k), or a pytree, and x like that.
        """
        if x0 is None and self.guess is not None:
            right = Right.of(self.domain, b, "inverse")
            x0 = right.shaped(self.codomain, compute(_products, self.guess, right.rows))
        preconditioner = self.preconditioner if self.guess is None else self.guess
        x, _, record = SOLVERS[self.solver](
            self.operator, b, x0=x0, M=preconditioner, rtol=self.rtol, atol=self.atol, maxiter=self.maxiter,
            full_output=True,
        )  # fmt: skip
        return x, record

    def at(self, *point, **options):
        """The inverse of the operator at another point: `inverse(G + c * I).at(x)`; M stays what it is."""
        A = self.operator.at(*point, **options)
        return inverse(A, self.method, self.preconditioner, self.rtol, self.atol, self.maxiter)

    def _points(self):
        return self.operator._points()

    def _mv(self, v):
        x, record = self.solve(v)
        return with_nan(self._element(x), record.converged)

    def _element(self, x):
        """The solution for an element as one: for a vector, which an element may be, solvers give a vector."""
        return self.codomain.unravel(x) if self.domain.is_flat else x

    def _mv_transposed(self, w):
        return self._transposed()._mv(w)

    def _transposed(self):
        return self._with_factors({name: A.T for name, A in self._factors().items()})

    def _listeners(self):
        """Those of the operator are told by its solver."""
        return []

    @functools.cached_property
    def _door(self):
        return Solving(self)

    @functools.cached_property
    def _transposed_door(self):
        return self.T._door


_REMEDY = "pass a larger rtol or maxiter, a preconditioner M, or look at .solve(b)"
_REMEDIES = {
    INCONSISTENT: "add c * linops.Identity(n), or take the least-squares solution that .solve(b) gives, or "
    'method="lsmr"'
}


class Solving(Door):
    """A door whose products are solves: what does not converge is an error that says why."""

    block_width = 64

    def __init__(self, inverse):
        super().__init__(inverse, repr(inverse), check_finite=False)
        self._inverse = inverse._replace()  # not the one that keeps this door
        self._flat = Flat(self._inverse, self.scope)
        self._is_heard = bool(inverse.operator._listeners())

    def _of_vector(self, v):
        if spans(self._inverse):
            require_same(v, f"the vector that {self.name} multiplies")
        return np.array(gathered(self._on_device(jnp.asarray(v))))

    _of_block = _of_vector

    def _of_diagonal(self, block, start):
        product = self._of_block(block)
        places = np.arange(product.shape[1])
        return product[start + places, places]

    def _on_device(self, v):
        return self._solved(v, solution, v)

    def tree_product(self, v):
        """The solution for an element, a tree of device arrays."""
        return self._inverse._element(self._solved(v, solution_of_leaves, *jax.tree.leaves(v)))

    def _solved(self, b, function, *arrays):
        heard = self._is_heard
        x, record = self._inverse.solve(b) if heard else concrete(lambda: self._flat.call(function, *arrays))
        if not np.all(jax.device_get(record.converged)):
            residual, tolerance = np.max(record.residual_norms), np.min(record.tolerance)
            raise NoConvergence(
                f"a product with {self.name} did not converge by {self._inverse.solver}: {record.reason}; the residual "
                f"is {residual:.1e} after {int(record.matvecs)} products, expected at most {tolerance:.1e}: "
                f"{_REMEDIES.get(int(np.max(record.code)), _REMEDY)}",
                None,
                None,
                record,
            )
        return x


def _products(A, rows):
    return jax.vmap(A._mv)(rows)


def solution(A, b):
    """What `A.solve` gives, as a function that is code."""
    return A.solve(b)


def solution_of_leaves(A, *leaves):
    """The same, of an element."""
    return A.solve(A.domain.treedef.unflatten(leaves))


# How to solve.


def _solver(A, guess):
    """The solver for what A is known to be; minres takes no preconditioner that is not positive definite."""
    if A.shape[0] != A.shape[1]:
        return "lsmr"
    if A._is_semidefinite:
        return "cg"
    return "minres" if A._equals_adjoint and guess is None else "gmres"


def _damped_gram(A):
    """The J and c of an operator Jᵀ J + c I, J with fewer rows than columns, or None."""
    if not isinstance(A, Sum) or len(A.terms) != 2:
        return None
    gram, shift = sorted(A.terms, key=lambda term: not isinstance(term, Gram))
    is_shift = (isinstance(shift, Scaled) and isinstance(shift.operator, Identity)) or isinstance(shift, Identity)
    if not (isinstance(gram, Gram) and gram.weight is None and is_shift):
        return None
    if gram.operator.shape[0] >= gram.operator.shape[1]:
        return None
    return gram.operator, shift.scalar if isinstance(shift, Scaled) else 1.0


def _shorter(A):
    """The shorter side of what a dense factor would be made of."""
    pushed = _damped_gram(A)
    return min(A.shape) if pushed is None else pushed[0].shape[0]


def _dense(A):
    """An operator close to the inverse, of a dense factor of the shorter side."""
    if pushed := _damped_gram(A):
        J, c = pushed
        small = compute(_small_inverse, J, c)
        return (1 / c) * (Identity(A.domain) - J.H @ Matrix(small)._on(J.codomain, J.codomain) @ J)
    inverse, rank = compute(_pseudo_inverse, A.linearize())
    if not is_traced(rank) and int(rank) < min(A.shape):
        raise np.linalg.LinAlgError(
            f"inverse got {A!r} of rank {int(rank)} to the precision of {A.dtype}, expected {min(A.shape)}: add c * I "
            'to it, or to the smaller of Jᵀ J and J Jᵀ; or pass method="lsmr" for the solution of least norm'
        )
    return Matrix(inverse)._on(A.codomain, A.domain)


def _small_inverse(J, c):
    """(J Jᴴ + c I)^-1."""
    size = J.shape[0]
    rows = dense_matrix(J.T)  # the transpose
    product = jnp.matmul(rows.T, rows.conj(), precision="highest") + c * jnp.eye(size, dtype=rows.dtype)
    factor = jax.scipy.linalg.cho_factor(product)
    return jax.scipy.linalg.cho_solve(factor, jnp.eye(size, dtype=rows.dtype))


def _pseudo_inverse(A):
    """The dense pseudo-inverse, and the rank."""
    U, s, Vh = jnp.linalg.svd(shorter_dense_matrix(A), full_matrices=False)
    nonzero = s > max(A.shape) * jnp.finfo(s.dtype).eps * jnp.max(s, initial=0)
    inverse = jnp.where(nonzero, 1 / jnp.where(nonzero, s, 1), 0)
    return jnp.matmul(Vh.conj().T * inverse, U.conj().T, precision="highest"), jnp.sum(nonzero)
