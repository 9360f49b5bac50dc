"""`linops.linalg.svds`: the largest singular values of an operator, by restarted Golub-Kahan bidiagonalization."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.algebra.operator import Operator
from linops.budget import memory_budget
from linops.iterate import compute, scope_of
from linops.linalg.bidiagonal import Glance, Result, Search, rounding, run
from linops.linalg.records import NOT_FINITE, NoConvergence, no_tangent
from linops.precision import real_dtype, say_uncertain
from linops.products import is_traced

BASIS_SHARE = 1 / 4  # of memory, for the bases
MOST_CYCLES = 300
DTYPES = ("float32", "float64", "complex64", "complex128")


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
    trees=False,
    full_output=False,
    key=None,
    callback=None,
):
    """The k largest singular values of A and their vectors, A v = s u and Aᴴ u = s v, on the device.

    Parameters
    ----------
    A : Operator
        Of shape (m, n), in float32, float64, complex64 or complex128.
    k : int
        How many, 1 <= k <= min(m, n).
    ncv : int, optional
        How many vectors each of the two bases has, k < ncv <= min(m, n), or all min(m, n); by default
        max(2 k + 1, k + 60), fewer where a fourth of the memory is less.
    tol : float
        Both residual norms, |A v - s u| and |Aᴴ u - s v|, are at most tol s, and with them the error of s. It is raised
        to what rounding leaves of products with A, see Notes; 0 asks for that.
    which : {"LM", "SM"}
        The largest, or the smallest. The smallest take all min(m, n) steps, and are refused where the memory does not
        hold as many vectors; ``linops.linalg.eigsh`` of an inverse finds them in few.
    v0 : array or pytree, optional
        The start, of size min(m, n): of the domain where m >= n, else of the codomain.
    maxiter : int, optional
        How often the bases may be filled, 300 times by default.
    return_singular_vectors : {True, False, "u", "vh"}
        As SciPy has it: with "u", and m <= n, `vh` is None; with "vh", and m > n, `u` is None.
    trees : bool
        The vectors as pytrees of the codomain (u) and domain (v) with a leading axis of k, of which leaves on several
        devices stay there; v, not its conjugate.
    full_output : bool
        Return the `Record` as well.
    key : JAX key, optional
        Of the random start and of what is drawn where the space is exhausted.
    callback : callable, optional
        ``callback(record)`` is called between chunks of steps with the estimates of that moment, and stops the run
        where it returns True. It changes no number, and is not called within `jit`.

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
    Residuals are computed anew from products with what is returned. The floor of their tolerance is eps |A|
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
    _require(A, which, return_singular_vectors)
    k = _count(A, k)
    wide = A.shape[0] < A.shape[1]
    linear = A.linearize()
    tall = linear.H if wide else linear  # the smaller space on the right: what it is exhausted of, all is known of
    search = Search(
        wanted=k,
        found=min(A.shape) if which == "SM" else k,
        capacity=_capacity(A, k, ncv, which),
        in_place=_on_one_device(A),
    )
    operands = _operands(tall, v0, tol, maxiter, key)
    traced = is_traced((tall, operands))
    result = Result(search, wide, trees, marked=traced)
    if traced and return_singular_vectors is False:
        u, (s, record), v = None, _values(result, tall, operands), None
    elif traced:
        u, s, v, record = _triplets(result, tall, operands)
    else:
        u, s, v, record = run(result, tall, operands, None if callback is None else _watch(tall, search, callback))
        _require_converged(A, u, s, v, record, trees)
    if return_singular_vectors is False:
        return (s, record) if full_output else s
    u = None if return_singular_vectors == "vh" and A.shape[0] > A.shape[1] else u
    v = None if return_singular_vectors == "u" and A.shape[0] <= A.shape[1] else v
    return (u, s, v, record) if full_output else (u, s, v)


# What is asked for.


def _require(A, which, return_singular_vectors):
    if not isinstance(A, Operator):
        raise TypeError(
            f"svds got a {type(A).__name__}, expected an operator of linops: linops.Matrix makes one of a dense array, "
            "and scipy.sparse.linalg.svds takes what NumPy multiplies"
        )
    if str(A.dtype) not in DTYPES:
        raise TypeError(f"svds got an operator in {A.dtype}, expected one in {', '.join(DTYPES)}: convert its point")
    if which not in ("LM", "SM"):
        raise ValueError(f"svds got which={which!r}, expected 'LM', the largest singular values, or 'SM'")
    if return_singular_vectors not in (True, False, "u", "vh"):
        raise ValueError(
            f"svds got return_singular_vectors={return_singular_vectors!r}, expected True, False, 'u' or 'vh'"
        )


