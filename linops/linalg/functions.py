"""`linops.linalg.funm_multiply_krylov`, `expm_multiply`: functions of an operator times a vector, by Krylov spaces."""

import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.algebra.operator import Operator
from linops.arrays import as_array
from linops.budget import memory_budget
from linops.iterate import scope_of
from linops.linalg.growth import Growth, Products, differentiable
from linops.precision import is_complex, real_dtype
from linops.products import is_traced

BASIS_SHARE = 1 / 4  # of memory
MOST = 400  # vectors of a basis that is not restarted, as many products as SciPy makes at most
KINDS = {"general": False, "gen": False, "hermitian": True, "her": True}


def funm_multiply_krylov(
    f, A, b, *, assume_a="general", t=1.0, atol=0.0, rtol=1e-6, restart_every_m=None, max_restarts=20
):
    """f(t A) b, from f of the small matrix that A is on a Krylov space, on the device.

    Parameters
    ----------
    f : callable
        A function of matrices in JAX, as `jax.scipy.linalg.expm`: of a square array, a small one.
    A : Operator
        Square, on one Space.
    b : array or pytree
        A vector of shape (n,), a block (n, k), whose columns are taken one by one, or an element of the domain.
    assume_a : {"general", "gen", "hermitian", "her"}
        Hermitian: f is handed a Hermitian matrix, unless the space is restarted.
    t : float
        What A is multiplied by.
    atol, rtol : float
        The error, as it is estimated, is at most max(rtol |b|, atol), or 16 eps |f(t A) b| where that is more. What
        rounding in A moves the result by is not in it, unless it takes half of the digits.
    restart_every_m : int, optional
        How many vectors the basis has, which is then restarted up to `max_restarts` times. By default it is not
        restarted, and has up to 400, as far as n and a fourth of the memory let it.
    max_restarts : int
        How many bases at most.

    Returns
    -------
    jax.Array or pytree
        Like b, of the dtype of A; what did not converge is NaN within `jit`.

    Raises
    ------
    RuntimeError
        Where the error is not as small.
    TypeError, ValueError
        Where an argument is none of these; where f cannot be traced, or A is differentiated.

    Notes
    -----
    The result is ``|b| V f(t H) e1``, where V has the basis of the space of b, A b, A² b, ... and H = Vᴴ A V. The error
    is judged by how far the result moved since the last look, and by how much less that was than before: where
    convergence stalls nothing is believed. It is linear in b, and differentiable in it. Sources: Saad, SIAM J. Numer.
    Anal. 29 (1992); Afanasjew, Eiermann, Ernst and Güttel, Linear Algebra Appl. 429 (2008), for restarts.

    Examples
    --------
    >>> A = linops.Diagonal(np.array([1.0, 4.0, 9.0], np.float32))
    >>> def sqrtm(X):
    ...     values, Q = jnp.linalg.eigh(X)
    ...     return (Q * jnp.sqrt(values)) @ Q.conj().T
    >>> from linops.linalg import funm_multiply_krylov
    >>> funm_multiply_krylov(sqrtm, A, np.ones(3, np.float32), assume_a="her").round(4)
    Array([1., 2., 3.], dtype=float32)
    """
    _require(A, "funm_multiply_krylov")
    if assume_a not in KINDS:
        raise ValueError(f"funm_multiply_krylov got assume_a={assume_a!r}, expected one of {', '.join(KINDS)}")
    if not callable(f):
        raise TypeError(f"funm_multiply_krylov got f={f!r}, expected a function of matrices")
    capacity, most = _sizes(A, restart_every_m, max_restarts)
    plan = Growth(f, KINDS[assume_a], capacity, most)
    return _applied(plan, A, b, (t, atol, rtol), "funm_multiply_krylov")


