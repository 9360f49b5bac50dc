"""What a linearization keeps for its products: the cheapest to read of what they can be computed from.

`jax.linearize` keeps every number that multiplies a tangent. Products of networks and grids are bound by memory, and
most of these numbers follow from a few others by arithmetic, which costs less than to read them. Where to cut the
computation, in what is kept and what each product computes again, is a minimum cut, as in the partitioner of PyTorch's
AOTAutograd (He, Min-cut optimal(*) recomputation, 2022).
"""

import jax
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from linops.program.jaxpr import evaluate, rules
from linops.program.jaxpr.graph import Literal, dependent, nbytes
from linops.program.jaxpr.merge import merged
from linops.program.jaxpr.primitives import is_cheap
from linops.program.program import program_of

# How many of them in a row: XLA compiles long chains of which no result is kept in more than linear time (200 steps of
# tanh: 24 s instead of 4), and the transpose holds all of a chain's results at once.
DEPTH = 12


def thrifty(linearize, x, vector, *, keep_rules):
    """What to keep of `linearize(x)`, a pytree that is a linear function, and the Program of its products.

    What is kept begins with the constants of the Program, which takes the rest of it, and the leaves of a `vector`,
    given as structs. Without rules the products are only to be run, and not to be differentiated.
    """
    treedef = None

    def leaves_of(x):
        nonlocal treedef
        leaves, treedef = jax.tree.flatten(linearize(x))
        return leaves

    closed = jax.make_jaxpr(leaves_of)(x)
    graph, constants = rules.read(closed, rules=keep_rules)
    kept, again = (graph.outputs, []) if closed.effects else _cut(graph := merged(graph))
    kept = list(dict.fromkeys(_variables(kept)))

    def product(values, v):
        env = dict(zip(kept, values, strict=True))
        evaluate.run(again, env)
        return jax.tree.leaves(treedef.unflatten(evaluate.read(atom, env) for atom in graph.outputs)(v))

    env = {**dict(constants), **dict(zip(graph.inputs, jax.tree.leaves(x), strict=True))}
    evaluate.run(graph.equations, env)
    structs = [evaluate.struct(var.aval) for var in kept]
    closed = jax.make_jaxpr(product)(structs, vector)
    program, consts = program_of(closed, keep_rules=keep_rules, fixed=len(kept))
    return (*consts, *(env[var] for var in kept)), program


def _cut(graph):
    """The variables to keep, and the equations that compute the outputs from them."""
    cheap = _cheap(graph)
    variables = _variables(graph.outputs)
    kept = _minimum_cut(variables, cheap)
    again = {var: cheap[var] for var in cheap.keys() - {*kept}}
    needed = again.keys() & _ancestors(variables, again).keys()
    return kept, [equation for equation in graph.equations if not needed.isdisjoint(equation.outputs)]


def _cheap(graph):
    """The equations that a product may compute again, by the variables that they give.

    What does not depend on the point is computed once, unless it is numbers spread out: there is no work on tangents
    beside it.
    """
    on_point = dependent(graph, graph.inputs)
    found, depth, spread = {}, {}, set()
    for equation in graph.equations:
        inputs = _variables(equation.inputs)
        deep = 1 + max((depth.get(var, 0) for var in inputs), default=0)
        if is_cheap(equation) and deep <= DEPTH:
            if all(var.aval.size == 1 or var in spread for var in inputs):
                spread.update(equation.outputs)
            again = [var for var in equation.outputs if var in on_point or var in spread]
            found.update(dict.fromkeys(again, equation))
            depth.update(dict.fromkeys(again, deep))
    return found


def _variables(atoms):
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _ancestors(variables, equations):
    """The variables, and all from which the equations give them, in order."""
    found, stack = {}, list(variables)
    while stack:
        var = stack.pop()
        if var not in found:
            found[var] = len(found)
            stack += _variables(equations[var].inputs) if var in equations else ()
    return found


def _minimum_cut(leaves, cheap):
    """The variables of the fewest bytes from which cheap equations give the leaves."""
    number = _ancestors(leaves, cheap)
    source, sink = 2 * len(number), 2 * len(number) + 1
    # A variable i is an edge from 2 i to 2 i + 1, that can be cut at the cost of its bytes; no other edge can be cut.
    fixed = {(2 * number[var] + 1, sink) for var in leaves}
    fixed |= {(source, 2 * i) for var, i in number.items() if var not in cheap}
    fixed |= {
        (2 * number[given] + 1, 2 * i)
        for var, i in number.items()
        if var in cheap
        for given in _variables(cheap[var].inputs)
    }
    sizes = np.array([nbytes(var.aval) for var in number], float)
    weights = 1 + sizes / max(1, sizes.sum()) * 2**28  # of 32 bits, as SciPy takes them
    edges = dict.fromkeys(fixed, 2**30) | {(2 * i, 2 * i + 1): weight for i, weight in enumerate(weights)}
    capacity = coo_array(
        (np.array([*edges.values()], np.int32), np.array([*edges], int).reshape(-1, 2).T), shape=(sink + 1, sink + 1)
    ).tocsr()
    left = capacity - maximum_flow(capacity, source, sink).flow
    left.eliminate_zeros()
    reached = {*breadth_first_order(left, source, return_predecessors=False)}
    return [var for var, i in number.items() if 2 * i in reached and 2 * i + 1 not in reached]
