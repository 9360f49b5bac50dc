"""Complex functions: which derivatives are complex-linear, and the realification of those that are not.

The derivative of f at x is always linear over the reals. Linear over the complex numbers, and so a complex matrix, it
is in two cases:

- f is holomorphic, C^n -> C^m. This is decided on the jaxpr of its derivative: all that depends on the tangent is
  complex, and nothing is conjugated. The decision does not depend on numbers, and errs only toward "no".
- f maps R^n -> C^m: then the derivative extends to complex vectors as A (u + iv) = A u + i A v.

In all other cases (C^n -> R^m, a conjugation or an absolute value inside, leaves of both kinds) f is realified: taken
as a function of the pair (Re x, Im x), with the pair (Re f, Im f) for its value where that is complex. The operator
then is real, and its vectors are [Re, Im]. Leaves that are real have no imaginary part.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from linops.jaxpr import is_literal, jaxprs_in, open_jaxpr, scan_counts
from linops.precision import complex_dtype, is_complex
from linops.rules import MissingRule, differentiating
from linops.space import Space, pair_of, space_of
from linops.trace import Function


def trace_linear(f, x, domain, args, what="f", realify=False):
    """Trace f at x, of the Space `domain`; realified where its derivative is not complex-linear, or as asked.

    Returns the Function, the point in its domain, and `domain` if f is realified, else None.
    """
    function = Function.trace(f, domain, args, what)
    values = function.codomain
    if not realify and has_complex_derivative(function, domain, values, function.forward):
        return function, x, None
    if any_complex(domain):
        function = Function.trace(f, realified_space(domain), args, what, through=OnPairs(domain))
    elif any_complex(values):
        function = Function.trace(f, domain, args, what, through=OnPairs(None))
    if any_complex(values):
        function = dataclasses.replace(function, codomain=dataclasses.replace(function.codomain, paired=values))
    with domain.scope():
        return (function, pair_of(x), domain) if any_complex(domain) else (function, x, None)


def has_complex_derivative(function, domain, codomain, forward):
    """Whether the derivative of a function is complex-linear, or extends to that: its domain is real."""
    if not any_complex(domain):
        return True
    if not all(map(is_complex, (*domain.dtypes, *codomain.dtypes))):
        return False
    try:
        with domain.scope(), differentiating("forward" if forward else "reverse"):
            if forward:
                closed = jax.make_jaxpr(lambda x, v: jax.jvp(function, (x,), (v,))[1])(domain.struct, domain.struct)
            else:
                closed = jax.make_jaxpr(lambda x, w: jax.vjp(function, x)[1](w))(domain.struct, codomain.struct)
    except MissingRule:  # said when a product needs it
        return False
    points = len(domain.shapes)
    inputs = len(closed.jaxpr.invars)
    outputs = _dependence(closed.jaxpr, [NOT] * points + [LINEARLY] * (inputs - points))
    return OTHERWISE not in outputs


def any_complex(space):
    """Whether a Space has complex leaves."""
    return any(map(is_complex, space.dtypes))


def realified(tree):
    """The pair (Re, Im) of a tree with complex leaves, any other tree as it is."""
    return pair_of(tree) if any(is_complex(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)) else tree


@dataclasses.dataclass(frozen=True)
class OnPairs:
    """The realification of functions: of a pair (Re, Im) instead of an element of `domain`, and with values like that.

    `domain` is None where it is real. Values are left as they are where `values` is False.
    """

    domain: Space | None
    values: bool = True

    def __call__(self, f):
        def on_pairs(x, *args):
            value = f(join(x, self.domain) if self.domain else x, *args)
            return realified(value) if self.values else value

        return on_pairs


def join(pair, space):
    """The element of a Space with complex leaves of a pair (Re, Im)."""
    real, imaginary = jax.tree.leaves(pair[0]), iter(jax.tree.leaves(pair[1]))
    leaves = [
        jax.lax.complex(re, next(imaginary)) if is_complex(d) else re for re, d in zip(real, space.dtypes, strict=True)
    ]
    return space.treedef.unflatten(leaves)


@functools.lru_cache(maxsize=512)
def realified_space(space):
    """The Space of the pairs (Re, Im) of the elements of a Space."""
    with space.scope():
        return dataclasses.replace(space_of(jax.eval_shape(pair_of, space.struct), "x"), paired=space)


def complex_space(space):
    """The Space with the complex counterparts of the leaves' dtypes."""
    return Space(space.treedef, space.shapes, tuple(map(complex_dtype, space.dtypes)))


def one_field(space):
    """The Space, with all leaves complex where one is: over the real numbers it would be another one."""
    return complex_space(space) if any_complex(space) else space


