"""`linops.linalg.funm_multiply_krylov`, `expm_multiply`: functions of an operator times a vector, by Krylov spaces."""

import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.iterate import differentiated, scope_of
from linops.krylov import rows_of
from linops.linalg.growth import Growth, Problem, Products, differentiable, together
from linops.linalg.operands import as_columns, as_given, as_square, block_of, fitting, require_matrix
from linops.linalg.records import NO_FUNCTION, NOT_FINITE, NOT_SYMMETRIC, STOPPED, NoConvergence
from linops.precision import is_complex, real_dtype
from linops.products import is_traced
from linops.program.function import UNTRACEABLE, function_of_array

MOST = 400  # vectors of a basis that is not restarted, as many products as SciPy makes at most
_REMEDIES = {
    NOT_FINITE: "A @ b, or f on the spectrum of t A, may not be finite, or t A be too large: in time, shorter steps; "
    "or f is of the entries of a matrix, and not of the matrix",
    NO_FUNCTION: "f is to be a function of matrices, as jax.scipy.linalg.expm, and not of their entries, as jnp.exp; "
    "of any function g of numbers, where A is Hermitian with assume_a='her': w, Q = jnp.linalg.eigh(X); return "
    "(Q * g(w)) @ Q.conj().T, of an X that is Hermitian without restart_every_m",
    STOPPED: "give a monitor a larger max_matvecs",
    NOT_SYMMETRIC: "linops.check(A) shows what A claims and is not; of any matrix is assume_a='gen'",
}
_SLOW = "f may not be smooth on the spectrum, or takes a larger rtol, more restarts or, in time, shorter steps"
KINDS = {"general": False, "gen": False, "hermitian": True, "her": True}


def funm_multiply_krylov(
    f,
    A,
    b,
    *,
    assume_a="general",
    t=1.0,
    atol=0.0,
    rtol=1e-6,
    restart_every_m=None,
    max_restarts=20,
    space=None,
    full_output=False,
):
    """f(t A) b, from f of the small matrix that A is on a Krylov space, on the device.

    Parameters
    ----------
    f : callable
        A function of matrices in JAX, of a square array, a small one, and taken to be right: `jax.scipy.linalg.expm`
        of JAX 0.10 to 0.12 is off by up to 2e-8 of its norm beyond 5.4, for which there is `expm_multiply`.
    A : Operator, array of shape (n, n), or callable
        Square; a callable is linear on `space`, in JAX.
    b : array or pytree
        A vector of shape (n,), a block (n, k), whose columns have a Krylov space each, multiplied at once, or an
        element of the domain, or with a leading axis of k.
    assume_a : {"general", "gen", "hermitian", "her"}
        Hermitian: f is handed a Hermitian matrix, unless the space is restarted.
    t : float
        What A is multiplied by.
    atol, rtol : float
        The error, as it is estimated, is at most max(rtol ‖b‖, atol), or eps (16 + sqrt(n) / 4) ‖f(t A) b‖ where that
        is more: in float32 the default is mostly below it, and less than it is not estimated. To both is added what
        rounding in the small matrix moves the result by, unless it takes half of the digits: that is an error.
    restart_every_m : int, optional
        How many vectors the basis has, which is then restarted up to `max_restarts` times. By default it is not
        restarted, and has up to 400, as far as n and a fourth of the memory let it.
    max_restarts : int
        How many bases at most.
    space : Space, optional
        The Space of a callable A.
    full_output : bool
        Return a `Record` as well, whose residual norms are the errors as they are estimated, one for each column.

    Returns
    -------
    jax.Array or pytree
        Like b, of the dtype of A; what did not converge is NaN within `jit`.

    Raises
    ------
    NoConvergence
        A RuntimeError, where the error is not as small; it has the record.
    TypeError, ValueError
        Where an argument is none of these; where f cannot be traced, or A is differentiated.

    Notes
    -----
    The result is ``‖b‖ V f(t H) e1``, where V has the basis of the space of b, A b, A² b, ... and H = Vᴴ A V. The error
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
    A = as_square(A, space, "funm_multiply_krylov")
    require_matrix("funm_multiply_krylov", A)
    if assume_a not in KINDS:
        raise ValueError(f"funm_multiply_krylov got assume_a={assume_a!r}, expected one of {', '.join(KINDS)}")
    if not callable(f):
        raise TypeError(f"funm_multiply_krylov got f={f!r}, expected a function of matrices")
    plan = Growth(KINDS[assume_a], *_sizes(A, restart_every_m, max_restarts))
    b = as_given(A.domain, b, "b")
    problem = Problem(A.linearize(), _of_small_matrices(f, plan.most, A.dtype))
    y, record = _applied(plan, problem, block_of(A.domain, b, "b"), (t, atol, rtol), "funm_multiply_krylov")
    y = _like(A.domain, b, y)
    return (y, record) if full_output else y


def expm_multiply(A, B, start=None, stop=None, num=None, endpoint=None, traceA=None, *, space=None, full_output=False):
    """exp(A) B, or exp(t A) B at times of which the arguments are those of `numpy.linspace`, on the device.

    Parameters
    ----------
    A : Operator, array of shape (n, n), or callable
        Square; nothing is assumed of it but what it claims: of one that is Hermitian the small matrices are. A callable
        is linear on `space`, in JAX.
    B : array or pytree
        A vector (n,), a block (n, k), or an element of the domain, or with a leading axis of k.
    start, stop, num, endpoint : optional
        The times, of which there are 50 by default.
    traceA : optional
        Is not used: SciPy shifts A by a mean eigenvalue, which a Krylov space has no need of.
    space, full_output : optional
        As `funm_multiply_krylov` has them; the errors are those of steps from one time to the next.

    Returns
    -------
    jax.Array or pytree
        Like B, with a leading axis of times where there are times.

    Raises
    ------
    NoConvergence
        A RuntimeError, where the error of a step, as it is estimated, is more than 64 eps of what it starts from or
        comes to, after 400 products: more times make shorter steps.
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
    A = as_square(A, space, "expm_multiply")
    require_matrix("expm_multiply", A)
    is_complex_time = jnp.iscomplexobj(start) or jnp.iscomplexobj(stop)
    hermitian = bool(A.hermitian or (A.symmetric and not is_complex(A.dtype))) and not is_complex_time
    plan, rtol = Growth(hermitian, *_sizes(A)), 64 * float(jnp.finfo(A.dtype).eps)
    problem = Problem(A.linearize(), jax.tree_util.Partial(_expm))

    def after(t, block):
        return _applied(plan, problem, block, (t, 0.0, rtol), "expm_multiply")

    B = as_given(A.domain, B, "B")
    block = block_of(A.domain, B, "B")
    if start is None and stop is None and num is None and endpoint is None:
        y, record = after(1.0, block)
        y = _like(A.domain, B, y)
        return (y, record) if full_output else y
    times, step = np.linspace(
        0 if start is None else start,
        1 if stop is None else stop,
        50 if num is None else operator.index(num),
        endpoint=True if endpoint is None else endpoint,
        retstep=True,
    )
    parts = []
    for i, time in enumerate(times):
        block, record = after(time if i == 0 else step, block)
        parts.append((_like(A.domain, B, block), record))
    with scope_of(A).entered():
        y, record = together(parts, jnp.stack)
    return (y, record) if full_output else y


