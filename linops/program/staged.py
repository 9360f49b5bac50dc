"""A function of a pytree of arrays, traced once for each structure and compiled once for each program."""

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable

import jax
import jax.numpy as jnp

from linops.program import program as programs
from linops.program import settings as jax_settings
from linops.program.hosted import hosted, is_hosted
from linops.program.jaxpr.evaluate import struct
from linops.program.jaxpr.graph import Graph, live_bytes, nbytes
from linops.program.jaxpr.private import is_outermost
from linops.program.pieces import in_pieces
from linops.program.program import Program, only_run, program_of
from linops.program.sources import Stream


@dataclasses.dataclass(frozen=True)
class Staged:
    """A function of a tree, ready to run: `run(*consts, *leaves, *arguments)` gives new arrays."""

    run: Callable
    consts: tuple
    sources: tuple[tuple[bool, int], ...]  # of each result: whether it is an input, passed through, and which
    out_tree: jax.tree_util.PyTreeDef
    graph: Graph
    wanted: tuple[int, ...]  # the results of the graph that are computed

    @property
    def types(self):
        """Those of the results that are computed."""
        return [struct(self.graph.outputs[i].aval) for i in self.wanted]

    @functools.cached_property
    def bytes_out(self):
        """Bytes of the results, without those passed through."""
        return sum(nbytes(self.graph.outputs[i].aval) for i in self.wanted)

    @functools.cached_property
    def bytes_live(self):
        return live_bytes(self.graph)


class Flat:
    """A pytree flattened once, each array in it once: what a staged function takes."""

    def __init__(self, tree, scope):
        leaves, self.treedef = jax.tree.flatten(tree)
        places = {}
        self.index = tuple(places.setdefault(id(leaf), len(places)) for leaf in leaves)
        self.leaves = tuple({id(leaf): leaf for leaf in leaves}.values())
        self.repeats = len(self.leaves) < len(leaves)
        self.avals = tuple(map(jax.typeof, self.leaves))
        self.of_types = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.leaves)
        self.scope = scope
        self.cache = _cache_of(tree, self.treedef)

    def rebound(self, leaves):
        """The same of another tree, given by its leaves, arrays of the same types: nothing is looked up."""
        other = object.__new__(Flat)
        if self.repeats:
            leaves = dict(zip(reversed(self.index), reversed(leaves), strict=True))
            leaves = [leaves[i] for i in range(len(leaves))]
        vars(other).update(vars(self), leaves=tuple(leaves))
        return other

    def stage(self, function, *arguments):
        """`function(tree, *arguments)`, traced and ready to be compiled, for arguments of these types."""
        with self.scope.entered():
            avals = tuple(map(jax.typeof, arguments))
            settings = jax_settings.current()
            key = function, self.treedef, self.index, self.avals, avals, settings
            return self.cache(key, lambda: _stage(*key))

    def lower(self, staged, *arguments):
        """What is staged, ready to be compiled for types; a call in the same context finds what comes of that."""
        with self.scope.entered():
            return staged.run.lower(*staged.consts, *self.leaves, *arguments)

    def call(self, function, *arguments):
        """`function(tree, *arguments)`, a pytree of arrays, in one compiled call."""
        return self.finish(self.stage(function, *arguments), *arguments)

    def finish(self, staged, *arguments):
        """What is staged, of arguments: arrays, or types where the tree is one of types."""
        return staged.out_tree.unflatten(self.leaves_of(staged, *arguments))

    def leaves_of(self, staged, *arguments):
        """The leaves of the same."""
        inputs = (*staged.consts, *self.leaves, *arguments)
        if self.of_types:
            outputs = staged.types
        elif self.scope.is_entered:
            outputs = staged.run(*inputs)
        else:
            with self.scope.entered():
                outputs = staged.run(*inputs)
        return [(inputs if passed else outputs)[i] for passed, i in staged.sources]


def jitted(function, static, trees, scope):
    """`function(static, *trees)`, a pytree of arrays, with its derivatives, by one jit for each structure.

    It is for tracers: a loop or a linear solve that JAX differentiates outside of a jit is compiled again at each call.
    """
    leaves, treedef = jax.tree.flatten(trees)
    cache = _cache_of(trees, treedef)
    with scope.entered():
        key = function, static, treedef, jax_settings.current()
        call = (_jitted if cache is _staged else cache)(
            key, lambda: jax.jit(lambda *leaves: function(static, *treedef.unflatten(leaves)))
        )
        return call(*map(jnp.asarray, leaves))


_run_once = set()


def run_once(function):
    """Mark a function that is run once for each tree: what it takes to compile counts more than its speed."""
    _run_once.add(function)
    return function


