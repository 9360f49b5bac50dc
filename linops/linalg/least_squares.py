"""`linops.linalg.lsmr`: least-squares problems, by minimal gradients, on the device."""

import dataclasses
import functools
import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.iterate import compute
from linops.krylov import rows_of
from linops.linalg.damped import from_one_space
from linops.linalg.gradients import Damped, MinimalGradients, Rules
from linops.linalg.operands import as_operator, require_dtype
from linops.linalg.solves import either, solve
from linops.linalg.systems import Right, limits, refuse_show, require_not_negative
from linops.precision import real_dtype
from linops.products import is_traced
from linops.program.settings import full_precision
from linops.space import Space

DEFAULTS = {"atol": 1e-6, "btol": 1e-6, "conlim": 1e8}


def lsmr(
    A,
    b,
    damp=0.0,
    atol=1e-6,
    btol=1e-6,
    conlim=1e8,
    maxiter=None,
    show=False,
    x0=None,
    *,
    window=0,
    space=None,
    full_output=False,
):
    """Minimize ‖b - A x‖² + damp² ‖x - x0‖² over x, of an A of any shape, on the device.

    SciPy's `lsmr`, jittable and differentiable, for one right-hand side or many in one loop, and for many damps; of
    all solutions it is the one next to x0, or to zero.

    Parameters
    ----------
    A : Operator, array of shape (m, n), or callable
        A callable is linear on `space`, in JAX.
    b : array or pytree
        A vector of shape (m,), a block (m, k), an element of the codomain, or a tree of k of them on a leading axis.
    damp : float, or sequence of shape (k,)
        Not negative. A sequence, for one right-hand side, is solved for from one Krylov space: as many products as for
        the smallest, and some to check.
    atol, btol : float
        x is called a solution where ‖b - A x‖ <= btol ‖b‖ + atol min(‖A‖ ‖x‖, ‖b‖) (istop 1), or of least squares where
        ‖Aᴴ (b - A x)‖ <= atol ‖A‖ ‖b - A x‖ (istop 2); with damp those of the matrix [A; damp I]. 1e-6 by default.
    conlim : float
        Stop where the condition number is estimated to be as large (istop 3); 1e8 by default, 0 for no limit.
    maxiter : int, optional
        How many iterations; min(m, n) by default.
    show : False
        Refused otherwise: `linops.monitor(A)` shows how far a solver is.
    x0 : array or pytree, optional
        Where to begin, like x; zero by default.
    window : int
        How many of the last vectors v each new one is orthogonalized against; they are held in memory. It makes up for
        what rounding does, in fewer iterations where A is ill-conditioned; min(m, n) is all.
    space : Space, optional
        The Space of a callable A.
    full_output : bool
        Return a `Record` as well.

    Returns
    -------
    x : jax.Array or pytree
        Of shape (n,) or (n, k) where b is an array, else a tree of the domain, with a leading axis where b has one; for
        a sequence of damps (n, k), or a tree with a leading axis of k.
    istop : int
        0: x0, or zero, is a solution. 1: x solves A x = b, 2: it is of least squares, as above. 3: `conlim` was
        reached. 4, 5, 6: as 1, 2, 3, with what rounding leaves in place of the tolerances. 7: `maxiter` was reached.
        8: rounding keeps residuals above the tolerances. This and what follows has shape (k,) where x has k columns.
    itn : int
        The number of iterations.
    normr, normar : float
        ‖b - A x‖ and ‖Aᴴ (b - A x)‖, with damp those of [A; damp I], computed anew.
    norma, conda : float
        Estimates of the Frobenius norm and of the condition number of A, with damp those of [A; damp I].
    normx : float
        ‖x‖.
    record : Record
        With `full_output`. Its residual norms are, with istop 1 and 4, `normr`, else `normar`.

    Raises
    ------
    FloatingPointError
        Where b, a product, or the solution has NaN or infinite numbers.
    TypeError, ValueError
        Where an argument is none of these.

    Notes
    -----
    Where SciPy's first rule lets the norm of x count in full, an x that went astray certifies itself. Before x is
    called a solution the norms are computed anew, with one more product with A and with its adjoint, as they are every
    50 iterations; where they are not what they were taken for, the iteration begins again with the residual. Within
    `jit` what did not converge is NaN, unless the record is asked for.

    x, normr and normx are differentiable in A, b, damp and x0, for an A of full rank or a damp that is not zero, by
    solves with A and with its adjoint. What rank is missing makes them NaN: all in reverse mode, and in forward mode
    but some along directions that keep the rank. Sources: Fong and Saunders, SIAM J. Sci. Comput. 33 (2011); Golub and
    Pereyra, SIAM J. Numer. Anal. 10 (1973), for the derivative.

    Examples
    --------
    >>> from linops.linalg import lsmr
    >>> A = linops.Matrix(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], np.float32))
    >>> x, istop = lsmr(A, np.array([1.0, 0.0, 0.0], np.float32))[:2]
    >>> np.allclose(x, [2 / 3, -1 / 3], atol=1e-5), istop
    (True, 2)
    """
    A = as_operator(A, space, "lsmr").linearize()
    require_dtype("lsmr", A)
    refuse_show("lsmr", show)
    atol, btol, conlim = _numbers(atol, btol, conlim)
    bounds = limits("lsmr", A, btol, 0.0, maxiter, min(A.shape))
    solver, right = MinimalGradients(_window(A, window)), Right.of(A.codomain, b, "lsmr")
    start, reference, spent = right.beginning(A.domain, x0, "lsmr"), None, (0, 0)
    damps, is_sequence = _damps(A, right, damp)
    if start is not None:
        reference = compute(_Norms(A.codomain), A, right.rows)
        right = right._replace(rows=compute(_residuals, A, right.rows, start))
    rules, guesses = _rules(A, right, atol, conlim, reference), None
    if is_sequence:
        right, guesses, rules, spent = from_one_space(A, solver.window, right, damps, bounds, rules)
    if damps is not None:
        right = right._replace(rows=(right.rows, _zeros(A.domain, len(damps))))
    x, record, found = solve(
        "lsmr", solver, (A, None), right, guesses, bounds, damps, rules, with_adjoint=True, marked=not full_output
    )
    found, normx = _measured(solver, A, right, x, damps, found, start)
    if start is not None:
        with A.domain.scope():
            x = jax.tree.map(jnp.add, x, start)
    record, found = map(right.counted, (record.after(*spent), found))
    normx, rest = right.counted(normx), (found.istop, record.iterations, *found[1:])
    results = right.shaped(A.domain, x), *map(_as_number, (*rest, normx))
    return (*results, record) if full_output else results


