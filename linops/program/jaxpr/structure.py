"""What a graph computes, as a nested tuple: equal for equal computations, whatever their variables are called.

Parameters are compared by what they are where JAX, NumPy or Python made them. Anything else, above all callables and
what holds them, is the same only if it is the same object, whatever its `__eq__` says: a `Structure` then is `opaque`,
and holds what may be a user's data.
"""

import dataclasses
import enum
import sys

import jax
import numpy as np

from linops.program.jaxpr.code import Code
from linops.program.jaxpr.evaluate import free_variables
from linops.program.jaxpr.graph import Literal, Reader
from linops.program.jaxpr.primitives import content, is_jaxpr, open_jaxpr, unwrapped


class Same:
    """An object that equals only itself."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, Same) and self.value is other.value

    def __repr__(self):
        return f"<{type(self.value).__qualname__} {getattr(self.value, '__qualname__', '')}>"


class Structure:
    """Makes the keys. With `calls_only` a call of a function with a rule is compared by what it calls."""

    def __init__(self, *, calls_only=False):
        self.calls_only = calls_only
        self.opaque = False
        self._rules = {}

    def of_program(self, constants, graph):
        """The key of a graph and the rules of all calls in it."""
        numbers = {var: i for i, var in enumerate(constants)}
        keys = [tuple(var.aval for var in constants), self._graph(graph, numbers)]
        done = 0
        while done < len(self._rules):
            rule = list(self._rules)[done]
            keys.append(self._rule(rule, numbers))
            done += 1
        return tuple(keys)

    def of_rule(self, rule, arrays):
        """The key of one rule; constants, given by their variables, are the same if they are one array."""
        return self._rule(rule, _around(rule.graphs, arrays))

    def of_call(self, call, arrays):
        """The key of what a call computes."""
        return self._graph(call, _around([call], arrays))

    def of_equation(self, equation):
        """The key of what an equation does with its inputs."""
        return self._params(equation), self._inside(equation, _around(equation.inner(), {}))

    def _rule(self, rule, numbers):
        graphs = (rule.call, rule.forward, rule.backward)
        key = rule.consts, rule.wanted, rule.refused, rule.error
        return *key, tuple(graph and self._graph(graph, numbers) for graph in graphs)

    def _graph(self, graph, numbers):
        numbers = {**numbers}
        start = len(numbers)

        def number(var):
            return numbers.setdefault(var, start + len(numbers)), var.aval

        def read(atom):
            return atom.key if isinstance(atom, Literal) else numbers[atom]

        inputs = [number(var) for var in graph.inputs]
        equations = [
            (
                equation.primitive,
                self._params(equation),
                tuple(map(read, equation.inputs)),
                self._inside(equation, numbers),
                tuple(map(number, equation.outputs)),
                equation.context,
            )
            for equation in graph.equations
        ]
        return tuple(inputs), tuple(equations), tuple(map(read, graph.outputs))

    def _params(self, equation):
        if equation.rule is not None or equation.name in ("custom_jvp_call", "custom_vjp_call"):
            return ()
        params = equation.params
        return tuple((name, self.value(params[name])) for name in sorted(params) if name not in equation.graphs)

    def _inside(self, equation, numbers):
        if equation.rule is not None and not self.calls_only:
            return self._rules.setdefault(equation.rule, len(self._rules))
        graphs = equation.inner() if equation.rule is None else [equation.rule.call]
        return tuple(self._graph(graph, numbers) for graph in graphs)

    def value(self, value):
        """The key of a parameter."""
        if isinstance(value, Code):
            self.opaque |= value.opaque
            return type(value), value
        if value is None or isinstance(value, bool | int | str | bytes | range | np.dtype | enum.Enum):
            return type(value), value
        if isinstance(value, float | complex | np.number | np.ndarray):
            array = np.asarray(value)
            if array.dtype.kind == "O":
                return self._itself(value)
            return type(value), array.dtype, array.shape, array.tobytes()
        if isinstance(value, slice):
            return slice, self.value((value.start, value.stop, value.step))
        if is_jaxpr(value):
            return self._jaxpr(value)
        if isinstance(value, tuple | list | frozenset | set):
            items = tuple(map(self.value, value))
            # In an order that is the same in another process, for fingerprints.
            return type(value), tuple(sorted(items, key=repr)) if isinstance(value, frozenset | set) else items
        if isinstance(value, dict):
            return dict, tuple((self.value(key), self.value(item)) for key, item in value.items())
        if isinstance(value, jax.tree_util.PyTreeDef):
            return self._treedef(value)
        if dataclasses.is_dataclass(value) and _is_of_jax(type(value)):
            return type(value), tuple(self.value(getattr(value, f.name)) for f in dataclasses.fields(value))
        if _is_global(value):
            return Same(value)
        if _is_of_jax(type(value)) and not callable(value) and not isinstance(value, jax.Array):
            try:
                hash(value)
                return type(value), value
            except TypeError:
                pass
        return self._itself(value)

    def _itself(self, value):
        self.opaque = True
        return Same(unwrapped(value))

    def _jaxpr(self, value):
        """A jaxpr that is not seen into, such as in a parameter of an unknown primitive.

        An open one takes its constants as inputs, whose values are kept elsewhere.
        """
        jaxpr, consts = open_jaxpr(value)
        missing = len(jaxpr.constvars) - len(consts)
        if missing:
            value = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
        reader = Reader(rules=True)
        graph = reader.read(value)
        return self._itself(value) if reader.constants or graph.changed else (missing, self._graph(graph, {}))

    def _treedef(self, treedef):
        data = treedef.node_data()
        children = tuple(map(self._treedef, treedef.children()))
        return treedef.num_leaves, data and (data[0], self.value(data[1])), children


def _around(graphs, arrays):
    """The keys of what graphs see around them: by content where that is small."""
    return {var: content(arrays.get(var)) or Same(var) for var in free_variables(*graphs)}


def _is_of_jax(cls):
    return cls.__module__.split(".")[0] in ("jax", "jaxlib", "numpy")


def _is_global(value):
    """Whether a function or class is what its module has under its name, and so lives as long as that."""
    found = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in (getattr(value, "__qualname__", None) or "<").split("."):
        found = getattr(found, name, None)
    return found is value and value is not None
