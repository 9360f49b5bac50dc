"""Jaxprs as data: what they compute, the arrays they hold, the memory they need.

JAX 0.12 has one class for open and closed jaxprs, before there were two; `open_jaxpr` reads both.
"""

import functools
from typing import Any

import jax
import numpy as np


def hoist(closed):
    """Split a traced function in its jaxpr and the arrays that it closes over, those of nested jitted functions too."""
    if _has_inner_consts(closed.jaxpr):
        return _traced_again(closed, lambda: _apply)
    jaxpr, consts = closed.jaxpr, [_unwrapped(const) for const in closed.consts]
    if hasattr(jaxpr, "with_consts"):  # JAX 0.12: the jaxpr holds its consts, and would keep them in our caches
        jaxpr = jaxpr.with_consts([None] * len(consts))
    return jaxpr, consts


def structure(jaxpr, rules):
    """A nested tuple, equal for equal computations whatever their variables are called.

    With `rules`, the custom derivative rules in it, Python callables, take part and compare by identity.
    """
    numbers = {}

    def number(var):
        return numbers.setdefault(var, len(numbers)), var.aval

    def read(atom):
        return _literal(atom) if is_literal(atom) else numbers[atom]

    inputs = [number(var) for var in (*jaxpr.constvars, *jaxpr.invars)]
    equations = [
        (eqn.primitive, _params(eqn, rules), tuple(map(read, eqn.invars)), tuple(map(number, eqn.outvars)), eqn.ctx)
        for eqn in jaxpr.eqns
    ]
    return tuple(inputs), tuple(equations), tuple(map(read, jaxpr.outvars))


def is_literal(atom):
    """Whether an input of an equation is a number in it; the class, jax.extend.core.Literal, takes 60 ms to import."""
    return hasattr(atom, "val")


def _literal(atom):
    """A number in an equation, by its bits: -0.0 == 0.0, and nan != nan."""
    return np.asarray(atom.val, atom.aval.dtype).tobytes(), atom.aval


def contains(jaxpr, primitive):
    """Whether a primitive of that name occurs, however deep."""
    return any(
        eqn.primitive.name == primitive or any(contains(inner, primitive) for inner, _ in _inner(eqn))
        for eqn in jaxpr.eqns
    )


def nbytes(aval):
    return int(np.prod(aval.shape)) * aval.dtype.itemsize


def dependent(jaxpr, inputs):
    """The variables that depend on some of the inputs, which are among them."""
    found = set(inputs)
    for eqn in jaxpr.eqns:
        if any(atom in found for atom in eqn.invars if not is_literal(atom)):
            found.update(eqn.outvars)
    return found


def live_bytes(jaxpr, counted=None):
    """An upper bound of the bytes that the intermediates of a jaxpr take at one time: nothing fused, nothing reused.

    Where a set of variables is `counted`, all others are not.
    """
    last = {atom: i for i, eqn in enumerate(jaxpr.eqns) for atom in eqn.invars if not is_literal(atom)}
    kept = {*jaxpr.constvars, *jaxpr.invars, *(atom for atom in jaxpr.outvars if not is_literal(atom))}

    def size(variables):
        return sum(nbytes(var.aval) for var in variables if counted is None or var in counted)

    live = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        live += size(eqn.outvars)
        if counted is None or not counted.isdisjoint(eqn.outvars):
            peak = max(peak, live + max((live_bytes(inner) for inner, _ in _inner(eqn)), default=0))
        live -= size({a for a in eqn.invars if not is_literal(a) and last[a] == i and a not in kept})
    return peak


class _Opaque:
    """An object that equals only itself."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, _Opaque) and self.value is other.value


def _params(eqn, rules):
    params = eqn.params
    if not rules and eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        params = {"call_jaxpr": params["call_jaxpr"], "num_consts": params["num_consts"]}
    return tuple((name, _value(params[name], rules)) for name in sorted(params))


def _value(value, rules):
    if _is_jaxpr(value):
        jaxpr, consts = open_jaxpr(value)
        return structure(jaxpr, rules), tuple(map(_Opaque, consts))
    if isinstance(value, tuple | list):
        return type(value), tuple(_value(item, rules) for item in value)
    if isinstance(value, dict):
        return dict, tuple((key, _value(item, rules)) for key, item in value.items())
    array = np.asarray(value) if type(value) in (float, complex) else _unwrapped(value)
    if isinstance(array, np.ndarray | np.generic) and array.dtype != object:
        return array.dtype, array.shape, array.tobytes()
    try:
        hash(value)
    except TypeError:
        value = _Opaque(value)
    return type(value), value


def _unwrapped(const):
    """JAX wraps NumPy constants, to have them compare by identity."""
    return const if isinstance(const, jax.Array) else getattr(const, "val", const)


def _is_jaxpr(value):
    return hasattr(value, "eqns")


def open_jaxpr(value):
    """A jaxpr and its consts, of an open or a closed one."""
    return getattr(value, "jaxpr", value), tuple(getattr(value, "consts", ()))


def _inner(eqn):
    """The jaxprs among the parameters of an equation, opened, with their consts."""
    return jaxprs_in(eqn.params.values())


def jaxprs_in(values):
    """The jaxprs among parameters, opened, with their consts."""
    for value in values:
        for item in value if isinstance(value, tuple | list) else (value,):
            if _is_jaxpr(item):
                yield open_jaxpr(item)


def _has_inner_consts(jaxpr):
    return any(consts or _has_inner_consts(inner) for eqn in jaxpr.eqns for inner, consts in _inner(eqn))


def scan_counts(params):
    """How many of a scan's inputs are constants, and how many carries."""
    if "ft_in" in params:  # JAX 0.12
        consts, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
        return consts, carry
    return params["num_consts"], params["num_carry"]