# What is asked for.


def _numbers(atol, btol, conlim):
    """With SciPy's defaults for None."""
    given = {"atol": atol, "btol": btol, "conlim": conlim}
    given = {name: DEFAULTS[name] if value is None else value for name, value in given.items()}
    require_not_negative("lsmr", **given)
    return given.values()


def _window(A, window):
    try:
        window = operator.index(window)
    except TypeError:
        window = -1
    if window < 0:
        raise ValueError(f"lsmr got window={window!r}, expected how many vectors, an integer >= 0, static in jit")
    return min(window, *A.shape)


def _damps(A, right, damp):
    """Of each right-hand side, None for nothing; and whether they are a sequence."""
    if isinstance(damp, numbers.Real) and damp == 0:
        return None, False
    require = damp if is_traced(damp) else np.asarray(damp)
    is_real = jnp.issubdtype(require.dtype, jnp.number) and not jnp.iscomplexobj(require)
    if jnp.ndim(require) > 1 or not is_real or (not is_traced(damp) and not (require >= 0).all()):
        raise ValueError(f"lsmr got damp={damp!r}, expected a number >= 0, or a sequence of them")
    with A.domain.scope():
        damps = jnp.asarray(damp, real_dtype(A.dtype))
        if damps.ndim == 0:
            return jnp.full(rows_of(right.rows), damps), False
    if right.is_block or len(damps) == 0:
        raise ValueError(
            f"lsmr got {len(damps)} damps with b of {rows_of(right.rows)} columns, expected some damps with one "
            "right-hand side, or one damp: jax.vmap has all pairs"
        )
    return damps, True


def _rules(A, right, atol, conlim, reference):
    with A.domain.scope():
        atol, conlim = (jnp.full(rows_of(right.rows), value, real_dtype(A.dtype)) for value in (atol, conlim))
    return Rules(atol, conlim, reference)


def _zeros(space, count):
    return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), space.struct)


# What is returned.


@dataclasses.dataclass(frozen=True)
class _Norms:
    """Of rows; where one is zero its derivative is taken to be zero."""

    space: Space

    def __call__(self, A, rows):
        norms = jax.lax.stop_gradient(jax.vmap(self.space.norm)(rows))
        safe = either(norms > 0, rows, jax.tree.map(jnp.ones_like, rows))
        return jnp.where(norms > 0, jax.vmap(self.space.norm)(safe), 0)


def _residuals(A, rows, x):
    return jax.vmap(lambda b, x: jax.tree.map(jnp.subtract, b, A._mv(x)))(rows, x)


def _measured(solver, A, right, x, damps, found, start):
    """The norm of x, and in a jit that of the residual, as functions that have derivatives."""
    whole = x
    if start is not None:
        whole = jax.tree.map(jnp.add, x, start)
    normx = compute(_Norms(A.domain), A, whole)
    if is_traced((A, x)):
        system = A if damps is None else Damped(A, damps[0])
        with full_precision():
            images = jax.vmap(functools.partial(solver.product, A))(x, damps)
        residuals = jax.tree.map(jnp.subtract, right.rows, images)
        found = found._replace(normr=_Norms(system.codomain)(A, residuals))
    return found, normx


def _as_number(a):
    return a if is_traced(a) or np.ndim(a) else np.asarray(a).item()
