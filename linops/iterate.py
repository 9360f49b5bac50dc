"""The one driver of all algorithms: on the device in one piece, or in chunks of steps with a look from outside.

An algorithm is a frozen dataclass, hashable, since it is code, with three methods in traceable JAX:

- `begin(A, *operands)`: the first state, a pytree of arrays.
- `step(A, state)`: the next state.
- `done(A, state)`: whether to stop.

A is an operator, or a tuple of operators. What an algorithm says in the end, it computes anew, of the last state.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from linops.blas import one_blas_thread
from linops.linear_map import LinearMap
from linops.processes import of_all, spans
from linops.products import concrete, is_traced
from linops.program.settings import Scope, full_precision
from linops.program.staged import Flat, jitted

CHUNK_SECONDS = 0.1  # between two looks from outside, about
MOST_STEPS = 2**31 - 1


def compute(function, A, *operands, donated=0):
    """`function(A, *operands)` of an operator, or a tuple of them, and trees of arrays.

    It is compiled once for each structure, or is a part of the program in which it is traced; a function is code, a
    hashable one. The memory of the last `donated` operands is that of results: they are gone then.
    """
    leaves, treedef = jax.tree.flatten(operands)
    scope = scope_of(A)
    if is_traced((A, leaves)):
        with scope.entered(), full_precision():
            return function(A, *operands)
    flat = Flat(A, scope)
    with scope.entered():
        leaves = [jnp.asarray(leaf) for leaf in leaves]
    call = _OfLeaves(function, treedef, len(jax.tree.leaves(operands[len(operands) - donated :])))
    with one_blas_thread():
        return jax.block_until_ready(concrete(lambda: flat.call(call, *leaves)))


def differentiated(function, algorithm, A, *operands):
    """`function(algorithm, A, *operands)`; what is traced by one jit for each structure, with derivatives.

    An algorithm is code of linops; a user's function is a part of A, as a `Function`.
    """
    if not is_traced((A, operands)):
        return function(algorithm, A, *operands)
    return jitted(function, algorithm, (A, *operands), scope_of(A))


@dataclasses.dataclass(frozen=True)
class _OfLeaves:
    """A function of trees as one of their leaves, of which the last ones are `donated`."""

    function: Callable
    treedef: jax.tree_util.PyTreeDef
    donated: int

    def __call__(self, A, *leaves):
        return self.function(A, *self.treedef.unflatten(leaves))


def scope_of(A):
    """What is computed in, of an operator or a tuple of them: on an explicit mesh that its arrays lie on.

    There a program may take none of these arrays, the beginning of a solver say, and place what was given on the host.
    """
    scope = Scope.around([operator._scope for operator in operators_of(A)])
    if scope.mesh is not None:
        return scope
    arrays = (leaf for leaf in jax.tree.leaves(A) if isinstance(leaf, jax.Array) and not is_traced(leaf))
    mesh = next((leaf.sharding.mesh for leaf in arrays if jax.typeof(leaf).sharding.mesh.explicit_axes), None)
    return scope if mesh is None else dataclasses.replace(scope, mesh=mesh)


def operators_of(A):
    """The operators in a tree of them."""
    return [
        leaf for leaf in jax.tree.leaves(A, is_leaf=lambda a: isinstance(a, LinearMap)) if isinstance(leaf, LinearMap)
    ]


@dataclasses.dataclass(frozen=True)
class _Method:
    """A method of an algorithm, as a function that is code."""

    algorithm: Any
    name: Callable

    def __call__(self, A, *operands):
        return self.name(self.algorithm, A, *operands)


def _begin(algorithm, A, *operands):
    return jnp.zeros((), jnp.int32), algorithm.begin(A, *operands)


def _advance(algorithm, A, until, state):
    """Steps until the algorithm is done, or so many were made in all."""

    def goes_on(state):
        steps, inner = state
        return (steps < until) & ~algorithm.done(A, inner)

    def step(state):
        steps, inner = state
        return steps + 1, algorithm.step(A, inner)

    return jax.lax.while_loop(goes_on, step, state)


def _apart(state, given):
    """A state of arrays that are its own, each once: their memory is that of the next state."""
    seen = {id(leaf) for leaf in jax.tree.leaves(given)}

    def own(leaf):
        is_own = is_traced(leaf) or id(leaf) not in seen
        seen.add(id(leaf))
        return leaf if is_own else jnp.copy(leaf)

    return jax.tree.map(own, state)


def _is_done(algorithm, A, state):
    return algorithm.done(A, state[1])


def iterate(algorithm, A, *operands, max_steps=MOST_STEPS, watch=None, every=None, state=None):
    """The last state of an algorithm: done, after `max_steps`, or stopped by the one who looks.

    `watch(state)` sees the state between chunks of steps, of `every` many where that is given, says True to stop, and
    changes no number: the same program runs with it and without. `watch.most(steps, state)` is how many steps it allows
    next, after so many. A `state` from before goes on where it was.
    """
    begin, advance, is_done = (_Method(algorithm, f) for f in (_begin, _advance, _is_done))
    state = compute(begin, A, *operands) if state is None else (jnp.int32(0), state)
    state = _apart(state, (A, operands))
    if watch is None or is_traced(state):
        return compute(advance, A, jnp.int32(max_steps), state, donated=1)[1]
    steps, size = 0, every or 1
    while steps < max_steps and not compute(is_done, A, state):
        start, before = time.perf_counter(), steps
        steps = min(steps + size, max_steps)
        state = compute(advance, A, jnp.int32(steps), state, donated=1)
        if watch(state[1]):
            break
        seconds = time.perf_counter() - start
        seconds = of_all(seconds)[0] if spans(state) else seconds
        if every is not None:
            continue
        size = 2 * size if seconds < CHUNK_SECONDS / 2 else max(1, size // 2) if seconds > 2 * CHUNK_SECONDS else size
        size = min(size, watch.most(steps - before, state))
    return state[1]


def finished(algorithm, finish, A, *operands):
    """`finish(A, state)` of the last state, by a function that is code: all in one program."""
    return compute(_Whole(algorithm, finish), A, *operands)


@dataclasses.dataclass(frozen=True)
class _Whole:
    algorithm: Any
    finish: Callable

    def __call__(self, A, *operands):
        _, state = _advance(self.algorithm, A, MOST_STEPS, _begin(self.algorithm, A, *operands))
        return self.finish(A, state)


def maybe(condition, change, x):
    """`change(x)` or x, in the memory of x: a branch would copy it."""
    return jax.lax.while_loop(
        lambda pair: pair[0], lambda pair: (jnp.zeros((), bool), change(pair[1])), (condition, x)
    )[1]
