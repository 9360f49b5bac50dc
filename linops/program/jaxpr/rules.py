"""Custom derivative rules, traced when a program is made: what they compute is settled then, and they are no Python.

JAX traces the rule of a `custom_jvp` or `custom_vjp` function when a derivative is first taken, and holds it, with all
that it closes over, until then. Here each rule is traced at once, by taking the derivative, and its arrays become
constants of the program. A rule often calls its own function again, `f.defjvp(lambda p, t: (f(*p), ...))`, and that
call has a rule. So that this ends, a call that computes the same as one before, by a rule that computes the same up to
the rules of the calls in it, has the same rule.
"""

import jax
import numpy as np

from linops.arrays import to_device
from linops.program.jaxpr.evaluate import Rule, bind, is_inexact, of_some, struct, tangent_struct
from linops.program.jaxpr.graph import Reader
from linops.program.jaxpr.linearity import reached
from linops.program.jaxpr.structure import Structure

DEPTH = 4  # rules within rules, where no two are the same

_ONCE = (
    "a jax.custom_vjp function with symbolic_zeros has a derivative for what depends on the point, and not for its "
    "other arguments; expected those in the point too"
)


def read(closed, *, rules, fixed=0, points=None):
    """The graph of a traced function, and its constants, pairs of a variable and an array.

    The first inputs may be `fixed`, of which no derivative is taken by rules: there may be none for them. Or the first
    are `points`, and a rule that cannot be traced for all that it takes is traced for what depends on them.
    """
    reader = Reader(rules=rules)
    graph = reader.read(closed)
    if rules:
        resolver = _Resolver(reader)
        if fixed:
            moving = reached(graph, graph.inputs[fixed:])
            resolver.at_rest = {atom for equation in graph.walk() for atom in equation.inputs if atom not in moving}
        resolver.moving = reached(graph, graph.inputs[fixed:points])
        resolver.of_user = points is not None
        resolver.resolve(graph, 0)
    return graph, list(reader.constants.values())


class _Resolver:
    def __init__(self, reader):
        self.reader = reader
        self.by_call = {}  # ids of the Python rule and of what is called -> Rule, and both, which keeps the ids
        self.by_structure = {}
        self.at_rest = set()  # variables of which no derivative is taken
        self.moving = set()  # variables of which one surely is
        self.of_user = False  # whether rules are a user's, and not ours around those that have been read
        self.consts = {}  # what a call computes -> how many of its inputs it closes over

    def resolve(self, graph, depth):
        """Give each call of a function with a rule its Rule."""
        for equation in list(graph.walk()):
            if equation.rule is not None:  # resolved with a call around it
                continue
            if equation.primitive.name == "custom_jvp_call":
                equation.rule = self._rule(equation, equation.params["jvp_jaxpr_fun"], _trace_jvp, depth)
            elif equation.primitive.name == "custom_vjp_call":
                equation.rule = self._rule(equation, equation.params["bwd"], _trace_vjp, depth)
            else:
                continue
            equation.graphs, equation.params = {}, {}

    def _rule(self, equation, python, trace, depth):
        call = equation.params["call_jaxpr"]  # of which JAX may have dropped results that nothing uses
        key = id(python), id(call), tuple(atom in self.moving for atom in equation.inputs)
        if key not in self.by_call:
            self.by_call[key] = self._resolved(equation, trace, depth), python, call
        return self.by_call[key][0]

    def _resolved(self, equation, trace, depth):
        (call,) = equation.inner()
        rule = Rule(call, self._consts(call, equation.params["num_consts"]))
        if depth == DEPTH:
            rule.error = f"expected custom derivative rules that use at most {DEPTH} others, one within the other"
            return rule
        inputs = equation.inputs[rule.consts :]
        rule.wanted = tuple(
            rule.consts + i for i, atom in enumerate(inputs) if is_inexact(atom.aval) and atom not in self.at_rest
        )
        traced = self._attempt(equation, rule, trace)
        if traced is None:
            return rule
        rule.forward, rule.backward = (closed and self.reader.read(closed) for closed in traced)
        given = rule.forward.inputs
        self.moving |= reached(rule.forward, [*(given[i] for i in rule.wanted), *given[len(equation.inputs) :]])
        if rule.backward is not None:
            self.moving |= reached(rule.backward, rule.backward.inputs)
        key = Structure(calls_only=True).of_rule(rule, self._arrays())
        if key in self.by_structure:
            return self.by_structure[key]
        self.by_structure[key] = rule
        for graph in rule.graphs:
            self.resolve(graph, depth + 1)
        return rule

    def _attempt(self, equation, rule, trace):
        """The rule traced for all inputs wanted, or else for those that move, or None.

        A `custom_vjp` function that asks which inputs have tangents may have other residuals for others, of which JAX
        remembers one structure for each call: such a rule is traced once, as a derivative at the points would.
        """
        wanted = rule.wanted
        moving = tuple(i for i in wanted if equation.inputs[i] in self.moving)
        is_once = self.of_user and trace is _trace_vjp and equation.params["symbolic_zeros"]
        once = moving if is_once else wanted
        for rule.wanted in dict.fromkeys([once or wanted, moving or wanted]):
            rule.refused = tuple(i for i in wanted if i not in rule.wanted)
            try:
                traced = trace(equation, rule)
                _require_arrays(traced)
            except Exception as error:  # what the author of the rule says; it is said again where the rule is needed
                rule.error = rule.error or f"{type(error).__name__}: {error}"
            else:
                rule.error = rule.error or _ONCE * bool(rule.refused)
                return traced
        rule.wanted, rule.refused = (), wanted
        return None

    def _arrays(self):
        return dict(self.reader.constants.values())

    def _consts(self, call, count):
        """How many of its inputs a call closes over, which JAX forgets where it writes the call down again."""
        key = Structure(calls_only=True).of_call(call, self._arrays())
        self.consts[key] = max(count, self.consts.get(key, 0))
        return self.consts[key]


