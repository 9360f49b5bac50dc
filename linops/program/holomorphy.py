"""Complex functions: which derivatives are complex-linear, and the realification of those that are not.

The derivative of f at x is always linear over the reals. Linear over the complex numbers, and so a complex matrix, it
is in two cases:

- f is holomorphic, C^n -> C^m. This is decided on the graph of its derivative: all that depends on the tangent is
  complex, and nothing is conjugated. The decision does not depend on numbers, and errs only toward "no".
- f maps R^n -> C^m: then the derivative extends to complex vectors as A (u + iv) = A u + i A v.

In all other cases (C^n -> R^m, a conjugation or an absolute value inside, leaves of both kinds) f is realified: taken
as a function of the pair (Re x, Im x), with the pair (Re f, Im f) for its value where that is complex. The operator
then is real, and its vectors are [Re, Im]. Leaves that are real have no imaginary part.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from linops.precision import is_complex
from linops.program.function import Function
from linops.program.jaxpr.linearity import is_complex_linear
from linops.program.jaxpr.rules import read
from linops.program.missing import MissingRule, differentiating
from linops.realify import OnPairs, any_complex, realified_space
from linops.space import pair_of


def trace_linear(f, x, domain, args, what="f", realify=False, through=None, batch=None, placed=True):
    """Trace f at x, of the Space `domain`; realified where its derivative is not complex-linear, or as asked.

    `through(f)` is traced instead of f where it is given. With a `batch`, a tree of types, f is f(x, batch, *args).
    If not `placed`, x is taken to lie on one device.

    Returns the Function, the point in its domain, and `domain` if f is realified, else None.
    """
    trace = functools.partial(Function.trace, f, args=args, what=what, batch=batch)
    function = trace(domain, through=through, like=x if placed else None)
    values = function.codomain
    if not realify and _is_complex_linear(function, domain, values, batch):
        return function, x, None
    if any_complex(domain):
        function = trace(
            realified_space(domain), through=After(OnPairs(domain), through), like=pair_of(x) if placed else None
        )
    elif any_complex(values):
        function = trace(domain, through=After(OnPairs(None), through), like=x if placed else None)
    if any_complex(values):
        function = function.replaced(codomain=dataclasses.replace(function.codomain, paired=values))
    with domain.scope():
        return (function, pair_of(x), domain) if any_complex(domain) else (function, x, None)


def _is_complex_linear(function, domain, values, batch):
    if batch is not None and any_complex(domain):
        function = function.of_batch(jnp.zeros(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
    return has_complex_derivative(function, domain, values, function)


@dataclasses.dataclass(frozen=True)
class After:
    """A function of functions after another one, if there is any: picklable where they are."""

    outer: Callable
    inner: Callable | None

    def __call__(self, f):
        return self.outer(self.inner(f) if self.inner else f)


def has_complex_derivative(f, domain, codomain, function):
    """Whether the derivative of f, computed by a Function, is complex-linear or extends to that, from real ones."""
    if not any_complex(domain):
        return True
    if not all(map(is_complex, (*domain.dtypes, *codomain.dtypes))):
        return False
    try:
        with domain.scope(), differentiating("forward" if function.has_forward_rules else "reverse", function.origin):
            if function.has_forward_rules:
                closed = jax.make_jaxpr(lambda x, v: jax.jvp(f, (x,), (v,))[1])(domain.struct, domain.struct)
            else:
                closed = jax.make_jaxpr(lambda x, w: jax.vjp(f, x)[1](w))(domain.struct, codomain.struct)
    except MissingRule:  # said when a product needs it
        return False
    return is_complex_linear(read(closed, rules=False)[0], len(domain.shapes))
