"""Between a user's trees and SciPy's vectors: points, gradients, bounds, callbacks, results."""

import dataclasses
import functools
import inspect
import math
import numbers

import jax
import numpy as np
from scipy.optimize import Bounds, OptimizeResult

from linops.arrays import brief
from linops.processes import gathered
from linops.products import is_traced
from linops.realify import join
from linops.space import Space


def require_outside(what, on_device, traced):
    """Refuse a function of tracers: what is SciPy's runs on the host."""
    if is_traced(traced):
        raise TypeError(
            f"{what} got a function, point or args of a jit, vmap or grad in progress, where SciPy's algorithms do not "
            f"run; expected arrays: linops.optimize.{on_device} runs there"
        )


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Trees like one that a user gave, as NumPy vectors of a Space; of complex numbers, [Re, Im].

    What comes back is NumPy's where the user's arrays were, and of the device elsewhere.
    """

    space: Space
    on_device: tuple[bool, ...]  # for each leaf

    @classmethod
    def like(cls, given, space):
        return cls(space, tuple(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(given)))

    @functools.cached_property
    def _shape(self):
        return (self.space.size,)

    def vector(self, tree):
        """The vector of an element of the Space, in arrays of the device."""
        leaves = [np.asarray(gathered(leaf)).ravel() for leaf in jax.tree.leaves(tree)]
        return np.concatenate(leaves).astype(self.space.dtype)

    def tree(self, vector, dtype=None):
        """A tree as the user gave one, of a vector; of its dtypes, unless others are asked for."""
        space, ends = self.space, np.cumsum([math.prod(shape) for shape in self.space.shapes])
        parts = zip(np.split(np.asarray(vector), ends[:-1]), space.shapes, space.dtypes, strict=True)
        leaves = [part.reshape(shape).astype(dtype or own) for part, shape, own in parts]
        tree = space.treedef.unflatten(leaves)
        with space.scope():
            leaves, treedef = jax.tree.flatten(join(tree, space.paired) if space.paired else tree)
            put = [jax.numpy.asarray if on_device else np.array for on_device in self.on_device]
            return treedef.unflatten([to(leaf) for to, leaf in zip(put, leaves, strict=True)])

    def narrowed(self, vector):
        """A vector of SciPy's, in the dtype of the Space, and its bytes; points that round to one are one."""
        vector = np.asarray(vector)
        if vector.dtype == self.space.dtype and vector.shape == self._shape:
            return vector.tobytes()
        if vector.shape != (self.space.size,):
            raise ValueError(
                f"got a point of shape {vector.shape}, expected a vector of shape ({self.space.size},), as .x0 is one; "
                "linops.optimize.minimize takes trees"
            )
        with np.errstate(over="ignore", under="ignore"):
            return vector.astype(self.space.dtype, copy=False).tobytes()

    def bounds(self, given, *, pairs):
        """SciPy's Bounds for vectors, of those that a user gives for trees, or None.

        `pairs` says that SciPy reads a sequence as one of pairs (lower, upper), as its `minimize` does.
        """
        if given is None:
            return None
        if isinstance(given, Bounds):
            return Bounds(self._broadcast(given.lb), self._broadcast(given.ub), given.keep_feasible)
        given = list(given) if isinstance(given, zip) else given
        if pairs and self.space.is_flat and self._are_pairs(given):
            given = [[-np.inf if a is None else a for a in column] for column in zip(*given, strict=True)]
            given[1] = [np.inf if b is None or b == -np.inf else b for b in given[1]]
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(
                f"got bounds {brief(given)}, expected (lower, upper), each a number, None or a tree like x0, or "
                "scipy.optimize.Bounds" + (", or for a vector x0 a pair for each entry" if pairs else "")
            )
        return Bounds(self.bound(given[0], "lower bounds", -np.inf), self.bound(given[1], "upper bounds", np.inf))

    def _are_pairs(self, given):
        """Whether bounds are as SciPy has them, a pair for each entry; a pair of arrays is (lower, upper)."""
        if isinstance(given, np.ndarray | jax.Array):
            return given.shape == (self.space.size, 2)
        if not (isinstance(given, list | tuple) and len(given) == self.space.size):
            return False
        if self.space.size == 2 and all(isinstance(entry, list) for entry in given):
            raise ValueError(
                f"got bounds {brief(given)} for two parameters, expected what is not either (lower, upper) or a pair "
                "for each entry: lower and upper as arrays, pairs as tuples, or scipy.optimize.Bounds"
            )
        return all(isinstance(entry, tuple | list) for entry in given)

    def bound(self, bound, what, default):
        """The vector of a bound: for all entries, or a tree like the point whose leaves spread out."""
        if bound is None or isinstance(bound, numbers.Real):
            return np.full(self.space.size, default if bound is None else float(bound))
        space = self.space.paired or self.space
        bound = np.asarray(bound) if space.is_flat else bound
        leaves, treedef = jax.tree.flatten(bound)
        if treedef != space.treedef:  # None is a leaf that has no bound
            leaves, treedef = jax.tree.flatten(bound, is_leaf=lambda node: node is None)
            leaves = [default if leaf is None else leaf for leaf in leaves]
        try:
            if treedef != space.treedef:
                raise ValueError(f"a tree of structure {treedef}")
            pieces = [np.broadcast_to(np.asarray(leaf), s) for leaf, s in zip(leaves, space.shapes, strict=True)]
        except ValueError as error:
            missing = "" if default is None else '; None stands for what has no bound, as {"a": None, "b": 0.0}'
            raise ValueError(
                f"got {what} that are not like x0, {error}; expected a number, or a tree of structure "
                f"{space.treedef} with leaves that broadcast to shapes {list(space.shapes)}{missing}"
            ) from error
        if self.space.paired:
            raise TypeError(
                f"got {what} as a tree for complex parameters, expected numbers, for real and imaginary parts "
                "alike: bound a pair of real and imaginary parts instead"
            )
        return np.concatenate([piece.ravel() for piece in pieces]).astype(float)

    def _broadcast(self, bound):
        bound = np.asarray(bound)
        if bound.dtype == object or bound.shape not in [(), (1,), (self.space.size,)]:
            raise ValueError(
                f"got scipy.optimize.Bounds of shape {bound.shape}, expected a number or a vector of "
                f"{self.space.size} entries, as the vector of x0 has; bounds as trees are a pair (lower, upper)"
            )
        return np.broadcast_to(bound, self.space.size).astype(float)

    def callback(self, callback):
        """A user's callback, SciPy's of trees: of x, of x and the state, or of `intermediate_result`."""
        if callback is None:
            return None
        names = list(inspect.signature(callback).parameters)

        def of_vectors(intermediate_result):
            result = intermediate_result
            result = OptimizeResult(result) if isinstance(result, OptimizeResult) else OptimizeResult(x=result)
            result.x = self.tree(result.x)
            if names == ["intermediate_result"]:
                return callback(intermediate_result=result)
            return callback(result.x, result) if len(names) == 2 else callback(result.x)

        return of_vectors
