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

# What an operation costs, in times of what it costs to read its result. With less, a stencil is computed again for each
# of its neighbors (products at 0, 1/10, 1/4 and 1/2, in times of those with all kept: an energy on a grid 0.89, 0.33,
# 0.34 and 0.34, Arakawa's Jacobian 1.21, 1.22, 0.94 and 0.94, Rosenbrock's function 0.29, 0.28, 0.34 and 0.34).
OPERATION = 1 / 4

CACHE_LINE = 64  # bytes, as many as are read for a number


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
        return jax.tree.leaves(treedef.unflatten(evaluate.value(atom, env) for atom in graph.outputs)(v))

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

    What does not depend on the point is computed once, unless it is a number, or numbers spread out: there is no work
    on tangents beside it.
    """
    on_point = dependent(graph, graph.inputs)
    found, spread = {}, set()
    for equation in filter(is_cheap, graph.equations):
        if all(var.aval.size == 1 or var in spread for var in _variables(equation.inputs)):
            spread.update(equation.outputs)
        again = [var for var in equation.outputs if var in on_point or var in spread or var.aval.size == 1]
        found.update(dict.fromkeys(again, equation))
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
    """The variables that are cheapest to read, with what it costs to compute the leaves from them."""
    number = _ancestors(leaves, cheap)
    sizes = np.array([max(CACHE_LINE, nbytes(var.aval)) for var in number], float)
    weights = 1 + sizes / max(1, sizes.sum()) * 2**28  # of 32 bits, as SciPy takes them
    source, sink, never = 2 * len(number), 2 * len(number) + 1, 2**30
    # A variable i is an edge from 2 i to 2 i + 1, cut if it is kept. What is beyond the cut is computed again, at the
    # cost of an edge from the source.
    edges = {(2 * number[var] + 1, sink): never for var in leaves}
    for var, i in number.items():
        edges[2 * i, 2 * i + 1] = weights[i]
        edges[source, 2 * i] = OPERATION * weights[i] if var in cheap else never
        needed = _variables(cheap[var].inputs) if var in cheap else ()
        edges.update(((2 * number[given] + 1, 2 * i), never) for given in needed)
    capacity = coo_array(
        (np.array([*edges.values()], np.int32), np.array([*edges], int).reshape(-1, 2).T), shape=(sink + 1, sink + 1)
    ).tocsr()
    left = capacity - maximum_flow(capacity, source, sink).flow
    left.eliminate_zeros()
    reached = {*breadth_first_order(left, source, return_predecessors=False)}
    return [var for var, i in number.items() if 2 * i in reached and 2 * i + 1 not in reached]
