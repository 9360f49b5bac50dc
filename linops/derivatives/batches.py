"""What users hand over as data=: arrays that share an axis of examples, or batches of the host."""

import dataclasses
import math
import mmap
import numbers
import operator
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import brief, is_list_of_numbers, to_device
from linops.budget import RESIDUAL_SHARE, log, memory_budget
from linops.losses import REDUCTIONS
from linops.precision import SaidTogether
from linops.program.arguments import as_tuple
from linops.program.jaxpr.evaluate import struct
from linops.program.jaxpr.graph import live_bytes
from linops.program.over_data import OverData
from linops.program.sources import TUPLE, Examples, Stream
from linops.program.spread import Spread, can_be_spread, layout

TIMES = 4  # of the memory of a function, that of a product with its derivatives


@dataclasses.dataclass(frozen=True)
class Data:
    """Data as they were read: a tree of device arrays, or None, and the types of a batch, of the rest, and of all."""

    source: Examples | Spread | Stream
    arrays: Any
    batches: tuple  # trees of types, of a whole batch first
    rows: str | None = None  # what becomes of rows of values, where a function has one for each example
    is_free: bool = False  # whether the size of chunks is left to us

    def parts(self, operator):
        """The data of a model and of a loss, where each example is a pair; an operator says that it is not."""
        if not all(map(_is_pair, self.batches)):
            raise TypeError(
                f"{operator} got data whose batches are {brief(jax.tree.structure(self.batches[0]))}, "
                "expected pairs, (inputs, targets): f(x, inputs) and loss(outputs, targets)"
                f"{'; ' * bool(self._hint)}{self._hint}"
            )
        arrays = self.arrays or (None, None)
        return [
            dataclasses.replace(self, arrays=arrays[i], batches=tuple(batch[i] for batch in self.batches))
            for i in range(2)
        ]

    def of_examples(self, sums):
        """The same for a function with a row of values for each example; `sums` says that no loss reduces them."""
        return dataclasses.replace(self, rows="summed" if sums else "lost")

    def require_reduced(self, f, x, args, function):
        """Refuse a function that does not do over the examples of a batch what it should."""
        values, size = function.codomain, jax.tree.leaves(self.batches[0])[0].shape[0]
        if self.rows == "summed" and any(shape[:1] != (size,) for shape in values.shapes):
            raise TypeError(
                f"GaussNewton over data got f with values of shapes {list(values.shapes)} for {size} examples, "
                "expected a row of each value for each example"
            )
        if self.rows is None and values.shapes != ((),) and _follows_examples(f, x, self.batches[0], args, values):
            raise TypeError(
                f"got f over data with values of shapes {list(values.shapes)}, whose number follows that of examples; "
                "expected the mean or sum over the examples of a batch; for values of each example call the function "
                "with all data by args=, or take linops.GaussNewton"
            )

    def fitting(self, function):
        """The same data in chunks, where a product over all at once would not fit the memory budget; else None.

        Its intermediates are taken to be four times those of the function.
        """
        needed, budget = TIMES * live_bytes(function.program.graph), memory_budget(RESIDUAL_SHARE)
        if not self.is_free or needed <= budget or self.source.size == 1:
            return None
        size = max(1, self.source.count * budget // needed)
        log.debug(
            "a product over %d examples takes some %d bytes: %d are taken at once", self.source.count, needed, size
        )
        return self.in_chunks(size)

    def in_chunks(self, size):
        """The same data in chunks of another size."""
        if size == self.source.size:
            return self
        return dataclasses.replace(self, **_chunked(self.arrays, size, self.source), is_free=False)

    def traced(self, trace, x):
        """The functions of each kind of batch, by `trace(batch, placed)`, and these data as they are gone over.

        Each device goes over its own examples where it can, by a function that was traced as for one device.
        """
        try:
            return self._each_traced(trace, x)
        except Exception as error:
            if self._hint:
                error.add_note(self._hint)
            raise

    @property
    def _hint(self):
        """What to pass where a list of arrays was meant for one set of data, if it may have been."""
        is_meant = isinstance(getattr(self.source, "data", None), list) and jax.tree.structure(0) == self.source.treedef
        return f"data is a list of arrays: {TUPLE}" if is_meant else ""

    def _each_traced(self, trace, x):
        data = self._by_device()
        if data and can_be_spread(trace(batch=data.batches[0])[0], x, data.source, jax.tree.leaves(self.arrays)):
            *parts, whole = data.batches
            with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
                traced = [trace(batch=batch, placed=False) for batch in parts]
            return [*traced, trace(batch=whole)], data
        return [trace(batch=batch) for batch in self.batches], self

    def _by_device(self):
        """The same, where each device goes over its own examples in chunks; None where they do not lie so."""
        laid = None if self.source.is_of_host else layout(jax.tree.leaves(self.arrays))
        if laid is None or laid[-1] == 1 or self.source.size == self.source.count:
            return None
        *parts, whole = self.batches
        source = Spread(self.source.of_a_shard(), *laid)
        parts = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((s.shape[0] // source.shards, *s.shape[1:]), s.dtype), parts
        )
        return dataclasses.replace(self, source=source, batches=(*parts, whole))

    def like(self, other):
        """The same, gone over as in another source."""
        if other.is_of_host:
            return self
        data = self.in_chunks(other.size)
        return data._by_device() if isinstance(other, Spread) else data

    def over(self, functions, is_loss=False):
        """The function over data, of those that were traced for each of the batches."""
        if self.source.is_of_host:
            self.source.remember(functions[0])
        types = tuple(tuple(map(jax.typeof, jax.tree.leaves(batch))) for batch in self.batches)
        return OverData(tuple(functions), tuple(jax.tree.leaves(self.arrays)), types, self.source, is_loss)


def _is_pair(batch):
    """Whether there are inputs, and targets that are not None."""
    return isinstance(batch, tuple | list) and len(batch) == 2 and bool(jax.tree.leaves(batch[1]))


def _follows_examples(f, x, batch, args, values):
    """Whether a function has more values for one more example."""
    more = jax.tree.map(lambda s: jax.ShapeDtypeStruct((s.shape[0] + 1, *s.shape[1:]), s.dtype), batch)
    try:
        found = jax.eval_shape(lambda x, batch: f(x, batch, *as_tuple(args)), x, more)
    except Exception:  # of a function for batches of one size
        return False
    return tuple(leaf.shape for leaf in jax.tree.leaves(found)) != values.shapes and values.paired is None


def read(data, batch_size, reduction):
    """The Data that a user means, or None where there are none."""
    if isinstance(data, Data):
        return data
    if data is None:
        if batch_size is not None:
            raise ValueError(f"got batch_size={batch_size!r} without data=, expected both, f being f(x, batch)")
        return None
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"got reduction={reduction!r}, expected 'mean' or 'sum': what f itself does over the examples of a batch"
        )
    if batch_size is not None and not (isinstance(batch_size, numbers.Integral) and batch_size >= 1):
        raise ValueError(f"got batch_size={batch_size!r}, expected a number of examples >= 1")
    _require_arrays(data)
    is_mean = reduction == "mean"
    if not is_of_arrays(data):
        return _of_batches(data, batch_size, is_mean)
    leaves = jax.tree.leaves(data)
    count = _count(leaves)
    if any(isinstance(leaf, np.memmap) for leaf in leaves):
        return _of_disk(data, count, batch_size, is_mean)
    paths, treedef = jax.tree_util.tree_flatten_with_path(data)
    with SaidTogether():
        arrays = treedef.unflatten([to_device(leaf, f"data{jax.tree_util.keystr(path)}") for path, leaf in paths])
    laid = layout(jax.tree.leaves(arrays))
    source = Examples(count, count, is_mean, laid[-1] if laid else 1)
    chunked = _chunked(arrays, count if batch_size is None else operator.index(batch_size), source)
    return Data(arrays=arrays, **chunked, is_free=batch_size is None)


def _require_arrays(data):
    """Refuse what users have in the place of an array: the name of its file, and a list of its numbers."""

    def is_leaf(node):
        return isinstance(node, Iterator) or is_list_of_numbers(node)

    for path, leaf in jax.tree_util.tree_flatten_with_path(data, is_leaf=is_leaf)[0]:
        name = f"data{jax.tree_util.keystr(path)}"
        if isinstance(leaf, str | os.PathLike | np.lib.npyio.NpzFile):
            raise TypeError(
                f"got {name}={leaf!r}, expected arrays: np.load(path, mmap_mode='r') of a file for each, in a tuple or "
                "dict"
            )
        if is_list_of_numbers(leaf):
            raise TypeError(f"got {name}, a list of numbers, expected an array: np.asarray({name})")


def _chunked(arrays, size, whole):
    """A source of chunks of at most so many examples, or as many as there are shards, and the types of its batches."""
    size = min(whole.count, math.ceil(size / whole.shards) * whole.shards)
    source = dataclasses.replace(whole, size=size)
    return {"source": source, "batches": _types_of_chunks(arrays, size, source.count)}


def is_of_arrays(data):
    """Whether data are a tree of arrays; a list is one of batches."""
    leaves = jax.tree.leaves(data, is_leaf=lambda node: isinstance(node, Iterator))
    return bool(leaves) and not isinstance(data, list) and all(hasattr(leaf, "dtype") for leaf in leaves)


def _count(leaves):
    """How many examples there are."""
    counts = {np.shape(leaf)[:1] for leaf in leaves}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            f"got data of arrays of shapes {brief(list(map(np.shape, leaves)))}, expected a common leading axis, of "
            "examples; what is not of each example goes to args="
        )
    ((count,),) = counts
    if count == 0:
        raise ValueError("got data without examples, arrays of length 0; expected at least one")
    return count


