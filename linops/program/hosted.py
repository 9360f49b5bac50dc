"""Programs with passes over batches of the host: run by the host, and compiled in what stands between.

Where a pass stands in a loop or a branch, that is the host's too. Passes over the same batches that do not wait for
one another are one: what a sum of operators asks for, or a value and its gradient, is computed as batches come by.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from linops.program.jaxpr.evaluate import free_variables, leading, struct, value
from linops.program.jaxpr.graph import Graph
from linops.program.jaxpr.primitives import scan_counts
from linops.program.jaxpr.totals import Summand
from linops.program.program import only_run, program_of, program_of_graph


def is_hosted(graph):
    """Whether a graph has a pass over batches of the host."""
    return any(_is_pass(equation) for equation in graph.walk())


def _is_pass(equation):
    return equation.name == "total_over_data" and equation.params["source"].is_of_host


def hosted(program, wanted, compiled):
    """The function of consts and arguments to the wanted results that runs a program from the host."""
    graph = program.graph
    steps = Steps(Graph(graph.inputs, graph.equations, [graph.outputs[i] for i in wanted]), compiled)
    given = *program.constants, *graph.inputs

    def run(*values):
        return steps(dict(zip(given, values, strict=True)))

    return run


class Steps:
    """A graph as steps of the host, each of which puts its results into the values of variables."""

    def __init__(self, graph, compiled):
        self.graph, self.compiled = graph, compiled
        self.steps = self._steps()

    def __call__(self, env, arguments=None):
        """The outputs, for arguments and what is known around them."""
        if arguments is not None:
            env.update(zip(self.graph.inputs, arguments, strict=True))
        for step in self.steps:
            step(env)
        return [value(atom, env) for atom in self.graph.outputs]

    def _steps(self):
        equations = _needed(self.graph)
        groups = _groups(equations)
        steps = []
        for group in groups:
            if not any(map(_is_of_host, group)):
                steps.append(self._piece(group, [e for other in groups if other is not group for e in other]))
            elif _is_pass(group[0]):
                steps.append(functools.partial(self._pass, *_merged(group)))
            else:
                steps.append(self._control(group[0]))
        return steps

    def _piece(self, equations, others):
        """Equations compiled as one program."""
        used = {*free_variables(Graph([], others, self.graph.outputs))}
        outputs = [var for equation in equations for var in equation.outputs if var in used]
        inputs = free_variables(Graph([], equations, outputs))
        compute = self.compiled(program_of_graph(Graph(inputs, equations, outputs)), tuple(range(len(outputs))))

        def piece(env):
            env.update(zip(outputs, compute(*(env[var] for var in inputs)), strict=True))

        return piece

    def _pass(self, source, summand, types, inputs, outputs, env):
        operands = [jnp.asarray(value(atom, env), atom.aval.dtype) for atom in inputs]
        env.update(zip(outputs, source.total(summand, types, operands, self._step), strict=True))

    def _step(self, function, types, donated):
        """A function of arrays, compiled once for all that are the same program."""
        with only_run():
            program, consts = program_of(jax.make_jaxpr(function)(*map(struct, types)))
        return functools.partial(self.compiled(program, tuple(range(len(program.graph.outputs))), donated), *consts)

    def _control(self, equation):
        """A loop or a branch."""
        graphs = {name: [g and Steps(g, self.compiled) for g in graphs] for name, graphs in equation.graphs.items()}
        if equation.name not in _CONTROL:
            raise TypeError(
                f"got a product over batches of the host within {equation.name}, expected one in a loop or a branch, "
                "or by itself: pass data= arrays, which are walked on the device"
            )
        run = functools.partial(_CONTROL[equation.name], equation, graphs)

        def control(env):
            results = run(env, [value(atom, env) for atom in equation.inputs])
            env.update(zip(equation.outputs, results, strict=True))

        return control


def _is_of_host(equation):
    return _is_pass(equation) or any(is_hosted(graph) for graph in equation.inner())


def _needed(graph):
    """The equations that the outputs need: a pass over data in vain is a costly one."""
    needed, found = {*graph.outputs}, []
    for equation in reversed(graph.equations):
        if equation.effects or not needed.isdisjoint(equation.outputs):
            found.append(equation)
            needed.update(free_variables(Graph([], [equation], [])))
    return found[::-1]


def _groups(equations):
    """Equations in groups, each after those it waits for: what is compiled together, and passes that are one.

    What waits for as many things of the host, one after the other, stands together.
    """
    level, groups = {}, {}
    for equation in equations:
        waits = max((level.get(var, 0) for var in free_variables(Graph([], [equation], []))), default=0)
        if _is_of_host(equation):
            source = id(equation.params["source"]) if _is_pass(equation) else id(equation)
            groups.setdefault((waits, 1, source), []).append(equation)
            waits += 1
        else:
            groups.setdefault((waits, 0, 0), []).append(equation)
        level.update(dict.fromkeys(equation.outputs, waits))
    return [groups[key] for key in sorted(groups, key=lambda key: key[:2])]


@dataclasses.dataclass(frozen=True)
class Together(Summand):
    """Several summands as one."""

    summands: tuple
    operands: tuple  # which of all operands each takes

    opaque = property(lambda self: any(summand.opaque for summand in self.summands))

    def __call__(self, batch, operands):
        results = [s(batch, [operands[i] for i in mine]) for s, mine in zip(self.summands, self.operands, strict=True)]
        return [result for part in results for result in part]


def _merged(equations):
    """What passes over the same batches come to: a source, a summand, types, operands and results."""
    atoms = list(dict.fromkeys(atom for equation in equations for atom in equation.inputs))
    first = equations[0].params
    if len(equations) == 1:
        return first["source"], first["summand"], first["types"], equations[0].inputs, equations[0].outputs
    mine = tuple(tuple(map(atoms.index, equation.inputs)) for equation in equations)
    summand = Together(tuple(equation.params["summand"] for equation in equations), mine)
    types = tuple(aval for equation in equations for aval in equation.params["types"])
    return first["source"], summand, types, atoms, [var for equation in equations for var in equation.outputs]


def _scan(equation, graphs, env, inputs):
    params = equation.params
    consts, carry = scan_counts(params)
    held, state, xs = inputs[:consts], inputs[consts : consts + carry], inputs[consts + carry :]
    rows = [None] * params["length"]
    order = range(params["length"])
    for i in reversed(order) if params["reverse"] else order:
        outputs = graphs["jaxpr"][0](env, [*held, *state, *(x[i] for x in xs)])
        state, rows[i] = outputs[:carry], outputs[carry:]
    if not rows:
        types = equation.outputs[carry:]
        return [*state, *(jnp.zeros(var.aval.shape, var.aval.dtype) for var in types)]
    return [*state, *(jnp.stack(column) for column in zip(*rows, strict=True))]


def _while(equation, graphs, env, inputs):
    of_cond, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    for_cond, for_body, state = inputs[:of_cond], inputs[of_cond : of_cond + of_body], inputs[of_cond + of_body :]
    while True:
        goes_on = np.asarray(graphs["cond_jaxpr"][0](env, [*for_cond, *state])[0])
        if not goes_on.any():
            return state
        after = graphs["body_jaxpr"][0](env, [*for_body, *state])
        if not goes_on.all():  # of a loop that was batched by vmap some examples rest
            after = [jnp.where(leading(goes_on, new), new, old) for new, old in zip(after, state, strict=True)]
        state = after


def _cond(equation, graphs, env, inputs):
    branches = graphs["branches"]
    return branches[int(np.clip(inputs[0], 0, len(branches) - 1))](env, inputs[1:])


def _checkpoint(equation, graphs, env, inputs):
    return graphs["jaxpr"][0](env, inputs)


def _solve(equation, graphs, env, inputs):
    """A linear solve that is only run: by the function that solves."""
    lengths = equation.params["const_lengths"]
    which = type(lengths)._fields.index("solve")
    ends = np.cumsum([*lengths])
    held = inputs[ends[which] - lengths[which] : ends[which]]
    return graphs["jaxprs"][which](env, [*held, *inputs[ends[-1] :]])


_CONTROL = {
    "scan": _scan, "while": _while, "cond": _cond, "remat2": _checkpoint, "remat": _checkpoint,
    "checkpoint": _checkpoint, "custom_linear_solve": _solve,
}  # fmt: skip
