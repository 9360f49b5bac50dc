"""What a linearization keeps for its products: the cheapest to read of what they can be computed from.

`jax.linearize` keeps every number that multiplies a tangent. Products of networks and grids are bound by memory, and
most of these numbers follow from a few others by arithmetic, which costs less than to read them. Where to cut the
computation, in what is kept and what each product computes again, is a minimum cut, as in the partitioner of PyTorch's
AOTAutograd (He, Min-cut optimal(*) recomputation, 2022).
"""

import dataclasses
import functools

import jax
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from linops.jaxpr import dependent, is_literal, nbytes, run, simplified

# What a product may compute again where it depends on the point, for then it does the same to a tangent anyway.
CHEAP = {
    "abs", "add", "add_any", "ceil", "clamp", "div", "floor", "integer_pow", "max", "min", "mul", "neg",
    "one_minus_square", "round", "rsqrt", "sign", "sqrt", "square", "sub",
    "and", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "not", "or", "select_n", "xor",
    "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "iota",
    "pad", "reduce_precision", "reshape", "rev", "slice", "split", "squeeze", "stack", "tile", "transpose", "unstack",
}  # fmt: skip

# How many of them in a row: XLA compiles long chains of which no result is kept in more than linear time (200 steps of
# tanh: 24 s instead of 4), and the transpose holds all of a chain's results at once.
DEPTH = 12


def thrifty(linearize, x):
    """`linearize(x)`, a pytree that is a linear function with its residuals as leaves, with fewer of them."""
    closed, function = jax.make_jaxpr(linearize, return_shape=True)(x)
    if closed.effects:
        return linearize(x)
    jaxpr, consts = simplified(closed)
    plan = _Plan(jaxpr, jax.tree.structure(function))
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *jax.tree.leaves(x)), strict=True))
    run(jaxpr.eqns, env)
    return Thrifty(tuple(env[var] for var in plan.kept), plan)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kept",), meta_fields=("plan",))
@dataclasses.dataclass(frozen=True)
class Thrifty:
    """A linear function, to be computed from what is kept."""

    kept: tuple[jax.Array, ...]
    plan: "_Plan"

    def __call__(self, v):
        return self.plan.function(self.kept)(v)


class _Plan:
    """What to keep of the computation of a linear function's leaves, and how to compute them from that."""

    def __init__(self, jaxpr, treedef):
        self.treedef, self.leaves = treedef, jaxpr.outvars
        cheap = _cheap(jaxpr)
        variables = _variables(self.leaves)
        self.kept = _minimum_cut(variables, cheap)
        again = {var: cheap[var] for var in cheap.keys() - {*self.kept}}
        needed = again.keys() & _ancestors(variables, again).keys()
        self.equations = [eqn for eqn in jaxpr.eqns if not needed.isdisjoint(eqn.outvars)]

    def function(self, kept):
        env = dict(zip(self.kept, kept, strict=True))
        run(self.equations, env)
        numbers = (np.asarray(a.val, a.aval.dtype) if is_literal(a) else env[a] for a in self.leaves)
        return self.treedef.unflatten(numbers)


def _cheap(jaxpr):
    """The equations that a product may compute again, by the variables that they give.

    What does not depend on the point is computed once, unless it is numbers spread out: there is no work on tangents
    beside it.
    """
    on_point = dependent(jaxpr, jaxpr.invars)
    found, depth, spread = {}, {}, set()
    for eqn in jaxpr.eqns:
        inputs = _variables(eqn.invars)
        deep = 1 + max((depth.get(var, 0) for var in inputs), default=0)
        if eqn.primitive.name in CHEAP and deep <= DEPTH:
            if all(var.aval.size == 1 or var in spread for var in inputs):
                spread.update(eqn.outvars)
            again = [var for var in eqn.outvars if var in on_point or var in spread]
            found.update(dict.fromkeys(again, eqn))
            depth.update(dict.fromkeys(again, deep))
    return found


def _variables(atoms):
    return [atom for atom in atoms if not is_literal(atom)]


def _ancestors(variables, equations):
    """The variables, and all from which the equations give them, in order."""
    found, stack = {}, list(variables)
    while stack:
        var = stack.pop()
        if var not in found:
            found[var] = len(found)
            stack += _variables(equations[var].invars) if var in equations else ()
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
        for given in _variables(cheap[var].invars)
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
