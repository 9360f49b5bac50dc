"""Evaluation of graphs, with arrays or tracers, by the transformations and the control flow of JAX itself."""

import dataclasses
import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from linops.program.jaxpr import primitives
from linops.program.jaxpr.graph import Graph, Literal


def struct(aval):
    """The type of an array, its sharding included, for tracing: not in what each device of a mesh does by itself."""
    sharding, by_itself = getattr(aval, "sharding", None), jax.sharding.get_abstract_mesh().manual_axes
    sharding = None if sharding is None or sharding.mesh.empty or by_itself else sharding
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False), sharding=sharding)


def tangent_struct(aval):
    """The type of a tangent, which is not weak."""
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=struct(aval).sharding)


def place(values, avals):
    """Values with the shardings of types, where these lay them along axes of a mesh, as cotangents have to lie."""
    return [
        jax.sharding.reshard(value, aval.sharding)
        if _is_sharded(aval) and jax.typeof(value).sharding != aval.sharding
        else value
        for value, aval in zip(values, avals, strict=True)
    ]


def _is_sharded(aval):
    sharding = struct(aval).sharding
    return sharding is not None and any(sharding.spec)


def is_inexact(aval):
    """Whether values of this type have derivatives: neither integers, nor keys."""
    return jax.dtypes.issubdtype(aval.dtype, np.inexact)


def evaluate(graph, held, arguments, apply=None):
    """The outputs of a graph, for its arguments and the constants `held` by their variables."""
    env = {**held, **dict(zip(graph.inputs, arguments, strict=True))}
    run(graph.equations, env, apply or apply_equation)
    return [value(atom, env) for atom in graph.outputs]


def run(equations, env, apply=None):
    """Evaluate equations, with the values of variables in `env`, which takes in the results."""
    apply = apply or apply_equation
    for equation in equations:
        results = apply(equation, env, [value(atom, env) for atom in equation.inputs])
        env.update(zip(equation.outputs, results, strict=True))


def value(atom, env):
    """The value of a variable or a literal."""
    return atom.value if isinstance(atom, Literal) else env[atom]


def apply_equation(equation, env, inputs):
    """The results of an equation: by JAX as it is, or written anew where the graphs in it are not JAX's own."""
    if equation.rule is not None:
        return _call_with_rule(equation.rule, env, inputs)
    if primitives.is_inexact_tanh(equation):
        return [primitives.exact_tanh(*inputs)]
    if primitives.is_unrolled(equation):
        return _unrolled(equation, env, inputs)
    if equation.changed:
        return _ANEW[equation.name](equation, env, inputs)
    return bind(equation, inputs)


def apply_frugally(equation, env, inputs):
    """The same, but of a loop only what one step hands to the next is kept for the way back: the rest is computed anew.

    Forward derivatives, and values, take no longer; the way back as much longer as a pass through the loop.
    """
    if is_loop_of_steps(equation):
        return _scan(equation, env, inputs, wrap=functools.partial(jax.checkpoint, prevent_cse=False))
    return apply_equation(equation, env, inputs)


def is_loop_of_steps(equation):
    """Whether what an equation keeps for the way back grows with the steps of a loop."""
    return equation.name == "scan" and not primitives.is_unrolled(equation) and equation.params["length"] > 1


def bind(equation, inputs):
    """Hand an equation to JAX."""
    primitive, mesh = equation.primitive, jax.sharding.get_abstract_mesh()
    with equation.context.manager, jax.sharding.use_abstract_mesh(mesh) if mesh.manual_axes else nullcontext():
        outputs = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
    return outputs if primitive.multiple_results else [outputs]


# Loops and branches, traced again around graphs that see constants of the program: JAX takes in what they close over.


def _branch(graph, env):
    return lambda *arguments: evaluate(graph, env, arguments)


