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
    equations = _repeated(graph, env)
    if not equations or sum(nbytes(var.aval) for equation in equations for var in equation.outputs) > _LARGE:
        return graph, constants
    made = {var for equation in equations for var in equation.outputs}
    rest = [equation for equation in graph.equations if made.isdisjoint(equation.outputs)]
    results = list(dict.fromkeys(var for var in free_variables(Graph([], rest, graph.outputs)) if var in made))
    # Arrays, not tracers of a jit in progress; what a user asks JAX to watch are computations, of which this is none.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.transfer_guard("allow"):
        run(equations, env)
    return Graph(graph.inputs, rest, graph.outputs, changed=True), [*constants, *((var, env[var]) for var in results)]


def _repeated(graph, known):
    """The equations that follow from what is known, if they are work, and mostly the same again and again."""
    known, found, kinds = {*known}, [], collections.Counter()
    for equation in graph.equations:
        inputs = [atom for atom in equation.inputs if not isinstance(atom, Literal)]
        if known.issuperset(inputs) and is_pure(equation) and not equation.graphs:
            known.update(equation.outputs)
            found.append(equation)
            if not is_cheap(equation):
                kinds[Structure().of_equation(equation), tuple(atom.aval for atom in equation.inputs)] += 1
    return _needed(found) if kinds and kinds.total() >= REPEATED * len(kinds) else []


def _needed(equations):
    """Those that are work, and those that they follow from: numbers spread out stay code."""
    found, used = [], set()
    for equation in reversed(equations):
        if not (is_cheap(equation) and used.isdisjoint(equation.outputs)):
            found.append(equation)
            used.update(equation.inputs)
    return found[::-1]
