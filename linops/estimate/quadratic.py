"""The quadratic form of a function of a Hermitian operator, between brackets."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops.arrays import brief
from linops.counted import allowed, told
from linops.estimate.quadrature import (
    Rule,
    bracket,
    differentiable,
    expanded,
    integral,
    krylov_space,
    off_by_rounding,
    rule_and_changes,
    truncation,
)
from linops.estimate.result import Estimate
from linops.estimate.runs import DEFAULT_MATVECS, operand, require_hermitian, require_whole
from linops.iterate import compute, differentiated
from linops.linalg.operands import require_matrix
from linops.precision import real_dtype
from linops.products import is_traced
from linops.program.function import function_of_array

STRIDE = 8  # steps between two looks at the bracket


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("value", "standard_error", "matvecs", "lower", "upper"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, repr=False)
class Bracketed(Estimate):
    """An estimate that is not random, between `lower` and `upper`, from which it is `standard_error` at most."""

    lower: jax.Array
    upper: jax.Array


def quadratic_form(f, A, b, *, bounds=(None, None), rtol=None, num_matvecs=None):
    """bᴴ f(A) b for a Hermitian A, a function f of real numbers in JAX, elementwise, and a vector or element b.

    By Lanczos, with one product a step: the Gauss rule that the Krylov space of b gives, and the Gauss-Radau rules with
    one more node, at each of the `bounds` of the spectrum (Golub and Meurant 2010). It ends when the distance of the
    rules is at most `rtol` of the value, by default some roundings, or after `num_matvecs` products, 100 by default.

    Where the derivatives of f have one sign each on the spectrum, as those of log, exp, 1/x and powers have, and the
    bounds are true, bᴴ f(A) b lies between the rules, `lower` and `upper`. Without both the outermost Ritz values take
    their place, further by the bounds of their residuals, and the bracket is an estimate of the truncation error, which
    is no less than what the last changes of the value suggest, of the second half of the steps and of the fourth before
    it: the rest of a series that converges like them, infinite where they grow. Bounds that a Ritz value lies beyond
    are false, and the bracket is NaN.

    It can be a part of a jitted function, and of one that is differentiated, by A, b and what f closes over: with the
    Krylov space held fixed, which takes once more as many products. A second derivative is by what f closes over alone.
    A that does not claim to be Hermitian, or a b that does not fit, is a `ValueError`. An f that has no finite value
    within the spectrum, as log of an A that is not positive definite, gives NaN.

    >>> A = linops.Diagonal(jnp.linspace(1.0, 2.0, 300))
    >>> found = linops.estimate.quadratic_form(jnp.log, A, jnp.ones(300), bounds=(1.0, 2.0))
    >>> bool(found.lower - 1e-3 <= jnp.sum(jnp.log(A.entries)) <= found.upper + 1e-3), int(found.matvecs) < 20
    (True, True)
    """
    require_hermitian(A, "quadratic_form")
    A, width = operand(A, "quadratic_form")
    require_matrix("quadratic_form", A)
    f = _elementwise(f, A)
    most = DEFAULT_MATVECS if num_matvecs is None else require_whole("quadratic_form", num_matvecs)
    b = A.domain.point(b, "b")
    eps = float(jnp.finfo(A.domain.dtype).eps)
    rtol = 10 * eps if rtol is None else rtol
    if not is_traced(rtol) and not rtol > 0:
        raise ValueError(f"quadratic_form got rtol={rtol!r}, expected the share of the value that its bracket may be")
    most = require_whole("quadratic_form", allowed(A._listeners(), min(most, A.shape[1])))
    found = differentiated(compute, _Form(most, width), (A, f), b, require_bounds(bounds), rtol)
    told(A._listeners(), found.matvecs)
    return found


def _elementwise(f, A):
    """A function as code and data, of arrays of any shape; refused where it does not make a number of each entry."""
    dtype = real_dtype(A.domain.dtype)
    with A.domain.scope():
        for shape in (2, 3), (1,):  # the first is not square: no function of matrices takes it
            like, cause = jax.ShapeDtypeStruct(shape, dtype), None
            try:
                made = jax.tree.leaves(jax.eval_shape(lambda t: f(t), like))
            except (TypeError, ValueError) as error:
                cause, does = error, f"raises {type(error).__name__}: {str(error).splitlines()[0].rstrip('.')}"
            else:
                if len(made) == 1 and made[0].shape == shape and jnp.issubdtype(made[0].dtype, jnp.inexact):
                    continue
                does = f"makes {brief(list(map(_type, made)))} of {_type(like)}"
            raise TypeError(
                f"quadratic_form got f={f!r}, which {does}; expected a function of real numbers in JAX, elementwise on "
                "an array of any shape, as jnp.exp, and not of matrices, as jax.scipy.linalg.expm"
            ) from cause
    return jax.tree_util.Partial(_each, function_of_array(f, (1,), dtype))


def _each(f, t):
    """A function of an array of one number at each of the entries of another."""
    return jax.vmap(lambda entry: f(entry[None])[0])(t.ravel()).reshape(t.shape)


def _type(array):
    return f"{array.dtype}{list(array.shape)}"


def require_bounds(bounds):
    """The two bounds of a spectrum, as data."""
    low, high = bounds
    if not is_traced(bounds) and low is not None and high is not None and not low <= high:
        raise ValueError(f"got bounds={bounds!r} of the spectrum, expected the lower one first, each a number or None")
    return low, high


class _State(NamedTuple):
    krylov: object
    rule: Rule
    value: jax.Array
    brackets: jax.Array
    left: jax.Array


@dataclasses.dataclass(frozen=True)
class _Form:
    most: int
    width: int

    def __call__(self, pair, b, bounds, rtol):
        (A, f), (fixed, vector) = pair, jax.lax.stop_gradient((pair[0], b))
        begun = krylov_space(fixed, vector, self.most, jnp.zeros(2, jnp.uint32))
        like = jax.eval_shape(lambda begun: self.step(fixed, f, bounds, begun), begun)
        state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)._replace(
            krylov=begun, brackets=jnp.full_like(like.brackets, jnp.inf)
        )

        def goes_on(state):
            error = jnp.maximum(jnp.max(jnp.abs(state.brackets - state.value)), state.left)
            return (state.krylov.size < self.most) & ~(error <= rtol * jnp.abs(state.value))

        state = jax.lax.while_loop(goes_on, lambda state: self.step(fixed, f, bounds, state.krylov), state)
        square = A.domain.norm(vector) ** 2
        value = differentiable(f, A, b, state.krylov.basis, state.rule, self.width)
        rounding = sum(jax.lax.stop_gradient(off_by_rounding(A, f, state.rule)))
        left = jnp.where(square > 0, jnp.maximum(state.left, rounding), 0)  # which may be infinite
        rules = square * jnp.append(state.brackets, state.value + jnp.stack([-left, left]))
        error = jnp.max(jnp.abs(rules - jax.lax.stop_gradient(value)))
        return Bracketed(value, error, state.krylov.size, jnp.min(rules), jnp.max(rules))

    def step(self, A, f, bounds, krylov):
        krylov = expanded(A, krylov, STRIDE)
        rule, changes = rule_and_changes(A, f, krylov, all(bound is not None for bound in bounds))
        found = integral(f, rule.nodes, rule.weights), bracket(A, f, rule, bounds), truncation(changes)
        return _State(krylov, rule, *jax.lax.stop_gradient(found))  # what f closes over has no derivative here
