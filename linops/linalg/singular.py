"""`linops.linalg.svds`: the largest singular values of an operator, by restarted Golub-Kahan bidiagonalization."""

import functools

import jax
import numpy as np

from linops.arrays import as_key
from linops.krylov import after, seed_of
from linops.linalg.bidiagonal import DIGITS, Search
from linops.linalg.operands import as_columns, as_operator, capacity, fitting, is_on_one_device, rounding, start
from linops.linalg.problems import Problem
from linops.linalg.runs import Kind, Outcome, counts, found
from linops.precision import say_uncertain
from linops.products import is_traced

MORE = 60  # vectors than triplets, in bases by default


def svds(
    A,
    k=6,
    ncv=None,
    tol=0,
    which="LM",
    v0=None,
    maxiter=None,
    return_singular_vectors=True,
    *,
    key=None,
    space=None,
    trees=False,
    full_output=False,
    callback=None,
    save=None,
):
    """The k largest singular values of A and their vectors, A v = s u and Aᴴ u = s v, on the device.

    Parameters
    ----------
    A : Operator, array of shape (m, n), or callable
        In float32, float64, complex64 or complex128; a callable is linear on `space`, in JAX.
    k : int
        How many, 1 <= k <= min(m, n).
    ncv : int, optional
        How many vectors each of the two bases has, k < ncv <= min(m, n), or all min(m, n); by default
        max(2 k + 1, k + 60) where a fourth of the memory holds them.
    tol : float
        Both residual norms, ‖A v - s u‖ and ‖Aᴴ u - s v‖, are at most tol s, and with them the error of s. It is raised
        to what rounding leaves of products with A, see Notes; 0 asks for that.
    which : {"LM", "SM"}
        The largest, or the smallest. The smallest take all min(m, n) steps, and are refused where the memory does not
        hold as many vectors; ``linops.linalg.eigsh`` of an inverse finds them in few.
    v0 : array or pytree, optional
        The start, of size min(m, n): of the domain where m >= n, else of the codomain.
    maxiter : int, optional
        How often the bases may be filled; 10 min(m, n) by default.
    return_singular_vectors : {True, False, "u", "vh"}
        As SciPy has it: with "u", and m <= n, `vh` is None; with "vh", and m > n, `u` is None.
    key : JAX key, optional
        Of all that is random; `jax.random.key(0)` by default.
    space : Space, optional
        The Space of a callable A.
    trees : bool
        The vectors as pytrees of the codomain (u) and domain (v) with a leading axis of k, of which leaves on several
        devices stay there; v, not its conjugate.
    full_output : bool
        Return a `Record` as well.
    callback : callable, optional
        `callback(record)` is called between chunks of steps with what is known; True stops. It changes no number.
    save : path, or (path, seconds), optional
        A file from which a run that was stopped goes on, as `eigsh` has it.

    Returns
    -------
    u, s, vh : jax.Array
        Of shapes (m, k), (k,) and (k, n), s ascending; s alone without vectors; last the record with full_output.

    Raises
    ------
    NoConvergence
        Where not all converged: with those that did, and the record. Within `jit` what did not is NaN.
    FloatingPointError
        Where a product with A was NaN or infinite.
    ValueError, TypeError
        Where an argument is none of these; and where singular vectors are differentiated.

    Warns
    -----
    PrecisionWarning
        Where a value found is so small that rounding may have made it up.

    Notes
    -----
    Residuals are computed anew from products with what is returned. The floor of their tolerance is eps ‖A‖
    (8 + sqrt(max(m, n)) / 4), which rounding in products of sums of random sign comes to. After all have converged,
    bases from a random start, orthogonal to what was found, look for values of higher multiplicity.

    Singular values are differentiable, by Re(uᴴ dA v). Sources: Golub and Kahan, J. SIAM Numer. Anal. 2 (1965); Baglama
    and Reichel, SIAM J. Sci. Comput. 27 (2005).

    Examples
    --------
    >>> from linops.linalg import svds
    >>> J = linops.Jacobian(lambda x: jnp.outer(x, x), np.array([1.0, 2.0], np.float32))
    >>> svds(J, k=2, return_singular_vectors=False)
    Array([3.162..., 4.472...], dtype=float32)
    """
    A = as_operator(A, space, "svds")
    _require(which, return_singular_vectors)
    k, ncv, maxiter, tol = counts(A, k, ncv, maxiter, tol, _Triplets.kind)
    wide = A.shape[0] < A.shape[1]
    tall = A.linearize().H if wide else A.linearize()  # the smaller space is exhausted: then all is known
    seed = seed_of(as_key(jax.random.key(0) if key is None else key, "svds"))
    search = Search(
        wanted=k,
        found=min(A.shape) if which == "SM" else k,
        capacity=_all_of(A) if which == "SM" else capacity([A.domain, A.codomain], k, ncv, max(2 * k + 1, k + MORE)),
        maxiter=maxiter,
        in_place=is_on_one_device(A),
    )
    shape = functools.partial(_shaped, A, wide, trees)
    with_vectors = return_singular_vectors is not False
    operands = _start(tall, v0, seed), after(seed), tol
    s, vectors, record = found(_Triplets(search), A, Problem(tall), operands, with_vectors, shape, callback, save)
    _say_what_is_rounding(A, s)
    if not with_vectors:
        return (s, record) if full_output else s
    u, v = vectors
    u = None if return_singular_vectors == "vh" and A.shape[0] > A.shape[1] else u
    v = None if return_singular_vectors == "u" and A.shape[0] <= A.shape[1] else v
    return (u, s, v, record) if full_output else (u, s, v)


# What is asked for.


def _require(which, return_singular_vectors):
    if which not in ("LM", "SM"):
        raise ValueError(f"svds got which={which!r}, expected 'LM', the largest singular values, or 'SM'")
    if return_singular_vectors not in (True, False, "u", "vh"):
        raise ValueError(
            f"svds got return_singular_vectors={return_singular_vectors!r}, expected True, False, 'u' or 'vh'"
        )


def _all_of(A):
    """How many vectors span the smaller space, where memory holds them."""
    n = min(A.shape)
    held = fitting([A.domain, A.codomain], n, 0)
    if held < n:
        raise ValueError(
            f"svds got which='SM' for {A!r}, whose smallest singular values take all {n} steps, and memory "
            f"holds the vectors of {held}; expected which='LM': the smallest ones are 1 / those of an inverse, or the "
            "square roots of eigenvalues of A.H @ A next to sigma=0"
        )
    return n


def _start(tall, v0, seed):
    """One vector of the smaller space."""
    if v0 is not None:
        return tall.domain.point(v0, "v0")
    return jax.tree.map(lambda leaf: leaf[0], start(tall.H @ tall, None, seed))


# What it comes to.


class _Triplets(Outcome):
    """Singular values with their vectors, left and right ones of the tall operator."""

    kind = Kind("svds", "singular value", "return_singular_vectors=False", with_adjoint=True)


def _shaped(A, wide, trees, vectors):
    """The vectors as they are returned."""
    u, v = vectors[::-1] if wide else vectors
    return (u, v) if trees else (as_columns(A.codomain, u), as_columns(A.domain, v).conj().T)


def _say_what_is_rounding(A, s):
    if is_traced((A, s)):
        return
    values = np.asarray(s)
    small = values < rounding(A, DIGITS) * values.max()
    if small.any():
        say_uncertain(f"{small.sum()} of {small.size} singular values of {A!r}", s.dtype)
