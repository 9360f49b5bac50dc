"""The reader: a jaxpr as a normalized graph of equations, the same for each version and each flag of JAX.

- A jitted function inside of another is part of it.
- An array is a constant of the whole program, wherever JAX keeps it: in the `consts` of a jaxpr or in its literals, at
  any depth. Graphs inside of loops and branches see the constants as a function sees the variables around it.
- A handful of integers that tell places, of a scatter say, are code: XLA folds scatters at constant places only.
- A call of `jax.custom_jvp` or `jax.custom_vjp` is an equation with a `Rule`: graphs too, no Python. Where a program is
  only to be run, it is what the call computes.
- A graph inside of an equation is `changed` where it is not what JAX wrote: it has constants, or rules. Such an
  equation is traced again where it is evaluated, any other is handed to JAX as it is.
"""

import dataclasses
from typing import Any

import numpy as np

from linops.program.jaxpr import primitives
from linops.program.jaxpr.primitives import open_jaxpr


class Variable:
    """A value within a graph."""

    __slots__ = ("aval",)

    def __init__(self, aval):
        self.aval = aval


@dataclasses.dataclass(frozen=True, eq=False)
class Literal:
    """A number, or a handful of integers, that are part of an equation."""

    value: Any
    aval: Any

    @property
    def key(self):
        """What it is, by its bits: -0.0 == 0.0, and nan != nan."""
        return np.asarray(self.value, self.aval.dtype).tobytes(), self.aval


@dataclasses.dataclass(eq=False)
class Equation:
    """One operation. `graphs` are the graphs inside of it, by the name of the parameter in which JAX has them."""

    primitive: Any
    params: dict
    context: Any
    effects: Any
    inputs: list
    outputs: list
    graphs: dict = dataclasses.field(default_factory=dict)
    rule: Any = None

    @property
    def name(self):
        return self.primitive.name

    @property
    def changed(self):
        """Whether the graphs inside are not what JAX wrote."""
        return any(graph.changed for graph in self.inner())

    def inner(self):
        """The graphs inside, in order."""
        return [graph for graphs in self.graphs.values() for graph in graphs if graph is not None]


@dataclasses.dataclass(eq=False)
class Graph:
    """Equations in order, from inputs to outputs."""

    inputs: list
    equations: list
    outputs: list
    changed: bool = False

    def walk(self):
        """All equations, those inside of others too; rules apart."""
        for equation in self.equations:
            yield equation
            for graph in equation.inner():
                yield from graph.walk()


class Reader:
    """Reads jaxprs to graphs that share their constants."""

    def __init__(self, *, rules):
        self.rules = rules  # whether custom derivative rules are kept, as calls that are still to be resolved
        self.constants = {}  # identity of an array -> its variable, and the array

    def read(self, closed):
        """The graph of a traced function."""
        jaxpr, consts = open_jaxpr(closed)
        graph = self._graph(jaxpr, consts)
        self._fold_places(graph)
        return graph

    def _graph(self, jaxpr, consts):
        inputs = [Variable(var.aval) for var in jaxpr.invars]
        graph = Graph(inputs, [], [])
        graph.outputs = self._inline(graph, jaxpr, consts, inputs)
        return graph

    def _inline(self, graph, jaxpr, consts, inputs):
        """Append the equations of a jaxpr to a graph; the values of its outputs."""
        env = dict(zip(jaxpr.invars, inputs, strict=True))
        env.update(
            (var, self._constant(graph, const, var.aval)) for var, const in zip(jaxpr.constvars, consts, strict=True)
        )

        def read(atom):
            if not primitives.is_literal(atom):
                return env[atom]
            value = primitives.unwrapped(atom.val)
            return self._constant(graph, value, atom.aval) if np.ndim(value) else Literal(atom.val, atom.aval)

        for eqn in jaxpr.eqns:
            values = [read(atom) for atom in eqn.invars]
            inlined = primitives.inlined(eqn, self.rules)
            if inlined is not None:
                if primitives.has_rule(eqn):
                    graph.changed = True
                env.update(zip(eqn.outvars, self._inline(graph, *open_jaxpr(inlined), values), strict=True))
                continue
            equation = Equation(eqn.primitive, eqn.params, eqn.ctx, eqn.effects, values, [])
            equation.outputs = [Variable(var.aval) for var in eqn.outvars]
            self._read_inner(equation)
            if equation.changed and not primitives.has_rule(eqn):  # JAX's own would keep the arrays and rules in them
                equation.params = {k: v for k, v in equation.params.items() if k not in equation.graphs}
            graph.changed |= equation.changed or primitives.has_rule(eqn)
            graph.equations.append(equation)
            env.update(zip(eqn.outvars, equation.outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _read_inner(self, equation):
        for name, values in primitives.inner_jaxprs(equation.primitive.name, equation.params):
            read = {id(value): value and self._graph(*open_jaxpr(value)) for value in values}  # each once
            equation.graphs[name] = [read[id(value)] for value in values]

    def _constant(self, graph, value, aval):
        """The variable of an array; an array that is seen again is the same constant."""
        graph.changed = True
        value = primitives.unwrapped(value)
        return self.constants.setdefault(primitives.identity(value), (Variable(aval), value))[0]

    def _fold_places(self, graph):
        """Make literals of the small integer constants that are used as the places of scatters only."""
        candidates = {var: value for var, value in self.constants.values() if primitives.may_be_places(value)}
        known = {*candidates}  # what follows from them
        for equation in graph.equations if candidates else ():
            if equation.name in primitives.OF_PLACES and all(
                isinstance(atom, Literal) or atom in known for atom in equation.inputs
            ):
                known.update(equation.outputs)
        other = {*graph.outputs}  # what is used for anything else
        for equation in reversed(graph.equations if candidates else ()):
            for inner in equation.inner():
                other.update(atom for e in inner.walk() for atom in e.inputs)
            places = known.issuperset(equation.outputs) and other.isdisjoint(equation.outputs)
            other.update(
                atom
                for i, atom in enumerate(equation.inputs)
                if not (places or primitives.tells_places(equation.name, i))
            )
        literals = {var: Literal(np.asarray(c), var.aval) for var, c in candidates.items() if var not in other}
        for equation in graph.equations if literals else ():
            equation.inputs = [literals.get(atom, atom) for atom in equation.inputs]


def dependent(graph, inputs):
    """The variables that depend on some of the inputs, which are among them."""
    found = set(inputs)
    for equation in graph.equations:
        if any(atom in found for atom in equation.inputs):
            found.update(equation.outputs)
    return found


def nbytes(aval):
    """Bytes of an array of this type."""
    return int(np.prod(aval.shape)) * aval.dtype.itemsize


def live_bytes(graph):
    """An upper bound of the bytes that the intermediates take at one time: nothing fused, nothing reused."""
    last = {atom: i for i, equation in enumerate(graph.equations) for atom in equation.inputs}
    kept = {*graph.inputs, *graph.outputs}
    own = {var for equation in graph.equations for var in equation.outputs}  # not the constants around

    def size(variables):
        return sum(nbytes(var.aval) for var in variables)

    live = peak = 0
    for i, equation in enumerate(graph.equations):
        live += size(equation.outputs)
        peak = max(peak, live + max((live_bytes(inner) for inner in equation.inner()), default=0))
        live -= size({atom for atom in equation.inputs if last[atom] == i and atom in own and atom not in kept})
    return peak
