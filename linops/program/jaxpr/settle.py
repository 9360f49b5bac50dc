"""What depends on no argument and repeats itself, computed when a function is traced instead of compiled.

XLA folds what is made of constants while it compiles. Of arguments, which hoisted arrays are, it compiles each
operation: a table that a function fills by a hundred scatters takes a second. Here each kind of operation is compiled
once and run as often as it stands there, and what comes of them is a constant of the program.
"""

import collections

import jax

from linops.program.jaxpr.evaluate import free_variables, run
from linops.program.jaxpr.graph import Graph, Literal, nbytes
from linops.program.jaxpr.primitives import is_cheap, is_pure
from linops.program.jaxpr.structure import Structure

REPEATED = 8  # how often an operation is to stand there for its own compilation to cost less
_LARGE = 2**24  # bytes that it may take, all intermediates together


def settled(graph, constants):
    """The graph and its constants, pairs of a variable and an array, without what is computed now."""
    env = {var: value for var, value in constants if not isinstance(value, jax.core.Tracer)}
    known = _following(graph, env)
    made = {var for equation in known for var in equation.outputs}
    rest = [equation for equation in graph.equations if made.isdisjoint(equation.outputs)]
    equations = _work(known, free_variables(Graph([], rest, graph.outputs)))
    if not _is_repeated(equations) or sum(nbytes(var.aval) for e in equations for var in e.outputs) > _LARGE:
        return graph, constants
    made = {var for equation in equations for var in equation.outputs}
    rest = [equation for equation in graph.equations if made.isdisjoint(equation.outputs)]
    results = [var for var in free_variables(Graph([], rest, graph.outputs)) if var in made]
    # Arrays, not tracers of a jit in progress; what a user asks JAX to watch are computations, of which this is none.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.transfer_guard("allow"):
        run(equations, env)
    return Graph(graph.inputs, rest, graph.outputs, changed=True), [*constants, *((var, env[var]) for var in results)]


def _following(graph, known):
    """The equations that follow from what is known."""
    known, found = {*known}, []
    for equation in graph.equations:
        inputs = [atom for atom in equation.inputs if not isinstance(atom, Literal)]
        if known.issuperset(inputs) and is_pure(equation) and not equation.graphs:
            known.update(equation.outputs)
            found.append(equation)
    return found


def _work(equations, used):
    """Those that are work for what is used, with what they follow from: numbers spread out stay code."""
    found, used, needed = [], {*used}, set()
    for equation in reversed(equations):
        if not needed.isdisjoint(equation.outputs) or not (is_cheap(equation) or used.isdisjoint(equation.outputs)):
            found.append(equation)
            needed.update(equation.inputs)
        elif not used.isdisjoint(equation.outputs):
            used.update(equation.inputs)
    return found[::-1]


def _is_repeated(equations):
    """Whether they are mostly the same again and again."""
    kinds = collections.Counter(
        (equation.primitive, Structure().of_equation(equation), tuple(atom.aval for atom in equation.inputs))
        for equation in equations
        if not is_cheap(equation)
    )
    return kinds.total() >= REPEATED * len(kinds) > 0