def extended(mv, v, domain, codomain):
    """The complex-linear extension of real-linear `mv`: the product with v in the complex Space `codomain`.

    It takes v and -iv, both restricted to `domain`, for the real and the imaginary part.
    """

    def restricted(z, struct):
        return z.astype(struct.dtype) if is_complex(struct.dtype) else z.real.astype(struct.dtype)

    def joined(product, struct):
        re, im = product.astype(struct.dtype)
        return jax.lax.complex(re.real - im.imag, re.imag + im.real)  # re + 1j * im, also where that is Inf

    parts = jax.tree.map(lambda z, s: jnp.stack([restricted(z, s), restricted(-1j * z, s)]), v, domain.struct)
    return jax.tree.map(joined, jax.vmap(mv)(parts), codomain.struct)


# The analysis: how each variable depends on the tangent.
NOT, LINEARLY, OTHERWISE = range(3)


def _dependence(jaxpr, inputs):
    """How each output depends on the tangent, from how each input does; complex-linearity is lost once and for all."""
    levels = dict(zip(jaxpr.invars, inputs, strict=True))

    def level(atom):
        return NOT if is_literal(atom) else levels.get(atom, NOT)

    for eqn in jaxpr.eqns:
        if any(hasattr(atom.aval, "inner_aval") for atom in eqn.invars):  # a mutable reference: who knows what is in it
            return [OTHERWISE] * len(jaxpr.outvars)
        before = [level(atom) for atom in eqn.invars]
        for var, after in zip(eqn.outvars, _dependence_of(eqn, before), strict=True):
            levels[var] = OTHERWISE if after and not is_complex(var.aval.dtype) else after
    return [level(atom) for atom in jaxpr.outvars]


def _dependence_of(eqn, inputs):
    """The same for one equation; a variable that is real and depends is marked by the caller."""
    name, params = eqn.primitive.name, eqn.params
    if not any(inputs) or name == "conj":
        return [OTHERWISE if any(inputs) else NOT] * len(eqn.outvars)
    if name == "scan":
        return _loop(open_jaxpr(params["jaxpr"])[0], inputs, *scan_counts(params))
    if name == "while":
        condition = params["cond_nconsts"]
        outputs = _loop(
            open_jaxpr(params["body_jaxpr"])[0], inputs[condition:], params["body_nconsts"], len(eqn.outvars)
        )
        stops = _dependence(open_jaxpr(params["cond_jaxpr"])[0], [*inputs[:condition], *outputs])
        return [OTHERWISE] * len(outputs) if any(stops) else outputs
    if name == "cond":
        outputs = [_dependence(open_jaxpr(branch)[0], inputs[1:]) for branch in params["branches"]]
        return [OTHERWISE if inputs[0] else max(levels) for levels in zip(*outputs, strict=True)]
    if name == "custom_linear_solve":
        return [_solve(params, inputs)] * len(eqn.outvars)
    for key in ("jaxpr", "call_jaxpr"):
        if key in params and len(open_jaxpr(params[key])[0].invars) == len(inputs):
            return _dependence(open_jaxpr(params[key])[0], inputs)
    if _is_opaque(eqn) or (name == "triangular_solve" and params["conjugate_a"] and inputs[0]):
        return [OTHERWISE] * len(eqn.outvars)
    return [max(inputs)] * len(eqn.outvars)


def _is_opaque(eqn):
    """Whether an equation calls what is not seen into: the host, foreign code, functions of another kind."""
    name, values = eqn.primitive.name, eqn.params.values()
    foreign = "callback" in name or "ffi" in name or "custom_call" in name
    return foreign or (not name.startswith("scatter") and (any(jaxprs_in(values)) or any(map(callable, values))))


def _solve(params, inputs):
    """A linear solve depends on its right-hand side as the given functions do, and not linearly on its matrix."""
    jaxprs = params["jaxprs"]
    consts = sum(params["const_lengths"])
    if any(inputs[:consts]):
        return OTHERWISE
    levels = inputs[consts:]
    for jaxpr, count in zip(jaxprs, params["const_lengths"], strict=True):
        if jaxpr is not None:
            levels = [*levels, *_dependence(open_jaxpr(jaxpr)[0], [NOT] * count + [max(levels)] * len(inputs[consts:]))]
    return max(levels)


def _loop(body, inputs, consts, carries):
    """A body that takes (consts, carries, xs) and gives (carries, ys), until no more carries depend on the tangent."""
    while True:
        outputs = _dependence(body, inputs)
        after = [*inputs[:consts], *map(max, inputs[consts:], outputs[:carries]), *inputs[consts + carries :]]
        if after == inputs:
            return outputs
        inputs = after