def expm_multiply(A, B, start=None, stop=None, num=None, endpoint=None, traceA=None):
    """exp(A) B, or exp(t A) B at times of which the arguments are those of `numpy.linspace`, on the device.

    Parameters
    ----------
    A : Operator
        Square, on one Space; nothing is assumed of it but what it claims: of one that is Hermitian the small matrices
        are.
    B : array or pytree
        A vector (n,), a block (n, k), or an element of the domain.
    start, stop, num, endpoint : optional
        The times, of which there are 50 by default.
    traceA : optional
        Is not used: SciPy shifts A by a mean eigenvalue, which a Krylov space has no need of.

    Returns
    -------
    jax.Array or pytree
        Like B, with a leading axis of times where there are times.

    Raises
    ------
    RuntimeError
        Where the error of a step, as it is estimated, is more than 64 eps of what it starts from or comes to, after
        400 products: more times make shorter steps.
    TypeError, ValueError
        Where an argument is none of these, or A is differentiated.

    Notes
    -----
    From one time to the next goes a Krylov space, see `funm_multiply_krylov`.

    Examples
    --------
    >>> from linops.linalg import expm_multiply
    >>> A = linops.Matrix(np.array([[0.0, 1.0], [-1.0, 0.0]], np.float32))
    >>> expm_multiply(A, np.array([1.0, 0.0], np.float32), start=0, stop=np.pi, num=3).round(3) + 0
    Array([[ 1.,  0.],
           [ 0., -1.],
           [-1.,  0.]], dtype=float32)
    """
    _require(A, "expm_multiply")
    plan = Growth(jax.scipy.linalg.expm, bool(A.hermitian or (A.symmetric and not is_complex(A.dtype))), *_sizes(A))
    rtol = 64 * float(jnp.finfo(A.dtype).eps)

    def after(t, B):
        return _applied(plan, A, B, (t, 0.0, rtol), "expm_multiply")

    if start is None and stop is None and num is None and endpoint is None:
        return after(1.0, B)
    times, step = np.linspace(
        0 if start is None else start,
        1 if stop is None else stop,
        50 if num is None else operator.index(num),
        endpoint=True if endpoint is None else endpoint,
        retstep=True,
    )
    results = []
    for i, time in enumerate(times):
        results.append(after(time, B) if i == 0 else after(step, results[-1]))
    with scope_of(A).entered():
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


# What is asked for.


def _require(A, name):
    if not isinstance(A, Operator):
        raise TypeError(
            f"{name} got a {type(A).__name__}, expected an operator of linops: linops.Matrix makes one of a dense "
            f"array, and scipy.sparse.linalg.{name} takes what NumPy multiplies"
        )
    if A.domain.layout != A.codomain.layout:
        raise ValueError(f"{name} got {A!r}, which leads to another Space, expected one from a Space to itself")


def _sizes(A, restart_every_m=None, max_restarts=20):
    """How many vectors a basis has, and all of them."""
    if operator.index(max_restarts) < 1:
        raise ValueError(f"funm_multiply_krylov got max_restarts={max_restarts}, expected at least 1")
    if restart_every_m is None:
        held = int(memory_budget(BASIS_SHARE) // (A.shape[0] * A.dtype.itemsize))
        capacity = max(1, min(A.shape[0], MOST, held))
        return capacity, capacity
    if operator.index(restart_every_m) < 1:
        raise ValueError(f"funm_multiply_krylov got restart_every_m={restart_every_m}, expected at least 1")
    capacity = min(operator.index(restart_every_m), A.shape[0])
    return capacity, capacity * max_restarts


def _applied(plan, A, b, numbers, name):
    """f(t A) b for vectors, blocks and elements of the domain."""
    real = real_dtype(A.dtype)
    is_block = (
        _is_array(b) and jnp.ndim(b) == 2 and jnp.shape(b)[0] == A.shape[0] and A.domain.shapes != (jnp.shape(b),)
    )
    is_vector = not is_block and _is_array(b) and jnp.ndim(b) == 1
    linear = A.linearize()
    t = numbers[0]
    with scope_of(A).entered():
        columns = [A.domain.point(column, "b") for column in as_array(b).T] if is_block else [A.domain.point(b, "b")]
        t = jnp.asarray(t, A.dtype if jnp.iscomplexobj(t) else real)
        bounds = tuple(jnp.asarray(number, real) for number in numbers[1:])
        block = jax.tree.map(lambda *leaves: jnp.stack(leaves), *columns)
    traced = is_traced((A, block, t, bounds))
    product = Products(plan, marked=traced)
    if traced:
        y, errors = differentiable(product, linear, block, (t, *bounds))
    else:
        y, errors = product(linear, block, (t, *bounds))
        _require_converged(errors, A, name)
    with scope_of(A).entered():
        if is_block:
            return jax.vmap(A.domain.ravel, out_axes=1)(y)
        y = jax.tree.map(lambda leaf: leaf[0], y)
        return A.domain.ravel(y) if is_vector else y


def _is_array(b):
    return isinstance(b, np.ndarray | jax.Array)


def _require_converged(errors, A, name):
    error, tolerance, products = (np.asarray(a) for a in errors)
    if not np.all(error <= tolerance):
        raise RuntimeError(
            f"{name} of {A!r} did not converge: the error is about {error.max():.1e} after {products.max()} products, "
            f"expected at most {tolerance.min():.1e}; f may not be smooth on the spectrum, or takes a larger rtol, "
            "more restarts or, in time, shorter steps"
        )