def _types_of_chunks(arrays, size, count):
    def types(examples):
        return jax.tree.map(lambda array: _with_examples(array, examples), arrays)

    return tuple(map(types, dict.fromkeys([size, *[count % size] * (count % size > 0), count])))


def _with_examples(array, examples):
    """The type of so many examples, on an explicit mesh that of chunks."""
    sharding = struct(jax.typeof(array)).sharding
    return jax.ShapeDtypeStruct((examples, *array.shape[1:]), array.dtype, sharding=sharding)


def _of_batches(data, batch_size, is_mean):
    if batch_size is not None:
        raise ValueError(
            f"got batch_size={batch_size} with data that are batches already, expected arrays, or no batch_size"
        )
    is_iterable = hasattr(data, "__iter__")
    if not (is_iterable or callable(data)):
        raise TypeError(
            f"got data={brief(data)}, expected arrays with a common leading axis in a tuple, dict or other tree, or "
            "batches that can be gone through again: a list, a loader, or a function that makes a generator"
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"got data={brief(data)}, an iterator that is used up after one pass, and each product is one; expected "
            "batches that can be gone through again: a list, a loader, or the function that makes the generator"
        )
    name = type(data).__name__ if is_iterable else brief(data)
    return _of_stream(Stream(data, is_mean, f"the batches of {name}"))


