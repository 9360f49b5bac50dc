"""`linops.linalg.eigsh`: extreme eigenvalues of Hermitian operators, on the device."""

import functools

import jax
import jax.numpy as jnp

from linops.arrays import as_key
from linops.krylov import after, rows_of, seed_of
from linops.linalg.lanczos import ThickRestart
from linops.linalg.operands import as_columns, as_square, block_of, capacity, is_on_one_device, start
from linops.linalg.problems import inverse_errors, standard_problem
from linops.linalg.records import NO_INVERSE, NOT_SYMMETRIC
from linops.linalg.runs import Kind, Outcome, counts, found

WHICH = ("LM", "LA", "SA", "BE")
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
        Residual norms ‖A v - w M v‖ are at most tol abs(w), as in SciPy; raised to what rounding allows, some eps ‖A‖,
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
        on, bit for bit on the same machine, also with a larger maxiter. A file of another run is refused.

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
    >>> (w.round() + 0).tolist()
    [0.0, 98.0, 99.0]
    """
    A = as_square(A, space, "eigsh")
    _require(which, Minv, mode)
    k, ncv, maxiter, tol = counts(A, k, ncv, maxiter, tol, _Pairs.kind)
    problem = standard_problem(A, M, sigma, OPinv)
    seed = seed_of(as_key(jax.random.key(0) if key is None else key, "eigsh"))
    held = None if lock is None else block_of(A.domain, lock, "lock")
    block = start(problem.operator, v0, seed)
    if problem.root is not None:  # by which vectors of the user become those of the standard problem
        held = None if held is None else jax.vmap(problem.root._mv)(held)
        block = block if v0 is None else jax.vmap(problem.root._mv)(block)
    count, width = (0 if vectors is None else rows_of(vectors) for vectors in (held, block))
    if k + count > A.domain.size:
        raise ValueError(f"eigsh got k={k} and {count} vectors to lock for {A!r}, expected n = {A.shape[0]} at most")
    rows = capacity([A.domain], k, ncv, max(2 * k + 1, k + MORE), width, count)
    if width > 1 and rows + width > A.domain.size:  # no room for blocks
        block = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, keepdims=True), block)
    outcome = _Pairs(ThickRestart(k, which, rows, count, maxiter, is_on_one_device(A)))
    operands = block, held, tol, after(seed)
    shape = (lambda v: v) if trees else functools.partial(as_columns, A.domain)
    w, v, record = found(outcome, A, problem, operands, return_eigenvectors, shape, callback, save)
    results = (w, *[v] * return_eigenvectors, *[record] * full_output)
    return results if len(results) > 1 else w


# What is asked for.


def _require(which, Minv, mode):
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


# What it comes to.


class _Pairs(Outcome):
    """The pairs of the last state, as they are returned, and the record."""

    kind = Kind("eigsh", "eigenvalue", "return_eigenvectors=False", with_adjoint=False)

    def finish(self, problem, state):
        A = problem.operator
        found, rows, residuals, tolerance = self.algorithm.finish(A, state)
        none = ~jnp.any(residuals <= tolerance)
        faults = [(~state.is_symmetric(A) | (none & state.finished & state.is_suspect(A)), NOT_SYMMETRIC)]
        values = found
        if problem.inverse is not None:
            values = problem.sigma + 1 / found
            wrong = inverse_errors(problem.A, problem.sigma, found, rows) > WRONG
            faults.append((jnp.any(wrong), NO_INVERSE))
        if problem.scale is not None:
            rows = jax.vmap(problem.scale._mv)(rows)
        order = jnp.argsort(values)
        return *jax.tree.map(lambda leaf: leaf[order], (values, rows, residuals, tolerance)), faults

    def sides(self, vectors):
        return vectors, vectors