class _Recent:
    """A cache of the last results used. What is computed twice at once, by two threads, is the same."""

    def __init__(self, size):
        self.size, self.found, self.lock = size, OrderedDict(), threading.Lock()

    def __call__(self, key, compute):
        with self.lock:
            if key in self.found:
                self.found.move_to_end(key)
                return self.found[key]
        result = compute()
        with self.lock:
            self.found[key] = result
            if len(self.found) > self.size:
                self.found.popitem(last=False)
        return result


_staged = _Recent(128)  # of trees that hold code only
_jitted = _Recent(128)  # of the same, with derivatives: what is traced in a jit drops nothing that products need
_plain = OrderedDict()  # the structures of the last of them, to be known at once


def clear_caches():
    """Forget all that is traced and compiled, as `jax.clear_caches` does for JAX, which is to be called beside it."""
    _staged.found.clear()
    _jitted.found.clear()
    _plain.clear()
    programs.clear_caches()


def was_known(tree):
    """Whether a tree of this structure was asked for before, or staged, as far as is remembered, or holds what dies."""
    treedef = jax.tree.structure(tree)
    return treedef in _plain or _cache_of(tree, treedef) is not _staged


def _cache_of(tree, treedef):
    """Where to keep what is staged of a tree: with an opaque part of it, as long as that lives, and no longer."""
    if treedef in _plain:
        return _staged

    def part_in(node):
        parts = getattr(node, "source", None), getattr(node, "program", None)
        return next((part for part in parts if isinstance(part, Stream | Program)), None)

    found = map(part_in, jax.tree.leaves(tree, is_leaf=lambda node: part_in(node) is not None))
    opaque = [part for part in found if part and part.opaque]
    if opaque:
        return opaque[0].cache.setdefault("staged", _Recent(64))
    with _staged.lock:
        _plain[treedef] = None
        if len(_plain) > _staged.size:
            _plain.popitem(last=False)
    return _staged


def _stage(function, treedef, index, leaf_avals, argument_avals, settings):
    out_tree = None

    def flat(*values):
        nonlocal out_tree
        leaves, arguments = values[: len(leaf_avals)], values[len(leaf_avals) :]
        tree = treedef.unflatten([leaves[i] for i in index])
        results, out_tree = jax.tree.flatten(function(tree, *arguments))
        return results

    structs = [struct(aval) for aval in (*leaf_avals, *argument_avals)]
    with jax_settings.entered(settings), only_run():
        program, consts = program_of(jax.make_jaxpr(flat)(*structs))
    with jax.ensure_compile_time_eval():  # what is staged is kept: arrays, not tracers of a jit in progress
        consts = tuple(jnp.asarray(const) for const in consts)
    sources, wanted = _sources(program, len(consts) + len(leaf_avals))
    if is_hosted(program.graph):
        run = hosted(program, wanted, _compiled)
    elif function in _run_once:
        run = in_pieces(program, wanted, _compiled_once)
    else:
        run = _compiled(program, wanted, getattr(function, "donated", 0))
    return Staged(run, consts, sources, out_tree, program.graph, wanted)


def _sources(program, held):
    """Where each result comes from, as pairs (is one of the first `held` inputs, index), and which to compute.

    XLA would copy a result that is an input, and compute one that is asked for twice as two.
    """
    inputs = {var: i for i, var in enumerate((*program.constants, *program.graph.inputs)[:held])}
    computed = {}
    sources = [
        (True, inputs[atom]) if atom in inputs else (False, computed.setdefault(atom, (len(computed), i))[0])
        for i, atom in enumerate(program.graph.outputs)
    ]
    return tuple(sources), tuple(i for _, i in computed.values())


def _compiled(program, wanted, donated=0):
    """The jitted function of a program, from consts and arguments to the wanted results.

    The memory of the last `donated` arguments is that of results: a loop that goes on holds its state once.
    """
    if (wanted, donated) not in program.cache:
        consts = len(program.constants)
        last = consts + len(program.graph.inputs)

        def run(*values):
            results = program(values[:consts], *values[consts:])
            return [results[i] for i in wanted]

        passed = {
            atom for atom in program.graph.outputs if atom in program.graph.inputs
        }  # these are results as they are
        given = [i for i in range(last - donated, last) if program.graph.inputs[i - consts] not in passed]
        program.cache[wanted, donated] = jax.jit(run, donate_argnums=given)
    return program.cache[wanted, donated]


def _compiled_once(program, wanted):
    """The same for what is run once: LLVM optimizes it less, in up to a fourth of the time, and it runs as fast.

    A part of another program cannot be compiled by options of its own.
    """
    within = _compiled(program, wanted)
    alone = program.cache.setdefault(("once", wanted), jax.jit(within.__wrapped__, compiler_options=_LESS))

    def run(*values):
        return (alone if is_outermost() else within)(*values)

    return run


_LESS = {"xla_backend_optimization_level": 1}
