"""Programs: what functions compute, without data, equal to any other that computes the same.

`jax.jit` keys its cache by the identity of a Python function, and compiles arrays that the function closes over into
the program. Here a function is traced, its arrays become data, and the rest, a `Program`, is the same object as any
other program with the same instructions, so that a fresh lambda over new data compiles nothing.
"""

import collections
import contextlib
import contextvars
import hashlib
import re
import threading
import weakref

import jax
import jax.numpy as jnp

from linops.program.jaxpr import rules
from linops.program.jaxpr.evaluate import evaluate, free_variables
from linops.program.jaxpr.linearity import reached
from linops.program.jaxpr.primitives import is_reference
from linops.program.jaxpr.settle import settled
from linops.program.jaxpr.structure import Structure


class ManyOperatorsError(ValueError):
    """The arrays of an operator have axes that they had not when its function was traced."""


class Program:
    """A graph of equations from constants and arguments to results. Equal programs are one object.

    It owns what is compiled from it (`cache`), which dies with it. Programs that hold objects of the user, callbacks
    say, are `opaque`: nothing keeps them but their operators. Of the others, which hold code only, the last ones used
    are kept, so that operators that come and go compile once.
    """

    __slots__ = ("__weakref__", "cache", "constants", "graph", "key", "opaque")

    def __call__(self, consts, *arguments, apply=None):
        held = dict(zip(self.constants, consts, strict=True))
        traced = [var.aval.shape for var in (*held, *self.graph.inputs)]
        given = [jnp.shape(value) for value in (*consts, *arguments)]
        if given != traced:
            raise ManyOperatorsError(
                f"got an operator of arrays of shapes {given}, whose function was traced for {traced}; expected these: "
                "what jax.vmap returns is many operators, to be multiplied inside of jax.vmap"
            )
        return evaluate(self.graph, held, arguments, apply)

    @property
    def reverse_only(self):
        """Whether it calls a function with `jax.custom_vjp`, which has no forward rule."""
        return any(e.rule is not None and e.rule.backward is not None for e in self.graph.walk())

    @property
    def mutates(self):
        """Whether it writes to references: what is linear in it cannot be transposed by itself."""
        if "mutates" not in self.cache:  # asked for at each point
            outputs = (var for equation in self.graph.walk() for var in equation.outputs)
            self.cache["mutates"] = any(is_reference(var.aval) for var in outputs)
        return self.cache["mutates"]

    def failing_rule(self, count):
        """What a rule says that could not be traced, of a call that depends on the first arguments, or None."""
        moving = reached(self.graph, self.graph.inputs[:count])
        failed = (e for e in self.graph.walk() if e.rule is not None and e.rule.error)
        return next((e.rule.error for e in failed if any(e.inputs[i] in moving for i in e.rule.refused)), None)

    def fingerprint(self):
        """JAX's version, and a digest of what is computed and differentiated, the same in another process."""
        text = re.sub(" at 0x[0-9a-f]+", "", repr(self.key))
        return jax.__version__, hashlib.sha256(text.encode()).hexdigest()


_differentiable = contextvars.ContextVar("differentiable", default=True)


@contextlib.contextmanager
def only_run():
    """A context in which what is traced is run and never differentiated: it needs no derivative rules."""
    token = _differentiable.set(False)
    try:
        yield
    finally:
        _differentiable.reset(token)


def keeps_rules():
    """Whether what is traced may be differentiated."""
    return _differentiable.get()


def program_of(closed, *, keep_rules=None, fixed=0, points=None, settle=False):
    """The Program of a traced function, and the arrays that it closes over.

    The first arguments are `fixed`, without rules, or `points`, of which derivatives are taken.
    With `settle`, what repeats itself and depends on no argument is computed now.
    """
    keep_rules = keeps_rules() if keep_rules is None else keep_rules
    graph, constants = rules.read(closed, rules=keep_rules, fixed=fixed, points=points)
    if settle:
        graph, constants = settled(graph, constants)
    used = {*free_variables(graph)}
    constants = [(var, value) for var, value in constants if var in used]
    variables = tuple(var for var, _ in constants)
    structure = Structure()
    key = structure.of_program(variables, graph)
    return _shared(key, graph, variables, structure.opaque), tuple(value for _, value in constants)


def program_of_graph(graph):
    """The Program of a graph without constants."""
    structure = Structure()
    return _shared(structure.of_program((), graph), graph, (), structure.opaque)


_KEPT = 128  # a program and its executable take a megabyte or more
_lock = threading.RLock()
_programs = weakref.WeakValueDictionary()  # key -> Program
_recent = collections.OrderedDict()  # those without objects of the user, the last used at the end


def _shared(key, graph, constants, opaque):
    """The program with this key; a new one where there is none yet."""
    with _lock:
        program = _programs.get(key)
        if program is None:
            program = Program()
            program.graph, program.constants, program.key, program.opaque = graph, constants, key, opaque
            program.cache = {}
            _programs[key] = program
        if not opaque:
            _recent[program] = None
            _recent.move_to_end(program)
            if len(_recent) > _KEPT:
                _recent.popitem(last=False)
        return program


def clear_caches():
    """Forget what is compiled, and the programs that nothing else keeps."""
    _recent.clear()
    for program in list(_programs.values()):
        program.cache.clear()
