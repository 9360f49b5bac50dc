"""Programs compiled in pieces, where XLA would compute a long chain again for each of many results.

What several loops over entries use, XLA on CPUs computes once more in each of them. Of an unrolled recursion of which
each step has a result, each loop starts at the first step: code and time grow quadratically (100 steps of a sine: 3 s
instead of 0.3). The border between two pieces is memory, and pieces that compute the same, as those of a recursion do,
are compiled once. An `optimization_barrier` does not do: XLA drops it before it fuses (JAX 0.10).
"""

import itertools

from linops.program.jaxpr.evaluate import free_variables
from linops.program.jaxpr.graph import Graph, Literal, nbytes
from linops.program.jaxpr.primitives import is_fused
from linops.program.program import program_of_graph

# How many equations XLA computes for one: more than that, and a program is cut; so many, beyond a few, in a piece.
WHOLE, PIECE, FEW = 8, 2, 128


def in_pieces(program, wanted, compiled):
    """`compiled(program, wanted)`, a function of consts and arguments, or one that runs such functions of pieces."""
    graph = program.graph
    borders = [] if any(equation.effects for equation in graph.equations) else _borders(graph, wanted)
    if len(borders) <= 2:
        return compiled(program, wanted)
    last = _last_uses(graph, wanted)
    pieces = [_piece(graph, start, stop, last, compiled) for start, stop in itertools.pairwise(borders)]
    given, results = (*program.constants, *graph.inputs), [graph.outputs[i] for i in wanted]

    def run(*values):
        env = dict(zip(given, values, strict=True))
        for compute, inputs, outputs, done in pieces:
            env.update(zip(outputs, compute(*(env[var] for var in inputs)), strict=True))
            for var in done:
                del env[var]
        return [env[atom] for atom in results]

    return run


def _piece(graph, start, stop, last, compiled):
    """The equations from start to stop as a function, its inputs and outputs, and what no later piece needs."""
    equations = graph.equations[start:stop]
    outputs = [var for equation in equations for var in equation.outputs if last.get(var, -1) >= stop]
    inputs = free_variables(Graph([], equations, outputs))
    compute = compiled(program_of_graph(Graph(inputs, equations, outputs)), tuple(range(len(outputs))))
    return compute, inputs, outputs, [var for var in inputs if last[var] < stop]


def _borders(graph, wanted):
    """Where to cut the list of equations, such that XLA computes little more than once in each piece."""
    count = len(graph.equations)
    costs = _Costs(graph, wanted)
    if any(isinstance(graph.outputs[i], Literal) for i in wanted) or sum(map(costs.of, range(count))) <= WHOLE * count:
        return [0, count]
    crossing = _crossing(graph, wanted)
    borders, stop = [0], 0
    while stop < count:
        costs.again.clear()
        start, cost = borders[-1], 0
        stop = start
        while stop < count and cost <= max(FEW, PIECE * (stop - start)):
            cost += costs.of(stop)
            stop += 1
        if stop < count:  # where the least is to be handed over, and among such places the last
            stop = min(range((start + stop + 1) // 2, stop + 1), key=lambda i: (crossing[i], -i))
        borders.append(stop)
    return borders


class _Costs:
    """How many equations XLA computes for each one, those that it computes again included."""

    def __init__(self, graph, wanted):
        self.equations, self.again = graph.equations, {}  # of each variable of a loop: the equations that give it
        self.results = {graph.outputs[i] for i in wanted}

    def of(self, i):
        equation = self.equations[i]
        inputs = [self.again[var] for var in {*equation.inputs} if var in self.again]
        if not is_fused(equation):
            return sum(map(len, inputs))
        loop = {i}.union(*inputs)
        self.again.update(dict.fromkeys(equation.outputs, loop))
        return len(loop) * len(self.results.intersection(equation.outputs))


def _crossing(graph, wanted):
    """The bytes that are made before and used after each place in the list of equations, beside the results."""
    results = {graph.outputs[i] for i in wanted}
    last = _last_uses(graph, wanted)
    change = [0] * (len(graph.equations) + 2)
    for i, equation in enumerate(graph.equations):
        for var in (last.keys() & set(equation.outputs)) - results:
            change[i + 1] += nbytes(var.aval)
            change[last[var] + 1] -= nbytes(var.aval)
    return [*itertools.accumulate(change)]


def _last_uses(graph, wanted):
    """The last equation that uses each variable; for results, one after all."""
    last = {}
    for i, equation in enumerate(graph.equations):
        used = free_variables(Graph([], [equation], [])) if equation.graphs else equation.inputs
        last.update(dict.fromkeys(used, i))
    return last | dict.fromkeys((graph.outputs[i] for i in wanted), len(graph.equations))
