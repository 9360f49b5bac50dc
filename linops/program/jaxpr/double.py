"""A traced function computed again in double precision: its graph, with a float64 wherever it has a float32.

What `check` measures the rounding of float32 with. The one invariant: no value here is float32 or complex64. An
equation without floating-point inputs, of random bits say, is applied as it is and its results are widened; one with
such inputs is applied to wide ones, with float64 for float32 in its parameters. What does not give float64 then, a
callback say, is refused, and so is what ends or rounds as it would in float32 by the numbers that are written in it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from linops.program.jaxpr import evaluate as single
from linops.program.jaxpr.graph import Reader
from linops.program.jaxpr.primitives import is_jaxpr, jaxprs_in, scan_counts
from linops.program.jaxpr.rules import read
from linops.program.jaxpr.totals import on_device

_WIDE = {np.dtype(np.float32): np.dtype(np.float64), np.dtype(np.complex64): np.dtype(np.complex128)}


def wide(dtype):
    """The dtype in double precision of a dtype in single precision; any other as it is."""
    return _WIDE.get(dtype, dtype)


def evaluate(closed, *arguments):
    """The results of a traced function in double precision, under `jax.enable_x64(True)`.

    Raises NotImplementedError, or what JAX raises, where that is not possible.
    """
    return _evaluate(*read(closed, rules=False), *arguments)


def _evaluate(graph, constants, *arguments):
    held = {var: _widened(value) for var, value in constants}
    return _computed(graph, held, arguments)


def _computed(graph, env, arguments):
    results = single.evaluate(graph, env, list(map(_widened, arguments)), _apply)
    return [_wide(result, atom) for result, atom in zip(results, graph.outputs, strict=True)]


def _wide(value, atom):
    """A value in double precision, of a literal too."""
    return _widened(np.asarray(value, atom.aval.dtype)) if not isinstance(value, jax.Array) else value


def _widened(value):
    return value.astype(wide(value.dtype)) if value.dtype in _WIDE else value


def _apply(equation, env, inputs):
    name = equation.name
    inputs = [_wide(value, atom) for value, atom in zip(inputs, equation.inputs, strict=True)]
    if not equation.graphs and not any(jnp.issubdtype(value.dtype, np.inexact) for value in inputs):
        return list(map(_widened, single.bind(equation, inputs)))
    if name in _REFUSED or any(map(_is_narrow, (*equation.inputs, *equation.outputs))):
        raise NotImplementedError(name)
    rule = _RULES.get(name)
    outputs = rule(equation, env, inputs) if rule else _bind(equation, inputs)
    for output, var in zip(outputs, equation.outputs, strict=True):
        if (output.shape, output.dtype) != (var.aval.shape, wide(var.aval.dtype)):
            raise NotImplementedError(name)
    return outputs


def _bind(equation, inputs):
    params = {name: _wide_param(value) for name, value in equation.params.items()}
    return single.bind(dataclasses.replace(equation, params=params), inputs)


def _is_narrow(atom):
    dtype = getattr(atom.aval, "dtype", None)
    return jnp.issubdtype(dtype, np.inexact) and jnp.finfo(dtype).bits < 32


def _wide_param(value):
    if is_jaxpr(value):  # what a scatter or a reduction does with two numbers
        return _traced_again(value)
    is_dtype = isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic))
    return wide(np.dtype(value)) if is_dtype else value


def _traced_again(value):
    reader = Reader(rules=False)
    graph = reader.read(value)
    structs = [jax.ShapeDtypeStruct(var.aval.shape, wide(var.aval.dtype)) for var in graph.inputs]
    closed = jax.make_jaxpr(lambda *numbers: _evaluate(graph, reader.constants.values(), *numbers))(*structs)
    return closed if hasattr(value, "jaxpr") else getattr(closed, "jaxpr", closed)


def _call(equation, env, inputs):
    (graph,) = equation.inner() or map(Reader(rules=False).read, jaxprs_in(equation.params.values()))
    return _computed(graph, env, inputs)


def _scan(equation, env, inputs):
    params = equation.params
    consts, carry = scan_counts(params)

    def body(state, xs):
        outputs = _computed(equation.graphs["jaxpr"][0], env, [*inputs[:consts], *state, *xs])
        return outputs[:carry], outputs[carry:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    state, ys = jax.lax.scan(body, list(inputs[consts : consts + carry]), list(inputs[consts + carry :]), **options)
    return [*state, *ys]


def _cond(equation, env, inputs):
    branches = [lambda *operands, g=graph: _computed(g, env, operands) for graph in equation.graphs["branches"]]
    return jax.lax.switch(inputs[0], branches, *inputs[1:])


def _linear_solve(equation, env, inputs):
    lengths = equation.params["const_lengths"]
    solve = type(lengths)(*equation.graphs["jaxprs"]).solve
    before = lengths.matvec + lengths.vecmat
    right_hand_side = inputs[sum(lengths) :]
    return _computed(solve, env, [*inputs[before : before + lengths.solve], *right_hand_side])


def _total(equation, env, inputs):
    """A sum over chunks, written out."""
    if equation.params["source"].is_of_host:
        raise NotImplementedError(equation.name)
    structs = [single.struct(atom.aval) for atom in equation.inputs]
    closed = jax.make_jaxpr(functools.partial(on_device, **equation.params))(*structs)
    return _evaluate(*read(closed, rules=False), *inputs)


_CALLS = ("remat", "remat2", "checkpoint", "custom_vmap_call")
_RULES = dict.fromkeys(_CALLS, _call) | {"scan": _scan, "cond": _cond, "custom_linear_solve": _linear_solve}
_RULES["total_over_data"] = _total

# A loop that ends on a condition ends where its result is good for float32, and so is its derivative.
_REFUSED = ("while", "reduce_precision")
