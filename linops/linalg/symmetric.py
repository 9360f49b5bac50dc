"""`linops.linalg.eigsh`: extreme eigenvalues of Hermitian operators, on the device."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.iterate import compute, iterate
from linops.krylov import rows_of
from linops.linalg.lanczos import ThickRestart, tolerances
from linops.linalg.operands import (
    as_columns,
    as_square,
    block_of,
    fitting,
    is_on_one_device,
    marked,
)
from linops.linalg.problems import inverse_errors, standard_problem
from linops.linalg.records import (
    CONVERGED,
    LIMIT,
    NO_INVERSE,
    NOT_FINITE,
    NOT_SYMMETRIC,
    ROUNDING,
    STOPPED,
    Interrupted,
    NoConvergence,
    Record,
    no_tangent,
)
from linops.precision import real_dtype
from linops.products import is_traced
from linops.watching import watched

WHICH = ("LM", "LA", "SA", "BE")
SYMMETRIC = 0.25  # a power of eps: that far from Hermitian, relative to the norm, is not by rounding
MOST_RESTARTS = 10  # times n, as in ARPACK
MORE = 80  # vectors than pairs, in a basis by default: its size beats every rule of restarts
WRONG = 0.1  # relative error of OPinv on an eigenvector


def eigsh(
    A,
    k=6,
    M=None,
    sigma=None,
    which="LM",
    v0=None,
    ncv=None,
    maxiter=None,
    tol=0,
    return_eigenvectors=True,
    Minv=None,
    OPinv=None,
    mode="normal",
    *,
    lock=None,
    key=None,
    space=None,
    trees=False,
    full_output=False,
    callback=None,
    save=None,
):
    """Find k eigenvalues and eigenvectors of a Hermitian operator, A v = w M v, on the device.

    SciPy's `eigsh`, by thick-restart Lanczos on the device, and jittable. Of a multiple eigenvalue all copies are
    found: after convergence it goes on from a random vector, orthogonal to what was found, until nothing is new.

    Parameters
    ----------
    A : Operator, array of shape (n, n), or callable
        Symmetric or Hermitian; a callable is linear on `space`, in JAX.
    k : int
        How many, 1 <= k <= n.
    M : Diagonal or Identity, optional
        Positive definite, for the generalized problem. Others are refused: they need products with an inverse.
    sigma, OPinv : float, Operator
        Shift-invert mode: the eigenvalues next to `sigma`, with `OPinv` the operator (A - sigma M)^-1.
        `which` is then, as in SciPy, said of 1 / (w - sigma).
    which : {"LM", "LA", "SA", "BE"}
        The largest in modulus, the largest, the smallest, or half (the larger one) from each end, in one run. "SM"
        is refused, for Lanczos finds the ends of a spectrum: pass sigma=0 with OPinv=, or see
        `linops.estimate.spectral_density`.
    v0 : array (n,) or (n, p), or pytree, optional
        The start, random by default. p vectors, as the eigenvectors at a point nearby, start a block method.
    ncv : int, optional
        How many vectors the basis has, k < ncv <= n; by default max(2 k + 1, k + 80) where a fourth of the
        memory holds them. More vectors take fewer products.
    maxiter : int, optional
        How often the basis may be filled; 10 n by default.
    tol : float
        Residual norms |A v - w M v| are at most tol |w|, as in SciPy; raised to what rounding allows, some eps |A|,
        which 0 asks for.
    return_eigenvectors : bool
        Whether to return vectors too. Eigenvalues alone are differentiable, by vᴴ dA v.
    Minv, mode
        As SciPy has them, and refused: `M` is diagonal, and the mode "normal".
    lock : array (n, q), or pytree with a leading axis of q, optional
        Eigenvectors that are known already: all that is found is orthogonal to them, and they are not returned.
    key : JAX key, optional
        Of all that is random; `jax.random.key(0)` by default.
    space : Space, optional
        The Space of a callable A.
    trees : bool
        The eigenvectors as a pytree like an element of A's domain, each leaf with a leading axis of k, in place of an
        array of shape (n, k): leaves on several devices stay there.
    full_output : bool
        Return a `Record` as well.
    callback : callable, optional
        `callback(record)` is called between chunks of steps with what is known; True stops. It changes no number.
    save : path, or (path, seconds), optional
        A file in which the state of the run is kept, about every 60 seconds, and from which a run that was stopped goes
        on, bit for bit on the same machine. A file of another run is refused.

    Returns
    -------
    w : jax.Array
        Of shape (k,), ascending.
    v : jax.Array or pytree
        Of shape (n, k), orthonormal (vᴴ M v = 1).
    record : Record
        With `full_output`: residual norms, computed anew from products with what is returned, their tolerance,
        iterations (restarts), products.

    Raises
    ------
    NoConvergence
        Where not all converged, with what did. Within `jit` that is NaN, and the record says why.
    ValueError
        Where A turns out not to be Hermitian, or an argument is none of these.
    FloatingPointError
        Where a product with A has NaN or Inf.

    Notes
    -----
    Wu and Simon, SIAM J. Matrix Anal. Appl. 22 (2000). With M the problem is that of M^-1/2 A M^-1/2, whose residuals
    are reported; with OPinv, those of OPinv v = v / (w - sigma). A residual norm bounds the distance to the nearest
    eigenvalue. That none was missed is, as with all such methods, likely and not proved.

    Examples
    --------
    >>> from linops.linalg import eigsh
    >>> w, v = eigsh(linops.Diagonal(np.arange(100, dtype=np.float32)), k=3, which="BE")
    >>> w.round(3).tolist()
    [0.0, 98.0, 99.0]
    """
    A = as_square(A, space, "eigsh")
    _require(A, which, Minv, mode, tol)
    k, ncv, maxiter = _counts(A, k, ncv, maxiter)
    problem = standard_problem(A, M, sigma, OPinv)
    key = jax.random.key(0) if key is None else key
    held = None if lock is None else block_of(A.domain, lock, "lock")
    block = _start(problem.operator, v0, key)
    count, width = (0 if vectors is None else rows_of(vectors) for vectors in (held, block))
    rows = _capacity(A, k, ncv, width, count)
    if width > 1 and rows + width > A.domain.size:  # no room for blocks
        block = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, keepdims=True), block)
    algorithm = ThickRestart(k, which, rows, count, maxiter, is_on_one_device(A))
    with A.domain.scope():
        operands = block, held, jnp.asarray(tol, real_dtype(A.domain.dtype)), jax.random.fold_in(key, 1)
    traced = is_traced((problem, operands))
    result = _Result(algorithm, marked=traced)
    if traced and not return_eigenvectors:
        w, record = _values(result, problem, operands)
        v = None
    elif traced:
        w, v, record = _pairs(result, problem, operands)
    else:
        state, watch = watched(
            algorithm, problem.operator, operands, _Glance(algorithm), A._listeners(), callback, save
        )
        w, v, record = compute(result, problem, state)
        watch.report(record)
    if return_eigenvectors or not traced:
        v = v if trees else as_columns(A.domain, v)
    if not traced:
        _require_converged(A, w, v, record, trees, watch.interrupted)
    found = (w, v) if return_eigenvectors else (w,)
    found = (*found, record) if full_output else found
    return found if len(found) > 1 else w


# What is asked for.


def _counts(A, k, ncv, maxiter):
    """The integers, by which shapes are made."""
    try:
        k, ncv, maxiter = (None if count is None else operator.index(count) for count in (k, ncv, maxiter))
    except TypeError:
        raise TypeError(
            f"eigsh got k={k!r}, ncv={ncv!r} and maxiter={maxiter!r}, expected integers, static in jit"
        ) from None
    n = A.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"eigsh got k={k} for {A!r}, expected 1 <= k <= n = {n}")
    if ncv is not None and not min(k + 1, n) <= ncv <= n:
        raise ValueError(f"eigsh got ncv={ncv} with k={k} for {A!r}, expected {min(k + 1, n)} <= ncv <= {n}")
    maxiter = MOST_RESTARTS * n if maxiter is None else maxiter
    if maxiter < 1:
        raise ValueError(f"eigsh got maxiter={maxiter}, expected at least 1, how often the basis is filled")
    return k, ncv, maxiter


def _require(A, which, Minv, mode, tol):
    if which == "SM":
        raise ValueError(
            "eigsh got which='SM': Lanczos finds the ends of a spectrum, not its middle; pass sigma=0 and OPinv=, an "
            "operator that is the inverse of A, or which='SA' for the smallest with their signs; "
            "linops.estimate.spectral_density shows how many there are near zero"
        )
    if which not in WHICH:
        raise ValueError(f"eigsh got which={which!r}, expected 'LM', 'LA', 'SA' or 'BE'")
    if Minv is not None or mode != "normal":
        raise ValueError(
            f"eigsh got mode={mode!r} and Minv={Minv!r}, expected the mode 'normal' without Minv: M is diagonal here; "
            "scipy.sparse.linalg.eigsh takes the others"
        )
    if isinstance(tol, float | int) and not 0 <= tol < 1:
        raise ValueError(f"eigsh got tol={tol}, expected 0 <= tol < 1, relative to each eigenvalue")


def _start(A, v0, key):
    """The block to start from, random where none is given; on devices as products are."""
    if v0 is not None:
        return block_of(A.domain, v0, "v0")
    v = A.domain.draw(key)
    if not is_traced((A, v)) and not is_on_one_device(A):
        product = A.mv(v)
        v = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), v, product)
    return jax.tree.map(lambda leaf: leaf[None], v)


def _capacity(A, k, ncv, width, held):
    """How many rows the basis has, those that are held included."""
    n = A.domain.size
    least = held + k + width + 1
    rows = held + ncv if ncv else fitting([A.domain], held + max(2 * k + 1, k + MORE), least)
    return min(n, max(rows, least))


# What it comes to.


@dataclasses.dataclass(frozen=True)
class _Result:
    """The pairs of the last state, as they are returned, and the record."""

    algorithm: ThickRestart
    marked: bool  # what is not converged as NaN

    def __call__(self, problem, state):
        algorithm, A = self.algorithm, problem.A
        found, rows, residuals, tolerance = algorithm.finish(problem.operator, state)
        values, wrong = found, jnp.zeros((), bool)
        if problem.inverse is not None:
            values = problem.sigma + 1 / found
            wrong = jnp.any(inverse_errors(A, problem.sigma, found, rows) > WRONG)
        converged = (residuals <= tolerance) & ~wrong
        eps = jnp.finfo(values.dtype).eps
        ends = [
            (~(jnp.isfinite(state.norm) & jnp.all(jnp.isfinite(residuals))), NOT_FINITE),
            (state.asymmetry > eps**SYMMETRIC * state.norm, NOT_SYMMETRIC),
            (wrong, NO_INVERSE),
            (jnp.all(converged), CONVERGED),
            (state.finished, ROUNDING),
            (state.restarts >= algorithm.maxiter, LIMIT),
        ]
        code = jnp.select([is_so for is_so, _ in ends], [code for _, code in ends], STOPPED).astype(jnp.int32)
        converged &= code != NOT_SYMMETRIC
        record = Record(converged, code, state.restarts, state.matvecs + algorithm.k, residuals, tolerance)
        if self.marked:
            values, rows = jnp.where(converged, values, jnp.nan), marked(rows, converged)
        order = jnp.argsort(values)
        values, rows = values[order], jax.tree.map(lambda leaf: leaf[order], rows)
        if problem.scale is not None:
            rows = jax.vmap(problem.scale._mv)(rows)
        return values, rows, jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, record)


@dataclasses.dataclass(frozen=True)
class _Glance:
    """The record of a state that is not the last one: bounds in place of residuals."""

    algorithm: ThickRestart

    def __call__(self, A, state):
        values, bounds = self.algorithm.estimates(A, state)
        tolerance = tolerances(state.tol, values, state.norm)
        converged = bounds <= tolerance
        code = jnp.where(jnp.all(converged), CONVERGED, STOPPED).astype(jnp.int32)
        return Record(converged, code, state.restarts, state.matvecs, bounds, tolerance)


def _run(result, problem, operands):
    return compute(result, problem, iterate(result.algorithm, problem.operator, *operands))


# Derivatives.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values(result, problem, operands):
    """The eigenvalues, which have a derivative, and the record."""
    values, _, record = _run(result, problem, operands)
    return values, record


@_values.defjvp
def _derivative_of_values(result, primals, tangents):
    """Re(v^H dA v) of each value; it is that of A in shift-invert mode too."""
    problem, operands = primals
    values, rows, record = _run(result, problem._replace(scale=None), operands)

    def quotients(A):
        return jax.lax.map(lambda v: A.domain.inner(v, A._mv(v)).real, rows).astype(values.dtype)

    _, change = jax.jvp(quotients, (problem.A,), (tangents[0].A,))
    return (values, record), (change, jax.tree.map(no_tangent, record))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pairs(result, problem, operands):
    """All of it, which is not differentiated."""
    return _run(result, problem, operands)


@_pairs.defjvp
def _no_derivative_of_pairs(result, primals, tangents):
    raise TypeError(
        "eigsh was differentiated with eigenvectors, which have no derivative here: those of close values turn into "
        "one another; expected return_eigenvectors=False, with which the values have one"
    )


# What is said outside of jit.


def _require_converged(A, w, v, record, trees, interrupted):
    code = int(record.code)
    if code == NOT_FINITE:
        raise FloatingPointError(
            f"a product with {A!r} was NaN or infinite in eigsh, expected finite numbers: multiply by a vector, A @ v, "
            "to see where they come from"
        )
    if code == NOT_SYMMETRIC:
        raise ValueError(
            f"eigsh got {A!r}, whose matrix is not Hermitian: products with it show v^H A u and u^H A v that differ; "
            "expected a Hermitian one: linops.linalg.svds takes any, and scipy.sparse.linalg.eigs finds eigenvalues"
        )
    if code == NO_INVERSE:
        raise ValueError(
            f"eigsh got an OPinv that is not the inverse of A - sigma M for {A!r}: OPinv (A - sigma M) v is not v; "
            "expected one that is, solved to more digits than tol asks for"
        )
    known = np.asarray(record.converged)
    if not known.all():
        places = np.flatnonzero(known)
        with A.domain.scope():
            w, v = w[places], jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=0 if trees else -1), v)
        error = Interrupted if interrupted else NoConvergence
        raise error(
            f"{known.sum()} of {known.size} eigenvalues of {A!r} converged: {record.reason}; they are in .eigenvalues, "
            f"their vectors in .eigenvectors. Expected a larger maxiter, ncv or tol.\n{record!r}",
            w,
            v,
            record,
        )
