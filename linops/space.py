"""Space: a pytree of arrays seen as a flat vector space."""

import contextlib
import dataclasses
import functools
import math
import os
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from linops.fork import require_threads

_PACKAGE = os.path.dirname(__file__)


class PrecisionWarning(UserWarning):
    """Numbers were narrowed, float64 to float32 say, before a computation."""


@dataclasses.dataclass(frozen=True)
class Space:
    """The vector space of all pytrees with a given structure, shapes and dtypes.

    A tree is flattened leaf by leaf in pytree order, each leaf in C order, as
    `jax.flatten_util.ravel_pytree` does. `dtype` is the promoted dtype of the leaves.
    A Space holds no arrays: it is hashable, and static under `jit`.

    >>> space = Space.of({"a": jnp.zeros(2), "b": jnp.zeros((2, 2))})
    >>> space.size
    6
    >>> space.unravel(jnp.arange(6.0))["b"].tolist()
    [[2.0, 3.0], [4.0, 5.0]]
    """

    treedef: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    paired: "Space | None" = None  # the complex Space whose elements are here as pairs (Re, Im)

    @classmethod
    def of(cls, tree):
        """The space in which `tree`, of real or complex floating-point arrays, lives."""
        return space_of(tree, "the tree")

    @classmethod
    def flat(cls, size, dtype):
        """The space of vectors of shape (size,)."""
        return cls(jax.tree.structure(0), ((size,),), (np.dtype(dtype),))

    @property
    def layout(self):
        """What an element looks like, without what it stands for."""
        return self.treedef, self.shapes, self.dtypes

    @functools.cached_property
    def size(self):
        return sum(map(math.prod, self.shapes))

    @functools.cached_property
    def dtype(self):
        with jax.numpy_dtype_promotion("standard"):
            return np.dtype(functools.reduce(jnp.promote_types, self.dtypes))

    @functools.cached_property
    def is_flat(self):
        """Whether an element is one vector, not a tree or a matrix."""
        return self.treedef == jax.tree.structure(0) and len(self.shapes[0]) == 1

    @functools.cached_property
    def struct(self):
        """The shapes and dtypes of an element, as a tree of `jax.ShapeDtypeStruct`."""
        return self.treedef.unflatten(map(jax.ShapeDtypeStruct, self.shapes, self.dtypes))

    def ravel(self, tree):
        """The vector, of shape (size,), of an element.

        In a Space of pairs (Re, Im) a complex tree stands for its pair.
        """
        tree = self._element(tree)
        paths, _ = jax.tree_util.tree_flatten_with_path(tree)
        for path, leaf in paths:
            _require_castable(leaf, self.dtype, "the tree" + jax.tree_util.keystr(path))
        with self.scope():
            leaves = [jnp.ravel(leaf).astype(self.dtype) for _, leaf in paths]
            return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)

    def unravel(self, vector):
        """The element with a given vector of shape (size,)."""
        if jnp.shape(vector) != (self.size,):
            raise ValueError(f"got an array of shape {jnp.shape(vector)}, expected a vector of shape ({self.size},)")
        _require_castable(vector, self.dtype, "the vector")
        with self.scope():
            vector = jnp.asarray(vector)
            parts = [vector] if len(self.shapes) == 1 else jnp.split(vector, self._ends[:-1])
            leaves = [_leaf(part, s, d) for part, s, d in zip(parts, self.shapes, self.dtypes, strict=True)]
        return self.treedef.unflatten(leaves)

    def leaves(self, tree, what="the tree"):
        """The leaves of an element, as device arrays of the dtypes of the space; narrowing warns."""
        tree = self._element(tree)
        paths, _ = jax.tree_util.tree_flatten_with_path(tree)
        with self.scope():
            return [
                _as_dtype(leaf, dtype, what + jax.tree_util.keystr(path))
                for (path, leaf), dtype in zip(paths, self.dtypes, strict=True)
            ]

    def _element(self, tree):
        """The tree, or the pair that it stands for, of the structure and shapes of this Space."""
        leaves, treedef = jax.tree.flatten(tree)
        shapes = tuple(map(jnp.shape, leaves))
        if (treedef, shapes) != (self.treedef, self.shapes):
            if self.paired is not None:
                with self.scope():
                    return pair_of(self.paired.treedef.unflatten(self.paired.leaves(tree)))
            raise ValueError(
                f"got a pytree of structure {treedef} and shapes {list(shapes)}, expected one like the point's: "
                f"{self.treedef} and shapes {list(self.shapes)}"
            )
        return tree

    def point(self, tree, what="x"):
        """An element, given as a tree or as its vector of shape (size,): on the device, in the dtypes of the space."""
        if not self.is_flat and isinstance(tree, np.ndarray | jax.Array) and tree.shape == (self.size,):
            vector = Space.flat(self.size, self.dtype)
            tree = self.unravel(vector.point(tree, what))
        return self.treedef.unflatten(self.leaves(tree, what))

    def locate(self, index):
        """Where entry `index` of the vector lies in the tree: a key path with its index, such as "['w'][2, 0]"."""
        leaf = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[leaf] - math.prod(self.shapes[leaf])
        path = jax.tree_util.tree_flatten_with_path(self.struct)[0][leaf][0]
        where = np.unravel_index(index - start, self.shapes[leaf])
        return jax.tree_util.keystr(path) + (str([int(i) for i in where]) if where else "")

    def scope(self):
        """The context to compute in: with float64 enabled, where a leaf has it."""
        return float64_if(self.wide)

    @functools.cached_property
    def wide(self):
        """Whether a leaf is of double precision."""
        return any(jnp.finfo(dtype).bits == 64 for dtype in self.dtypes)

    @functools.cached_property
    def _ends(self):
        return np.cumsum([math.prod(shape) for shape in self.shapes])