def _scan(equation, env, inputs, wrap=lambda step: step):
    params = equation.params
    consts, carry = primitives.scan_counts(params)
    body = _branch(equation.graphs["jaxpr"][0], env)

    def step(state, xs):
        outputs = body(*inputs[:consts], *state, *xs)
        return outputs[:carry], outputs[carry:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    state, xs = inputs[consts : consts + carry], inputs[consts + carry :]
    state, ys = jax.lax.scan(wrap(step), list(state), list(xs), **options)
    return [*state, *ys]


def _unrolled(equation, env, inputs):
    """A scan of which XLA sees each step, as of `jnp.polyval`, step by step: what to keep is chosen among them all."""
    consts, carry = primitives.scan_counts(equation.params)
    body, count = _branch(equation.graphs["jaxpr"][0], env), equation.params["length"]
    held, state, xs = inputs[:consts], inputs[consts : consts + carry], inputs[consts + carry :]
    rows = [None] * count
    for i in reversed(range(count)) if equation.params["reverse"] else range(count):
        outputs = body(*held, *state, *(jax.lax.index_in_dim(x, i, keepdims=False) for x in xs))
        state, rows[i] = outputs[:carry], outputs[carry:]
    return [*state, *(jnp.stack(column) for column in zip(*rows, strict=True))]


def _while(equation, env, inputs):
    cond_consts, body_consts = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    cond, body = (_branch(equation.graphs[name][0], env) for name in ("cond_jaxpr", "body_jaxpr"))
    for_cond, for_body = inputs[:cond_consts], inputs[cond_consts : cond_consts + body_consts]

    def step(state):
        goes_on, after = cond(*for_cond, *state)[0], body(*for_body, *state)
        return [jnp.where(leading(goes_on, new), new, old) for new, old in zip(after, state, strict=True)]

    # A loop that was batched by vmap goes on for each example by itself, which JAX writes as a condition of many.
    is_batched = bool(equation.graphs["cond_jaxpr"][0].outputs[0].aval.shape)
    return jax.lax.while_loop(
        lambda state: jnp.any(cond(*for_cond, *state)[0]) if is_batched else cond(*for_cond, *state)[0],
        step if is_batched else lambda state: body(*for_body, *state),
        list(inputs[cond_consts + body_consts :]),
    )


def leading(condition, array):
    """A condition on leading axes, in as many axes as an array has."""
    return condition.reshape(condition.shape + (1,) * (array.ndim - condition.ndim))


def _cond(equation, env, inputs):
    index, *operands = inputs
    branches = [_branch(graph, env) for graph in equation.graphs["branches"]]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return jax.lax.switch(index, branches, *operands)
    of_platforms = [names or ("default",) for names in platforms]
    by_name = {name: branch for names, branch in zip(of_platforms, branches, strict=True) for name in names}
    return jax.lax.platform_dependent(*operands, default=by_name.pop("default", None), **by_name)


def _remat(equation, env, inputs):
    """A checkpoint, by the primitive itself: one that has been differentiated says so in its parameters."""
    graph = equation.graphs["jaxpr"][0]
    free = free_variables(graph)

    def compute(*values):
        return evaluate(graph, dict(zip(free, values, strict=False)), values[len(free) :])

    values = [*(env[var] for var in free), *inputs]
    jaxpr, consts = primitives.open_jaxpr(jax.make_jaxpr(compute)(*values))
    jaxpr = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    with equation.context.manager:
        return equation.primitive.bind(*consts, *values, **{**equation.params, "jaxpr": jaxpr})


def _linear_solve(equation, env, inputs):
    lengths = equation.params["const_lengths"]
    graphs = type(lengths)(*equation.graphs["jaxprs"])
    ends = np.cumsum(lengths)
    consts = type(lengths)(*(inputs[end - n : end] for end, n in zip(ends, lengths, strict=True)))
    b = list(inputs[ends[-1] :])

    def function(graph, values):
        return None if graph is None else lambda _, b: evaluate(graph, env, [*values, *b])

    matvec = function(graphs.matvec, consts.matvec)
    return jax.lax.custom_linear_solve(
        lambda x: matvec(None, x),
        b,
        function(graphs.solve, consts.solve),
        function(graphs.transpose_solve, consts.transpose_solve),
        symmetric=graphs.vecmat is graphs.matvec,
    )


def _shard_map(equation, env, inputs):
    params, graph = equation.params, equation.graphs["jaxpr"][0]
    free = free_variables(graph)
    replicated = (jax.sharding.PartitionSpec(),) * len(free)

    def compute(*values):
        return tuple(evaluate(graph, dict(zip(free, values, strict=False)), values[len(free) :]))

    mapped = jax.shard_map(
        compute,
        mesh=params["mesh"],
        in_specs=replicated + tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(params["manual_axes"]),
        check_vma=params["check_vma"],
    )
    return mapped(*(env[var] for var in free), *inputs)


_ANEW = {
    "scan": _scan, "while": _while, "cond": _cond, "remat2": _remat, "remat": _remat, "checkpoint": _remat,
    "custom_linear_solve": _linear_solve, "shard_map": _shard_map,
}  # fmt: skip


def free_variables(*graphs):
    """The constants of a program that graphs use, by themselves or in the rules of what they call."""
    found, seen, pending = {}, set(), list(graphs)
    while pending:
        graph = pending.pop()
        if id(graph) in seen:
            continue
        seen.add(id(graph))
        own = {*graph.inputs}
        for equation in graph.equations:
            found.update((atom, None) for atom in _variables(equation.inputs) if atom not in own)
            own.update(equation.outputs)
            pending += equation.inner() if equation.rule is None else equation.rule.graphs
        found.update((atom, None) for atom in _variables(graph.outputs) if atom not in own)
    return list(found)


def _variables(atoms):
    return [atom for atom in atoms if not isinstance(atom, Literal)]


# Custom derivative rules.


@dataclasses.dataclass(eq=False)
class Rule:
    """The derivative of a call as its author wrote it, traced: what `jax.custom_jvp` and `custom_vjp` hold as Python.

    `forward` takes the inputs, and for a jvp the tangents of those `wanted`, and gives the outputs with their tangents,
    or with residuals; `backward` takes the residuals and the cotangents. The first `consts` inputs are what the call
    closes over. Where a rule could not be traced for tangents of some inputs, they are `refused`, and `error` says why.
    """

    call: Graph
    consts: int
    wanted: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    forward: Graph | None = None
    backward: Graph | None = None
    error: str = ""

    @property
    def graphs(self):
        return [graph for graph in (self.call, self.forward, self.backward) if graph is not None]

    @functools.cached_property
    def free(self):
        return free_variables(*self.graphs)

    def require(self, perturbed):
        """Say why there is no rule, where there is none for the inputs that have tangents."""
        if self.error and (self.forward is None or any(perturbed[i] for i in self.refused)):
            raise TypeError(self.error)


def _call_with_rule(rule, env, inputs):
    """Call a function with its rule.

    For what it closes over, constants and first inputs, there is no rule. Their derivative, which only a gradient with
    respect to an operator's leaves asks for, is that of what the call computes.
    """
    held = [env[var] for var in rule.free]
    wanted = {len(held) + i for i in rule.wanted}
    others = [i for i in range(len(held) + len(inputs)) if i not in wanted]
    make = _with_jvp if rule.backward is None else _with_vjp
    return make(rule, others)(*held, *inputs)


def _computed(rule, graph, values, arguments):
    return evaluate(graph, dict(zip(rule.free, values, strict=False)), arguments)


def _with_jvp(rule, others):
    count = len(rule.free)

    @jax.custom_jvp
    def call(*values):
        return _computed(rule, rule.call, values, values[count:])

    @functools.partial(call.defjvp, symbolic_zeros=True)
    def jvp(values, tangents):
        rule.require([type(tangent) is not SymbolicZero for tangent in tangents[count:]])
        wanted = [_instantiated(tangents[count + i], values[count + i]) for i in rule.wanted]
        results = _computed(rule, rule.forward, values, [*values[count:], *wanted])
        outputs, slopes = results[: len(rule.call.outputs)], iter(results[len(rule.call.outputs) :])
        of_outputs = [
            next(slopes) if is_inexact(atom.aval) else SymbolicZero.from_primal_value(output)
            for atom, output in zip(rule.call.outputs, outputs, strict=True)
        ]
        held = [i for i in others if type(tangents[i]) is not SymbolicZero]
        if held:
            _, more = jax.jvp(of_some(call.fun, values, held), [values[i] for i in held], [tangents[i] for i in held])
            of_outputs = [a if type(a) is SymbolicZero else a + b for a, b in zip(of_outputs, more, strict=True)]
        return outputs, of_outputs

    return call


def _with_vjp(rule, others):
    count, outputs = len(rule.free), len(rule.call.outputs)

    @jax.custom_vjp
    def call(*values):
        return _computed(rule, rule.call, values, values[count:])

    def forward(*primals):
        rule.require([primal.perturbed for primal in primals[count:]])
        values = [primal.value for primal in primals]
        results = _computed(rule, rule.forward, values, values[count:])
        held = [i for i in others if primals[i].perturbed and is_inexact(jax.typeof(values[i]))]
        pull = jax.vjp(of_some(call.fun, values, held), *(values[i] for i in held))[1] if held else None
        saved = jax.tree_util.Partial(_pull_held, pull) if held else None
        return results[:outputs], (values[:count], results[outputs:], saved, _Static(tuple(held), len(values)))

    def backward(saved, cotangents):
        values, residuals, pull, static = saved
        given = [
            _instantiated(cotangent, atom)
            for cotangent, atom in zip(cotangents, rule.call.outputs, strict=True)
            if is_inexact(atom.aval)
        ]
        results = [None] * static.count
        pulled = _computed(rule, rule.backward, values, [*residuals, *given])
        for i, result in zip(rule.wanted, pulled, strict=True):
            results[count + i] = result
        if pull is not None:
            full = [
                _instantiated(c, atom) if is_inexact(atom.aval) else np.zeros(atom.aval.shape, jax.dtypes.float0)
                for c, atom in zip(cotangents, rule.call.outputs, strict=True)
            ]
            for i, result in zip(static.held, pull(full), strict=True):
                results[i] = result
        return tuple(results)

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("held", "count"))
@dataclasses.dataclass(frozen=True)
class _Static:
    held: tuple[int, ...]
    count: int


def _pull_held(pull, cotangents):
    return pull(cotangents)


def of_some(function, values, places):
    """The function of the values at some places, with the others as they are."""

    def of_some(*some):
        full = list(values)
        for place, value in zip(places, some, strict=True):
            full[place] = value
        return function(*full)

    return of_some


def _instantiated(tangent, like):
    """A tangent as an array, zeros where it is known to be zero."""
    if type(tangent) is not SymbolicZero:
        return tangent
    aval = like.aval if hasattr(like, "aval") else jax.typeof(like)
    return jnp.zeros(aval.shape, aval.dtype, device=struct(aval).sharding)