# What is asked for.


def _expm(X):
    """By squares of JAX's, which is right up to a norm of 3.9: beyond, JAX 0.10 to 0.12 halve once too few."""
    halvings = jnp.clip(jnp.ceil(jnp.log2(jnp.linalg.norm(X, 1) / 3.9)), 0, jnp.finfo(X.dtype).maxexp)
    small, halvings = jax.scipy.linalg.expm(X / 2.0**halvings, max_squarings=0), halvings.astype(jnp.int32)
    return jax.lax.fori_loop(0, halvings, lambda _, E: jnp.matmul(E, E, precision="highest"), small)


def _of_small_matrices(f, size, dtype):
    """A function of matrices of this size in JAX, as code and the arrays that it closes over."""
    try:
        return function_of_array(f, (size, size), dtype)
    except TypeError as error:
        if not isinstance(error.__cause__, UNTRACEABLE):
            raise
        raise TypeError(
            f"funm_multiply_krylov got f={f!r}, which asks JAX for NumPy arrays or Python values, as SciPy's functions "
            "of matrices do; expected a function of jax.numpy operations, of a matrix and not of its entries: w, Q = "
            "jnp.linalg.eigh(X); return (Q * g(w)) @ Q.conj().T for any function g, where A is Hermitian with "
            "assume_a='her'; jax.scipy.linalg has expm"
        ) from error


def _sizes(A, restart_every_m=None, max_restarts=20):
    """How many vectors a basis has, and all of them."""
    if operator.index(max_restarts) < 1:
        raise ValueError(f"funm_multiply_krylov got max_restarts={max_restarts}, expected at least 1")
    if restart_every_m is None:
        capacity = fitting([A.domain], min(A.shape[0], MOST), 1)
        return capacity, capacity
    if operator.index(restart_every_m) < 1:
        raise ValueError(f"funm_multiply_krylov got restart_every_m={restart_every_m}, expected at least 1")
    capacity = min(operator.index(restart_every_m), A.shape[0])
    return capacity, capacity * max_restarts


def _applied(plan, problem, block, numbers, name):
    """f(t A) b for the rows b of a tree, and the record."""
    A, real, t = problem.A, real_dtype(problem.A.dtype), numbers[0]
    with scope_of(A).entered():
        t = jnp.asarray(t, A.dtype if jnp.iscomplexobj(t) else real)
        numbers = t, *(jnp.asarray(number, real) for number in numbers[1:])
    traced = is_traced((problem, block, numbers))
    product = Products(plan, traced, at_once=fitting([A.domain] * (plan.capacity + 1), rows_of(block), 1))
    if traced:
        return differentiated(differentiable, product, problem, block, numbers)
    y, record = product(problem, block, numbers)
    if not np.all(record.converged):
        raise NoConvergence(
            f"{name} of {A!r} did not converge: {record.reason}; the error is about "
            f"{np.max(record.residual_norms):.1e} after {int(record.matvecs)} products, expected at most "
            f"{np.min(record.tolerance):.1e}; {_REMEDIES.get(int(np.max(record.code)), _SLOW)}",
            None,
            None,
            record,
        )
    return y, record


def _like(space, b, block):
    """A tree of vectors as the array, the element, or the tree of some that was given."""
    if isinstance(b, np.ndarray | jax.Array) and b.ndim in (1, 2) and b.shape[0] == space.size:
        return as_columns(space, block).reshape(b.shape)
    is_element = jnp.shape(jax.tree.leaves(b)[0]) == space.shapes[0]
    return jax.tree.map(lambda leaf: leaf[0], block) if is_element else block