def _count(A, k):
    try:
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"svds got k={k!r}, expected an integer, by which shapes are made: static within jit") from None
    if not 1 <= k <= min(A.shape):
        raise ValueError(f"svds got k={k} for {A!r}, expected 1 <= k <= min(m, n) = {min(A.shape)}")
    return k


def _capacity(A, k, ncv, which):
    """How many vectors the bases have."""
    least, all_of_them = min(k + 1, min(A.shape)), min(A.shape)
    held = int(memory_budget(BASIS_SHARE) // (sum(A.shape) * A.dtype.itemsize)) - 1
    if which == "SM" and held < all_of_them:
        raise ValueError(
            f"svds got which='SM' for {A!r}, whose smallest singular values take all {all_of_them} steps, and memory "
            f"holds the vectors of {held}; expected which='LM': the smallest ones are 1 / those of an inverse, or the "
            "square roots of eigenvalues of A.H @ A next to sigma=0"
        )
    if which == "SM":
        return all_of_them
    if ncv is None:
        return min(all_of_them, max(least, min(held, max(2 * k + 1, k + 60))))
    if not least <= operator.index(ncv) <= all_of_them:
        raise ValueError(f"svds got ncv={ncv} with k={k} for {A!r}, expected {least} <= ncv <= {all_of_them}")
    return operator.index(ncv)


def _on_one_device(A):
    """Whether the pieces of a leaf can be rotated in place: those of a leaf on a mesh would be gathered."""
    leaves = [leaf for leaf in jax.tree.leaves(A) if isinstance(leaf, jax.Array)]
    if is_traced(leaves):
        return jax.device_count() == 1
    return all(len(leaf.sharding.device_set) == 1 for leaf in leaves)


def _operands(tall, v0, tol, maxiter, key):
    """What a run starts from, as arrays."""
    real = real_dtype(tall.dtype)
    if isinstance(tol, float | int) and not 0 <= tol < 1:
        raise ValueError(f"svds got tol={tol}, expected 0 <= tol < 1, relative to each singular value")
    if isinstance(maxiter, int) and maxiter < 1:
        raise ValueError(f"svds got maxiter={maxiter}, expected at least 1, how often the bases are filled")
    key = jax.random.key(0) if key is None else key
    maxiter = MOST_CYCLES if maxiter is None else maxiter
    with scope_of(tall).entered():
        v = None if v0 is None else tall.domain.point(v0, "v0")
        return v, key, jnp.asarray(tol, real), jnp.asarray(maxiter, jnp.int32)


# Derivatives.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values(result, A, operands):
    """The singular values, which have a derivative, and the record."""
    _, values, _, record = run(result, A, operands)
    return values, record


@_values.defjvp
def _derivative_of_values(result, primals, tangents):
    """Re(uᴴ dA v) of each value, where A itself does not act on u and v."""
    A, operands = primals
    u, values, v, record = run(dataclasses.replace(result, trees=True), A, operands)
    left, right = (v, u) if result.wide else (u, v)

    def quotients(A):
        return jax.lax.map(lambda uv: A.codomain.inner(uv[0], A._mv(uv[1])).real, (left, right)).astype(values.dtype)

    _, change = jax.jvp(quotients, (A,), (tangents[0],))
    return (values, record), (change, jax.tree.map(no_tangent, record))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _triplets(result, A, operands):
    """All of it, which is not differentiated."""
    return run(result, A, operands)


@_triplets.defjvp
def _no_derivative_of_triplets(result, primals, tangents):
    raise TypeError(
        "svds was differentiated with singular vectors, which have no derivative here: those of close values turn into "
        "one another; expected return_singular_vectors=False, with which the values have one"
    )


# What is said outside of jit.


def _watch(A, search, callback):
    """What looks at a state from outside, and says whether to stop."""
    return lambda state: callback(compute(Glance(search), A, state)) is True


def _require_converged(A, u, s, v, record, trees):
    if record.code == NOT_FINITE:
        raise FloatingPointError(
            f"a product with {A!r} or its adjoint was NaN or infinite in svds, expected finite numbers: multiply by a "
            "vector, A @ v and A.H @ u, to see where they come from"
        )
    known = np.asarray(record.converged)
    if not known.all():
        places = np.flatnonzero(known)
        with scope_of(A).entered():
            left = jax.tree.map(lambda leaf: leaf[places] if trees else leaf[:, places], u)
            found = s[places], (left, jax.tree.map(lambda leaf: leaf[places], v))
        raise NoConvergence(
            f"{known.sum()} of {known.size} singular values of {A!r} converged: {record.reason}; they are in "
            f".eigenvalues, their vectors in .eigenvectors. Expected a larger maxiter, ncv or tol.\n{record!r}",
            *found,
            record,
        )
    values = np.asarray(s)
    small = values < rounding(A) * values.max()
    if small.any():
        say_uncertain(f"{small.sum()} of {small.size} singular values of {A!r}", s.dtype)