def _of_disk(data, count, batch_size, is_mean):
    size = min(count, batch_size or _chunk_of_disk(data, count))
    data = jax.tree.map(_beside_disk, data)
    return _of_stream(Stream(_Slices(data, count, size), is_mean, "the batches of arrays on disk"))


@dataclasses.dataclass(frozen=True)
class _Slices:
    """Arrays on disk, and of the host, read in pieces."""

    arrays: Any
    count: int
    size: int

    def __iter__(self):
        for start in range(0, self.count, self.size):
            yield jax.tree.map(lambda leaf, start=start: _piece(leaf[start : start + self.size]), self.arrays)
            for leaf in jax.tree.leaves(self.arrays):
                _release(leaf)


def _piece(array):
    return array if isinstance(array, jax.Array) else np.array(array)


def _beside_disk(leaf):
    """An array of a device as one of the host, which cuts pieces without compiling; not so random keys."""
    is_array = isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(leaf) if is_array else leaf


def _release(array):
    """Drop the pages of a file that an array is mapped from: they are read again, and no part of this process."""
    mode, base = getattr(array, "mode", None), array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)  # of a copy-on-write mapping it would drop what was written


def _chunk_of_disk(data, count):
    """How many examples to read at once: few, for the next ones are read meanwhile."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
    return max(1, int(count * min(1, memory_budget(RESIDUAL_SHARE) / 64 / size)))


def _of_stream(stream):
    return Data(stream, None, (stream.treedef.unflatten(map(struct, stream.types)),))