def space_of(tree, what):
    """The Space of a tree of arrays, or of shapes and dtypes; `what` names it in errors."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    if not leaves:
        raise TypeError(f"{what} holds no arrays: got {tree!r}, expected a pytree with at least one array")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{what}{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, expected floating point, since a "
                "derivative is taken there; convert it with .astype(float), or pass what is not differentiated "
                "through args= or a closure"
            )
    shapes = tuple(tuple(leaf.shape) for _, leaf in leaves)
    return Space(treedef, shapes, tuple(np.dtype(leaf.dtype) for _, leaf in leaves))


def pair_of(tree):
    """The pair (Re, Im) of a tree; where a leaf is real, Im has None."""
    return jax.tree.map(np.real, tree), jax.tree.map(lambda z: np.imag(z) if np.iscomplexobj(z) else None, tree)


def to_device(leaf, what):
    """A JAX array that shares no memory with `leaf`, which SciPy may overwrite; narrowing warns."""
    require_threads()
    if isinstance(leaf, jax.core.Tracer):
        _require_alive(leaf, what)
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asanyarray(leaf)
    refuse_masked(array, what)
    array = np.asarray(array)
    if not is_number(array.dtype):
        raise TypeError(f"{what} is {leaf!r}; expected an array or a number")
    dtype = _device_dtype(array.dtype)
    if isinstance(leaf, np.ndarray | np.generic) and loses_precision(array.dtype, dtype):
        warn_narrowing(what, array.dtype, dtype)
    narrowed = array.astype(dtype)
    if array.dtype.kind in "iu" and not np.array_equal(narrowed, array):
        raise ValueError(
            f"{what} holds integers beyond {dtype}, expected ones within; convert it to floating point, or call "
            'jax.config.update("jax_enable_x64", True) before'
        )
    return jax.device_put(narrowed)  # a copy already: astype made it, and jnp.array would compile for each new shape


def refuse_masked(array, what):
    """Refuse a masked array with masked entries, whose hidden numbers NumPy would hand out."""
    if isinstance(array, np.ma.MaskedArray) and array.mask.any():
        raise ValueError(f"{what} has masked entries, expected numbers in all; fill them with .filled(value)")


def float64_if(needed):
    """A context to compute in, with float64 enabled if it is needed: what was made with it keeps it where it is off."""
    require_threads()
    return jax.enable_x64(True) if needed and not jax.config.jax_enable_x64 else contextlib.nullcontext()


def _as_dtype(leaf, dtype, what):
    if (
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, jax.core.Tracer)
        and leaf.dtype == dtype
        and not leaf.weak_type
    ):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "iu":  # 64 bits, say, where JAX has 32
        leaf = leaf.astype(dtype)
    leaf = to_device(leaf, what)
    _require_castable(leaf, dtype, what)
    if loses_precision(leaf.dtype, dtype):
        warn_narrowing(what, leaf.dtype, dtype)
    return leaf.astype(dtype)


def _leaf(part, shape, dtype):
    """A part of a vector as a leaf; a real one, of a Space with complex ones, has no imaginary part to lose."""
    if is_complex(part.dtype) and not is_complex(dtype):
        if not isinstance(part, jax.core.Tracer) and jnp.any(part.imag):
            raise ValueError(f"got a vector with imaginary parts where a leaf is {dtype}, expected real numbers there")
        part = part.real
    return part.reshape(shape).astype(dtype)


def _require_castable(leaf, dtype, what):
    refuse_masked(leaf, what)
    given = jnp.result_type(leaf)
    if not (is_number(given) and jnp.can_cast(given, dtype, "same_kind")):
        raise TypeError(f"{what} has dtype {given}, expected {dtype}")


def _device_dtype(dtype):
    """What JAX holds numbers of a NumPy dtype in: native, and double precision for long double."""
    widest = np.dtype({"f": np.float64, "c": np.complex128}.get(dtype.kind, dtype))
    return jax.dtypes.canonicalize_dtype(min(dtype.newbyteorder("="), widest, key=lambda dtype: dtype.itemsize))


def _require_alive(tracer, what):
    """Refuse a tracer of a jit, vmap or grad that has ended: any operation on it fails."""
    try:
        jnp.reshape(tracer, (1, *tracer.shape))
    except jax.errors.UnexpectedTracerError as error:
        raise TypeError(
            f"{what} is a traced value that has left the jit, vmap or grad in which it was made; expected an array: "
            "return it from the transformed function, or build the operator inside"
        ) from error


def loses_precision(source, target):
    """Whether `target` keeps fewer digits than `source`; integers count as exact at any float width."""
    return jnp.issubdtype(source, jnp.inexact) and jnp.finfo(source).bits > jnp.finfo(target).bits


def warn_narrowing(what, source, target):
    """Say, on the line that called into linops, that `what` is narrowed and how to avoid it."""
    remedy = (
        "build the operator at a float64 point to compute in float64"
        if jax.config.jax_enable_x64
        else 'call jax.config.update("jax_enable_x64", True) before making arrays to compute in float64'
    )
    message = f"{what} is {source} and is narrowed to {target}; {remedy}"
    depth, frame = 1, sys._getframe()
    while frame.f_back and os.path.dirname(frame.f_code.co_filename).startswith(_PACKAGE):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, PrecisionWarning, stacklevel=depth)


def is_number(dtype):
    """Whether JAX computes with a dtype: not with text, dates, objects and random keys."""
    is_timedelta = jnp.issubdtype(dtype, np.timedelta64)  # to NumPy an integer
    return (jnp.issubdtype(dtype, jnp.number) and not is_timedelta) or jnp.issubdtype(dtype, jnp.bool_)


def is_complex(dtype):
    """Whether a dtype is complex."""
    return jnp.issubdtype(dtype, jnp.complexfloating)


def real_dtype(dtype):
    """The dtype of real and imaginary parts."""
    return np.dtype(jnp.finfo(dtype).dtype)


def complex_dtype(dtype):
    """The complex dtype that holds the numbers of a real or complex one."""
    return np.dtype(np.complex128 if jnp.finfo(dtype).bits == 64 else np.complex64)
