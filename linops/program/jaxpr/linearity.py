"""How the outputs of a graph depend on some of its inputs: not, linearly over the complex numbers, or otherwise."""

import numpy as np

from linops.program.jaxpr.evaluate import is_inexact
from linops.program.jaxpr.primitives import COMPLEX_LINEAR, is_reference, scan_counts

NOT, LINEARLY, OTHERWISE = range(3)


def is_complex_linear(graph, points):
    """Whether a derivative, a graph of a function of a point and a tangent, is complex-linear in the tangent.

    The first `points` inputs are the point. All that depends on the tangent has to be complex, and by operations that
    are known to be linear over the complex numbers; the answer does not depend on numbers, and errs only toward "no".
    """
    outputs = _dependence(graph, [NOT] * points + [LINEARLY] * (len(graph.inputs) - points))
    return OTHERWISE not in outputs


def _dependence(graph, inputs):
    """How each output depends on the tangent, from how each input does; complex-linearity is lost once and for all."""
    levels = dict(zip(graph.inputs, inputs, strict=True))
    for equation in graph.equations:
        if any(is_reference(atom.aval) for atom in equation.inputs):  # who knows what is in it
            return [OTHERWISE] * len(graph.outputs)
        before = [levels.get(atom, NOT) for atom in equation.inputs]
        after = _dependence_of(equation, before) if any(before) else [NOT] * len(equation.outputs)
        for var, level in zip(equation.outputs, after, strict=True):
            levels[var] = OTHERWISE if level and not np.issubdtype(var.aval.dtype, np.complexfloating) else level
    return [levels.get(atom, NOT) for atom in graph.outputs]


def _dependence_of(equation, inputs):
    """The same for one equation; a variable that is real and depends is marked by the caller."""
    name, params, graphs = equation.name, equation.params, equation.graphs
    if name == "scan" and graphs:
        return _loop(graphs["jaxpr"][0], inputs, *scan_counts(params))
    if name == "while":
        condition = params["cond_nconsts"]
        outputs = _loop(graphs["body_jaxpr"][0], inputs[condition:], params["body_nconsts"], len(equation.outputs))
        stops = _dependence(graphs["cond_jaxpr"][0], [*inputs[:condition], *outputs])
        return [OTHERWISE] * len(outputs) if any(stops) else outputs
    if name == "cond":
        outputs = [_dependence(branch, inputs[1:]) for branch in graphs["branches"]]
        return [OTHERWISE if inputs[0] else max(levels) for levels in zip(*outputs, strict=True)]
    if name == "custom_linear_solve":
        return [_solve(equation, inputs)] * len(equation.outputs)
    if len(equation.inner()) == 1 and len(equation.inner()[0].inputs) == len(inputs):  # a checkpoint, say
        return _dependence(equation.inner()[0], inputs)
    linear = name in COMPLEX_LINEAR and not graphs and not (_over(name, params) and inputs[_over(name, params) - 1])
    return [max(inputs) if linear else OTHERWISE] * len(equation.outputs)


def _over(name, params):
    """Which input, counted from one, an equation is not linear in: what divides, and a matrix that is conjugated."""
    if name == "triangular_solve":
        return 1
    return 2 if name == "div" else 0


def _solve(equation, inputs):
    """A linear solve depends on its right-hand side as the given functions do, and not linearly on its matrix."""
    lengths = equation.params["const_lengths"]
    consts = sum(lengths)
    if any(inputs[:consts]):
        return OTHERWISE
    levels = inputs[consts:]
    for graph, count in zip(equation.graphs["jaxprs"], lengths, strict=True):
        if graph is not None:
            levels = [*levels, *_dependence(graph, [NOT] * count + [max(levels)] * len(inputs[consts:]))]
    return max(levels)


def _loop(body, inputs, consts, carries):
    """A body that takes (consts, carries, xs) and gives (carries, ys), until no more carries depend on the tangent."""
    while True:
        outputs = _dependence(body, inputs)
        after = [*inputs[:consts], *map(max, inputs[consts:], outputs[:carries]), *inputs[consts + carries :]]
        if after == inputs:
            return outputs
        inputs = after


def reached(graph, inputs):
    """The variables that have tangents where some inputs have, in the graphs inside of equations too."""
    found = set(inputs)
    for equation in graph.equations:
        given = [atom in found for atom in equation.inputs]
        for inner in equation.inner():
            found |= _reached_inside(equation, inner, given)
        if any(given) and equation.name != "stop_gradient":
            found.update(var for var in equation.outputs if is_reference(var.aval) or is_inexact(var.aval))
    return found


def _reached_inside(equation, inner, given):
    """The same for a graph inside of an equation, some of whose inputs are reached; all where it is not known how."""
    consts = carries = 0
    if equation.name == "cond":
        given = given[1:]
    elif equation.name == "scan":
        consts, carries = scan_counts(equation.params)
    elif equation.name == "while" and inner is equation.graphs["body_jaxpr"][0]:
        given, consts = given[equation.params["cond_nconsts"] :], equation.params["body_nconsts"]
        carries = len(equation.outputs)
    if len(given) != len(inner.inputs):
        given = [True] * len(inner.inputs)
    while True:
        found = reached(inner, [var for var, is_reached in zip(inner.inputs, given, strict=True) if is_reached])
        carried = [atom in found for atom in inner.outputs[:carries]]
        after = [*given[:consts], *map(max, given[consts:], carried), *given[consts + carries :]]
        if after == given:
            return found
        given = after
