"""Functions of the points of a Space as functions of NumPy vectors, in their own precision and in double precision."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from linops.precision import is_complex
from linops.program.jaxpr.double import evaluate, wide
from linops.program.settings import Scope
from linops.program.staged import Flat
from linops.space import Space


def value_at(function, x):
    """The value of a Function, or of one over data."""
    return function(x)


DOUBLE_EPS = float(np.finfo(float).eps)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("owner",), meta_fields=("function", "space"))
@dataclasses.dataclass(frozen=True)
class Values:
    """The map x -> function(owner, x) of elements of a Space, called with the vector of x in double precision."""

    function: Callable
    owner: object
    space: Space

    def of_leaves(self, *leaves):
        return jax.tree.leaves(self.function(self.owner, self.space.treedef.unflatten(leaves)))

    def __call__(self, x):
        with self.space.scope():
            return widened(Flat(self, Scope(self.space.wide)).call(Values.of_leaves, *split(self.space, x)))


@functools.partial(jax.tree_util.register_dataclass, data_fields=("single",), meta_fields=("x64",))
@dataclasses.dataclass(frozen=True)
class Doubled:
    """The same map, traced as it was (`x64` says whether float64 was enabled) and computed in double precision."""

    single: Values
    x64: bool

    @functools.cached_property
    def space(self):
        space = self.single.space
        return Space(space.treedef, space.shapes, tuple(map(wide, space.dtypes)))

    def of_leaves(self, *leaves):
        held, treedef = jax.tree.flatten(self.single)

        def traced(held, leaves):
            return treedef.unflatten(held).of_leaves(*leaves)

        structs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in held]
        with jax.enable_x64(self.x64):
            closed = jax.make_jaxpr(traced)(structs, jax.tree.leaves(self.single.space.struct))
        return evaluate(closed, *held, *leaves)

    def __call__(self, x):
        with jax.enable_x64(True):
            return widened(Flat(self, Scope(True)).call(Doubled.of_leaves, *split(self.space, x)))


def product(A, x):
    """The product of an operator with an element of its domain, as a function for `Values`."""
    return A._mv(x)


def in_double(values, x, eps):
    """The Values at x in double precision, as a function of vectors, or None where they cannot be computed so."""
    if eps <= DOUBLE_EPS:
        return None
    try:
        with values.space.scope():
            doubled = Doubled(values, jax.config.jax_enable_x64)
        return doubled if np.isfinite(doubled(x)).all() else None
    except Exception:  # whatever JAX says of what it cannot do in double precision, or a function of what it is given
        return None


def widened(tree):
    """The vector of a tree, a NumPy array in double precision, which adds no rounding of its own."""
    leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    dtype = complex if any(is_complex(leaf.dtype) for leaf in leaves) else float
    return np.concatenate([np.zeros(0, dtype), *(leaf.astype(dtype) for leaf in leaves)])


def split(space, vector):
    """The leaves, NumPy arrays of the dtypes of the Space, of a vector."""
    ends = np.cumsum([int(np.prod(shape)) for shape in space.shapes])[:-1]
    parts = np.split(vector, ends)
    return [p.reshape(s).astype(d) for p, s, d in zip(parts, space.shapes, space.dtypes, strict=True)]
