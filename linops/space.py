"""Space: a pytree of arrays seen as a flat vector space."""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import as_host, as_leaf, float64_if, require_castable
from linops.precision import SaidTogether, is_complex, loses_precision, lowest, real_dtype, say_digits

MOST_PATHS = 20  # that an error lists


@dataclasses.dataclass(frozen=True)
class Space:
    """The vector space of all pytrees with a given structure, shapes and dtypes.

    A tree is flattened leaf by leaf in pytree order, the keys of a dict sorted, each leaf in C order, as
    `jax.flatten_util.ravel_pytree` does; `slice` says where a leaf lies. `dtype` is the promoted dtype of the leaves.
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

    def __reduce__(self):
        return _unpickle, (skeleton(self.treedef), self.shapes, self.dtypes, self.paired)

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
        """The vector, of shape (size,), of an element; what narrows a leaf is said.

        In a Space of pairs (Re, Im) a complex tree stands for its pair.
        """
        with self.scope():
            leaves = [
                jnp.ravel(as_whole(leaf))
                for leaf in self._leaves(self._element(tree), [self.dtype] * len(self.dtypes), "the tree")
            ]
            return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)

    def unravel(self, vector):
        """The element with a given vector of shape (size,); digits that a leaf does not hold are said."""
        if jnp.shape(vector) != (self.size,):
            raise ValueError(f"got an array of shape {jnp.shape(vector)}, expected a vector of shape ({self.size},)")
        vector = vector if isinstance(vector, jax.Array) else as_host(vector, "the vector")
        require_castable(vector.dtype, self.dtype, "the vector")
        with self.scope():
            split = jnp.split if isinstance(vector, jax.Array) else np.split
            parts = [vector] if len(self.shapes) == 1 else split(vector, self._ends[:-1])
            leaves = [_leaf(part, s, d) for part, s, d in zip(parts, self.shapes, self.dtypes, strict=True)]
        return self.treedef.unflatten(leaves)

    def slice(self, path):
        """Where a leaf or a subtree lies in the vector: a `slice`, of a path of keys such as "layers/0/w".

        The keys of a dict are sorted, as JAX sorts them, whatever order the dict has.

        >>> space = Space.of({"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)})
        >>> space.slice("b"), space.slice("w")
        (slice(0, 2, None), slice(2, 8, None))
        """
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(self.struct)[0]]
        nodes = {keys[:k] for keys in paths for k in range(len(keys) + 1) if name_of(keys[:k]) == path}
        if len(nodes) != 1:
            raise ValueError(
                f"got the path {path!r}, which {len(nodes)} parts of the tree have; expected that of one leaf, or of "
                f"what holds some: {listed(paths)}"
            )
        (node,) = nodes
        inside = [i for i, keys in enumerate(paths) if keys[: len(node)] == node]
        ends = [0, *map(int, self._ends)]
        return slice(ends[inside[0]], ends[inside[-1] + 1])

    def leaves(self, tree, what="the tree"):
        """The leaves of an element, as device arrays of the dtypes of the space; narrowing warns."""
        return self._leaves(self._element(tree), self.dtypes, what)

    def _leaves(self, tree, dtypes, what):
        paths, _ = jax.tree_util.tree_flatten_with_path(tree)
        with self.scope(), SaidTogether():
            return [
                as_leaf(leaf, dtype, what + jax.tree_util.keystr(path))
                for (path, leaf), dtype in zip(paths, dtypes, strict=True)
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

    @functools.cached_property
    def _is_of_part(self):
        """Whether there is None in the place of what trees have beside."""
        return jax.tree.structure(self.struct, is_leaf=lambda node: node is None) != self.treedef

    def within(self, tree):
        """The element within a tree that has more, where this Space is of a part of trees; any other tree as it is."""
        if not self._is_of_part:
            return tree
        found = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(self.struct)[0]]
        if [jnp.shape(found[path]) if path in found else None for path in paths] != list(self.shapes):
            return tree
        return self.treedef.unflatten([found[path] for path in paths])

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

    # The vector space, in traceable JAX: elements are trees of arrays of its shapes and dtypes. Nothing is flattened,
    # so that a leaf stays where it lies on a mesh.

    def zeros(self):
        """The zero element."""
        with self.scope():
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.struct)

    def draw(self, key):
        """An element of independent normal entries of mean 0 and variance 1, complex ones circular.

        >>> Space.flat(3, np.complex64).draw(jax.random.key(0)).dtype
        dtype('complex64')
        """
        keys = jax.random.split(key, len(self.shapes))
        with self.scope():
            return self.treedef.unflatten(map(jax.random.normal, keys, self.shapes, self.dtypes))

    def add(self, u, v):
        """The sum u + v."""
        with self.scope():
            return jax.tree.map(operator.add, u, v)

    def scale(self, c, v):
        """The product c v with a scalar c, in the dtypes of the space."""
        if is_complex(jnp.result_type(c)) and not all(map(is_complex, self.dtypes)):
            raise TypeError(f"scale got a complex number and an element with real leaves: {c!r}, expected a real one")
        with self.scope():
            return jax.tree.map(lambda leaf: (c * leaf).astype(leaf.dtype), v)

    def inner(self, u, v):
        """The inner product of u and v, conjugate in u, a scalar of `dtype`.

        >>> space = Space.of({"a": jnp.zeros(2), "b": jnp.zeros(())})
        >>> float(space.inner({"a": jnp.array([1.0, 2.0]), "b": 3.0}, {"a": jnp.ones(2), "b": 1.0}))
        6.0
        """
        with self.scope():
            leaves = zip(jax.tree.leaves(self._element(u)), jax.tree.leaves(self._element(v)), strict=True)
            return functools.reduce(operator.add, (contracted(u, v, jnp.ndim(v), self.dtype) for u, v in leaves))

    def norm(self, v):
        """The Euclidean norm of v, a real scalar; it neither overflows nor underflows where the result does not."""
        real = real_dtype(self.dtype)
        with self.scope():
            wide = jnp.promote_types(real, jnp.float32)
            sizes = [abs(leaf).astype(wide) for leaf in jax.tree.leaves(self._element(v))]
            largest = functools.reduce(jnp.maximum, (jnp.max(size, initial=0) for size in sizes))
            # By a number below the smallest normal one XLA would divide as by zero.
            scale = jnp.where((largest >= jnp.finfo(wide).tiny) & jnp.isfinite(largest), largest, 1)
            squares = functools.reduce(operator.add, (jnp.sum((size / scale) ** 2) for size in sizes))
            return (scale * jnp.sqrt(squares)).astype(real)

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


def contracted(u, v, axes, dtype):
    """The sum of conj(u) v over their last `axes` axes, in all digits; what remains are the others of u, then of v.

    On an explicit mesh a product has to say where it lies: here all of it on each device.
    """
    laid = [sharding for sharding in (jax.typeof(a).sharding for a in (u, v)) if any(sharding.spec)]
    whole = _replicated(laid[0]) if laid else None
    pair = jnp.conj(u), v
    if laid and jnp.ndim(v) == axes:
        pair = pair[::-1]  # JAX cannot lay a product of rows and, in a vmap, each of many vectors; the other way it can
    last = [list(range(jnp.ndim(a) - axes, jnp.ndim(a))) for a in pair]
    return jnp.tensordot(*pair, last, precision="highest", preferred_element_type=dtype, out_sharding=whole)


def as_whole(leaf):
    """An array that is laid along explicit axes of a mesh as a whole on each device: a vector of many is no other."""
    sharding = jax.typeof(leaf).sharding
    return jax.sharding.reshard(leaf, _replicated(sharding)) if any(sharding.spec) else leaf


def placed(v, like):
    """A tree on an explicit mesh laid as another one, of arrays or their types; elsewhere XLA places it."""

    def of_leaf(leaf, other):
        sharding = other.sharding if isinstance(other, jax.ShapeDtypeStruct) else jax.typeof(other).sharding
        is_there = sharding is None or sharding.mesh.empty or jax.typeof(leaf).sharding == sharding
        return leaf if is_there else jax.sharding.reshard(leaf, sharding)

    return jax.tree.map(of_leaf, v, like)


def _replicated(sharding):
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


def inner_products(space, basis, v):
    """The inner products of all rows with v, as an array of shape (rows,): Vᴴ v."""
    products = map(
        lambda leaf, part: contracted(leaf, part, part.ndim, space.dtype), jax.tree.leaves(basis), jax.tree.leaves(v)
    )
    return sum(products, start=jnp.zeros((), space.dtype))


def combination(basis, coefficients):
    """The sum of the rows, each times its coefficient."""
    return jax.tree.map(
        lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, axes=1, precision="highest"), basis
    )


def length(x, axis=None):
    """The Euclidean norms of an array along an axis; they neither overflow nor underflow where the result does not."""
    sizes = jnp.abs(x)
    largest = jnp.max(sizes, axis, keepdims=True, initial=0)
    # By a number below the smallest normal one XLA would divide as by zero.
    scale = jnp.where((largest >= jnp.finfo(sizes.dtype).tiny) & jnp.isfinite(largest), largest, 1)
    return jnp.squeeze(scale, axis) * jnp.sqrt(jnp.sum((sizes / scale) ** 2, axis))


def skeleton(treedef):
    """A tree of zeros, to be pickled in place of its structure: of equinox's modules that does not come back whole."""
    return treedef.unflatten([0] * treedef.num_leaves)


def _unpickle(tree, *fields):
    return Space(jax.tree.structure(tree), *fields)


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


def _leaf(part, shape, dtype):
    """A part of a vector as a leaf; a real one, of a Space with complex ones, has no imaginary part to lose."""
    if is_complex(part.dtype) and not is_complex(dtype):
        if not isinstance(part, jax.core.Tracer) and np.any(np.imag(part)):
            raise ValueError(f"got a vector with imaginary parts where a leaf is {dtype}, expected real numbers there")
        part = part.real
    say_digits("the vector", part, dtype)
    return jnp.asarray(part.reshape(shape).astype(dtype))


def name_of(keys):
    """A path of keys as it is written, "layers/0/w"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def listed(paths):
    """Paths of keys, for an error."""
    return ", ".join(map(repr, map(name_of, paths[:MOST_PATHS]))) + ", ..." * (len(paths) > MOST_PATHS)


def common(spaces):
    """The one to combine Spaces of one size on: rather a tree than flat, of the lowest precision of all."""
    dtype_of_all = lowest(space.dtype for space in spaces)
    space = min(spaces, key=lambda space: space.is_flat)
    dtypes = tuple(dtype_of_all if loses_precision(dtype, dtype_of_all) else dtype for dtype in space.dtypes)
    return space if dtypes == space.dtypes else Space(space.treedef, space.shapes, dtypes)


def pair_of(tree):
    """The pair (Re, Im) of a tree; where a leaf is real, Im has None."""
    return jax.tree.map(np.real, tree), jax.tree.map(lambda z: np.imag(z) if np.iscomplexobj(z) else None, tree)