def _require_arrays(traced):
    """Refuse a rule that holds a traced value of the call's own trace, which has ended, as of `nondiff_argnums`."""
    for const in (const for closed in traced if closed for const in closed.consts):
        if isinstance(const, jax.core.Tracer):
            to_device(const, "a value that a custom derivative rule closes over")


def _structs(atoms):
    return [struct(atom.aval) for atom in atoms]


def _outputs_of(equation, inputs, wanted):
    """The outputs as a function of the inputs wanted."""
    return of_some(lambda *full: bind(equation, full), inputs, wanted)


def _trace_jvp(equation, rule):
    wanted, count = rule.wanted, len(equation.inputs)

    def jvp(*values):
        inputs, tangents = values[:count], list(values[count:])
        function = _outputs_of(equation, inputs, wanted)
        outputs, slopes = jax.jvp(function, [inputs[i] for i in wanted], tangents)
        return [*outputs, *(s for s, o in zip(slopes, equation.outputs, strict=True) if is_inexact(o.aval))]

    tangents = [tangent_struct(equation.inputs[i].aval) for i in wanted]
    return jax.make_jaxpr(jvp)(*_structs(equation.inputs), *tangents), None


def _trace_vjp(equation, rule):
    treedef = None

    def forward(*inputs):
        nonlocal treedef
        outputs, pull = jax.vjp(_outputs_of(equation, inputs, rule.wanted), *(inputs[i] for i in rule.wanted))
        residuals, treedef = jax.tree.flatten(pull)
        return [*outputs, *residuals]

    closed = jax.make_jaxpr(forward)(*_structs(equation.inputs))
    count = len(equation.outputs)
    avals = closed.out_avals[count:]

    def backward(*values):
        pull, given = treedef.unflatten(values[: len(avals)]), iter(values[len(avals) :])
        cotangents = [
            next(given) if is_inexact(atom.aval) else np.zeros(atom.aval.shape, jax.dtypes.float0)
            for atom in equation.outputs
        ]
        return list(pull(cotangents))

    given = [tangent_struct(atom.aval) for atom in equation.outputs if is_inexact(atom.aval)]
    return closed, jax.make_jaxpr(backward)(*map(struct, avals), *given)
