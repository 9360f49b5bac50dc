"""A traced function computed again in double precision: its jaxpr, with a float64 wherever it has a float32.

What `check` measures the rounding of float32 with. The one invariant: no value here is float32 or complex64. An
equation without floating-point inputs, of random bits say, is applied as it is and its results are widened; one with
such inputs is applied to wide ones, with float64 for float32 in its parameters. What does not give float64 then, a
callback say, is refused, and so is what ends or rounds as it would in float32 by the numbers that are written in it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from linops.jaxpr import is_literal, jaxprs_in, open_jaxpr, scan_counts

_WIDE = {np.dtype(np.float32): np.dtype(np.float64), np.dtype(np.complex64): np.dtype(np.complex128)}


def wide(dtype):
    """The dtype in double precision of a dtype in single precision; any other as it is."""
    return _WIDE.get(dtype, dtype)


def evaluate(closed, *arguments):
    """The results of a traced function in double precision, under `jax.enable_x64(True)`.

    Raises NotImplementedError, or what JAX raises, where that is not possible.
    """
    return _evaluate(*open_jaxpr(closed), *arguments)


def _evaluate(jaxpr, consts, *arguments):
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), map(_widened, (*consts, *arguments)), strict=True))

    def read(atom):
        return _widened(np.asarray(atom.val, atom.aval.dtype)) if is_literal(atom) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _apply(eqn, list(map(read, eqn.invars))), strict=True))
    return list(map(read, jaxpr.outvars))


def _widened(value):
    return value.astype(wide(value.dtype)) if value.dtype in _WIDE else value


def _apply(eqn, inputs):
    name = eqn.primitive.name
    if not any(jnp.issubdtype(value.dtype, np.inexact) for value in inputs):
        return list(map(_widened, _bind(eqn, inputs, eqn.params)))
    if name in _REFUSED or any(map(_is_narrow, (*eqn.invars, *eqn.outvars))):
        raise NotImplementedError(name)
    rule = _RULES.get(name)
    outputs = rule(eqn.params, *inputs) if rule else _bind(eqn, inputs, _params(eqn.params))
    for output, var in zip(outputs, eqn.outvars, strict=True):
        if (output.shape, output.dtype) != (var.aval.shape, wide(var.aval.dtype)):
            raise NotImplementedError(name)
    return outputs


def _bind(eqn, inputs, params):
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def _is_narrow(atom):
    dtype = getattr(atom.aval, "dtype", None)
    return jnp.issubdtype(dtype, np.inexact) and jnp.finfo(dtype).bits < 32


def _params(params):
    return {name: _wide_param(value) for name, value in params.items()}


def _wide_param(value):
    if hasattr(value, "eqns"):  # what a scatter or a reduction does with two numbers
        return _traced_again(value)
    is_dtype = isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic))
    return wide(np.dtype(value)) if is_dtype else value


def _traced_again(value):
    jaxpr, consts = open_jaxpr(value)
    structs = [jax.ShapeDtypeStruct(var.aval.shape, wide(var.aval.dtype)) for var in jaxpr.invars]
    closed = jax.make_jaxpr(functools.partial(_evaluate, jaxpr, consts))(*structs)
    return closed if hasattr(value, "jaxpr") else closed.jaxpr


def _call(params, *inputs):
    ((jaxpr, consts),) = jaxprs_in(params.values())
    return _evaluate(jaxpr, consts, *inputs)


def _scan(params, *inputs):
    consts, carry = scan_counts(params)
    jaxpr, inner = open_jaxpr(params["jaxpr"])

    def body(state, xs):
        outputs = _evaluate(jaxpr, inner, *inputs[:consts], *state, *xs)
        return outputs[:carry], outputs[carry:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    state, ys = jax.lax.scan(body, list(inputs[consts : consts + carry]), list(inputs[consts + carry :]), **options)
    return [*state, *ys]


def _cond(params, index, *inputs):
    branches = [functools.partial(_evaluate, *open_jaxpr(branch)) for branch in params["branches"]]
    return jax.lax.switch(index, branches, *inputs)


def _linear_solve(params, *inputs):
    lengths, solve = params["const_lengths"], params["jaxprs"].solve
    before = lengths.matvec + lengths.vecmat
    right_hand_side = inputs[sum(lengths) :]
    return _evaluate(*open_jaxpr(solve), *inputs[before : before + lengths.solve], *right_hand_side)


_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
_CALLS += ("custom_jvp_call", "custom_vjp_call", "custom_vmap_call")  # what they compute, whatever their rules
_RULES = dict.fromkeys(_CALLS, _call) | {"scan": _scan, "cond": _cond, "custom_linear_solve": _linear_solve}

# A loop that ends on a condition ends where its result is good for float32, and so is its derivative.
_REFUSED = ("while", "reduce_precision")