# Evaluation that inlines what holds arrays of its own, so that a new trace finds them at the top.


def _apply(eqn, inputs):
    lift = None if any(map(eqn.params.get, _NOT_LIFTED)) else _LIFT.get(eqn.primitive.name)
    if lift and any(consts or _has_inner_consts(inner) for inner, consts in _inner(eqn)):
        return lift(eqn.params, *inputs)
    return _bind(eqn, inputs)


def _bind(eqn, inputs):
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def run(equations, env, apply=_apply):
    """Evaluate equations, with the values of variables in `env`, which takes in the results."""
    for eqn in equations:
        outputs = apply(eqn, [atom.val if is_literal(atom) else env[atom] for atom in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))


def simplified(closed):
    """The jaxpr with nested jitted functions inlined and nothing computed twice, and its consts."""
    return _traced_again(closed, _Merging)


def _traced_again(closed, make_apply):
    structs = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type) for v in closed.jaxpr.invars
    ]

    def evaluate(*arguments):
        return _evaluate(closed.jaxpr, closed.consts, *arguments, apply=make_apply())

    return hoist(jax.make_jaxpr(evaluate)(*structs))


def _evaluate(jaxpr, consts, *arguments, apply=_apply):
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    run(jaxpr.eqns, env, apply)
    return [atom.val if is_literal(atom) else env[atom] for atom in jaxpr.outvars]


class _Merging:
    """Applies equations that have no effects: of equal ones only the first, and nested jitted functions inlined."""

    def __init__(self):
        self.applied = {}

    def __call__(self, eqn, inputs):
        if _LIFT.get(eqn.primitive.name) is _lift_jit:
            return _evaluate(*open_jaxpr(eqn.params["jaxpr"]), *inputs, apply=self)
        names = tuple(_literal(a) if is_literal(a) else id(x) for a, x in zip(eqn.invars, inputs, strict=True))
        key = eqn.primitive, _params(eqn, True), names, eqn.ctx
        if key not in self.applied:
            self.applied[key] = inputs, _bind(eqn, inputs)  # the inputs, so that no other value gets the id of one
        return self.applied[key][1]


def _lift_jit(params, *inputs):
    return _evaluate(*open_jaxpr(params["jaxpr"]), *inputs)


def _lift_scan(params, *inputs):
    consts, carry = scan_counts(params)
    jaxpr, inner = open_jaxpr(params["jaxpr"])

    def body(state, xs):
        outputs = _evaluate(jaxpr, inner, *inputs[:consts], *state, *xs)
        return outputs[:carry], outputs[carry:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    state, ys = jax.lax.scan(body, list(inputs[consts : consts + carry]), list(inputs[consts + carry :]), **options)
    return [*state, *ys]


def _lift_while(params, *inputs):
    cond_consts, body_consts = params["cond_nconsts"], params["body_nconsts"]
    cond, body = open_jaxpr(params["cond_jaxpr"]), open_jaxpr(params["body_jaxpr"])
    for_cond, for_body = inputs[:cond_consts], inputs[cond_consts : cond_consts + body_consts]
    return jax.lax.while_loop(
        lambda state: _evaluate(*cond, *for_cond, *state)[0],
        lambda state: _evaluate(*body, *for_body, *state),
        list(inputs[cond_consts + body_consts :]),
    )


def _lift_cond(params, index, *inputs):
    branches = [functools.partial(_evaluate, *open_jaxpr(branch)) for branch in params["branches"]]
    return jax.lax.switch(index, branches, *inputs)


# What the lifts would drop: branches by platform, and scans whose transpose is split.
_NOT_LIFTED = ("branches_platforms", "_split_transpose")
_LIFT = {"jit": _lift_jit, "pjit": _lift_jit, "scan": _lift_scan, "while": _lift_while, "cond": _lift_cond}
