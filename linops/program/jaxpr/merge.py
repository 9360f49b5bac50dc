"""Nothing computed twice: of equal pure equations only the first."""

import dataclasses

from linops.program.jaxpr.graph import Graph, Literal
from linops.program.jaxpr.primitives import is_pure
from linops.program.jaxpr.structure import Structure


def merged(graph):
    """The graph in which results of equal pure equations are one."""
    first, same, equations = {}, {}, []

    def resolved(atoms):
        return [same.get(atom, atom) for atom in atoms]

    for equation in graph.equations:
        inputs = resolved(equation.inputs)
        if is_pure(equation):
            atoms = tuple(atom.key if isinstance(atom, Literal) else atom for atom in inputs)
            key = equation.primitive, Structure(calls_only=True).of_equation(equation), atoms, equation.context
            if key in first:
                same.update(zip(equation.outputs, first[key], strict=True))
                continue
            first[key] = equation.outputs
        equations.append(dataclasses.replace(equation, inputs=inputs))
    return Graph(graph.inputs, equations, resolved(graph.outputs), graph.changed)
