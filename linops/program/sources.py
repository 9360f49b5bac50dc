"""Where batches of data come from: cut from arrays on the device, or from the host, one after another."""

import contextlib
import dataclasses
import queue
import threading
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import to_device
from linops.precision import SaidTogether
from linops.program.jaxpr.code import Code
from linops.program.jaxpr.evaluate import struct

# Sums of many terms lose no digits: what each addition rounds away is summed beside it, and added in the end (Knuth,
# "The Art of Computer Programming" 2, 4.2.2, and Neumaier, ZAMM 54, 1974). The error is that of one addition, eps / 2,
# and eps^2 for each term, in place of eps / 2 for each.


def no_sum(types):
    """The sum of no terms, and what was rounded away."""
    types = list(types)
    return tuple([jnp.zeros(aval.shape, aval.dtype, device=struct(aval).sharding) for aval in types] for _ in range(2))


def with_terms(state, terms):
    """A sum with one more term for each of its parts."""
    results = [_two_sum(total, term) for total, term in zip(state[0], terms, strict=True)]
    return [total for total, _ in results], [a + b for a, (_, b) in zip(state[1], results, strict=True)]


def _two_sum(a, b):
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def in_all(state, factor=None):
    """The sum, times a factor where there is one."""
    results = [total + lost for total, lost in zip(*state, strict=True)]
    return results if factor is None else [result * jnp.asarray(factor, _real(result)) for result in results]


def _real(array):
    return jnp.finfo(array.dtype).dtype


@dataclasses.dataclass(frozen=True)
class Examples(Code):
    """Chunks of arrays on the device, of `size` examples out of `count`.

    Arrays that lie on several devices along their examples are cut on each of these: a chunk has as many of each.
    """

    size: int
    count: int
    is_mean: bool
    shards: int = 1

    is_of_host = False

    chunks = property(lambda self: self.count // self.size)
    rest = property(lambda self: self.count % self.size)

    def batch(self, arrays, i):
        """The i-th chunk."""
        return [self._cut(array, i * (self.size // self.shards), self.size) for array in arrays]

    def last(self, arrays):
        """What is left beyond the last whole chunk."""
        return [self._cut(array, self.chunks * (self.size // self.shards), self.rest) for array in arrays]

    def _cut(self, array, start, size):
        if self.shards == 1:
            return jax.lax.dynamic_slice_in_dim(array, start, size)
        parts = array.reshape(self.shards, self.count // self.shards, *array.shape[1:])
        part = jax.lax.dynamic_slice_in_dim(parts, start, size // self.shards, axis=1)
        return part.reshape(size, *array.shape[1:])

    @property
    def weight(self):
        """That of a chunk."""
        return self.size / self.count if self.is_mean else None

    @property
    def weight_of_rest(self):
        """That of what is left, in those of a chunk."""
        return self.rest / self.size if self.is_mean else None

    def total(self, summand, types, arrays, operands):
        """The sum over all chunks, in traceable JAX."""

        def add(state, i):
            return with_terms(state, summand(self.batch(arrays, i), operands)), None

        if self.count == self.size:
            return summand(list(arrays), operands)
        state, _ = jax.lax.scan(add, no_sum(types), jnp.arange(self.chunks))
        if self.rest:
            terms = summand(self.last(arrays), operands)
            weight = self.weight_of_rest
            state = with_terms(state, terms if weight is None else [t * jnp.asarray(weight, _real(t)) for t in terms])
        return in_all(state, self.weight)


class Stream(Code):
    """Batches of the host: anything that can be gone through again and again, or a function that makes an iterator.

    The next batches are read in a thread while the device works. The first pass notes a checksum of each batch, and
    another pass that brings other batches is refused, for it would be another matrix.
    """

    is_of_host = opaque = True

    def __init__(self, data, is_mean, name):
        self.data, self.is_mean, self.name = data, is_mean, name
        self.treedef = self.types = self.checksums = None
        self.wide = jax.config.jax_enable_x64
        self._parts, self._sources, self._steps = {}, {}, {}
        self.types, self.treedef = self._peek()

    def __repr__(self):
        return self.name

    def __reduce__(self):
        return Stream, (self.data, self.is_mean, self.name)

    def iterate(self):
        """A pass."""
        return iter(self.data) if hasattr(self.data, "__iter__") else iter(self.data())

    def _peek(self):
        for batch in self.iterate():
            leaves, treedef = jax.tree.flatten(batch)
            return tuple(map(jax.typeof, self._arrays(leaves, treedef))), treedef
        raise ValueError(f"{self.name} has no batches, expected at least one: of a generator pass the function")

    def _arrays(self, leaves, treedef):
        if self.treedef is not None and treedef != self.treedef:
            raise ValueError(
                f"{self.name} gave a batch of structure {treedef} after one of {self.treedef}; expected all of "
                "one structure"
            )
        with jax.enable_x64(self.wide), SaidTogether():
            arrays = [to_device(leaf, "data") for leaf in leaves]
        counts = {array.shape[:1] for array in arrays}
        if len(counts) != 1 or counts == {()}:
            raise ValueError(
                f"{self.name} gave a batch of arrays of shapes {[a.shape for a in arrays]}, expected a common "
                "leading axis, of examples"
            )
        if self.types is not None:
            self._require_like(arrays)
        return arrays

    def _require_like(self, arrays):
        given, expected = ([(a.dtype, len(a.shape)) for a in arrays] for arrays in (arrays, self.types))
        if given != expected:
            raise ValueError(
                f"{self.name} gave a batch of arrays of (dtype, dimensions) {given} after one of {expected}; "
                "expected all alike"
            )

    # Functions of batches of other sizes than the first.

    def remember(self, function):
        """Keep how to trace a function again."""
        self._sources[function.program] = function.held_source

    def part(self, first, types, domain=None):
        """The function for batches of these types, like the one for the first batch; of other points, if given."""
        key = first.program, types, domain
        if key not in self._parts:
            source = self._sources[first.program]
            source = dataclasses.replace(source, domain=domain or source.domain)
            traced = source.trace(first.args, tuple(map(struct, types)))
            self._parts[key] = traced
        return self._parts[key].replaced(args=first.args)

    # A pass.

    def total(self, summand, types, operands, compiled):
        """The sum over all batches, by a loop of the host over calls of `compiled(function, *types of arguments)`."""
        state, count = no_sum(types), 0
        for examples, batch in self.batches():
            arguments = [np.float32(examples), *batch, *operands, *state[0], *state[1]]
            avals = tuple(map(jax.typeof, arguments))
            key = summand, avals, jax.config.jax_enable_x64
            if key not in self._steps:
                step = _accumulation(summand, self.is_mean, len(batch), len(operands))
                self._steps[key] = compiled(step, avals, 2 * len(types))
            results = jax.block_until_ready(self._steps[key](*arguments))
            state = results[: len(types)], results[len(types) :]
            count += examples
        return _in_all(state, np.float64(1 / count) if self.is_mean else None)

    def batches(self):
        """Pairs of a number of examples and a batch, a list of device arrays, read ahead."""
        seen = []
        for examples, batch, checksum in ahead(self._read):
            self._require_same(len(seen), checksum)
            seen.append(checksum)
            yield examples, batch
        if self.checksums is not None and len(seen) != len(self.checksums):
            raise ValueError(self._other(f"{len(seen)} batches in place of {len(self.checksums)}"))
        if not seen:
            raise ValueError(self._other("no batches"))
        self.checksums = seen

    def _read(self):
        for batch in self.iterate():
            leaves, treedef = jax.tree.flatten(batch)
            arrays = self._arrays(leaves, treedef)
            yield arrays[0].shape[0], arrays, _checksum(leaves)

    def _require_same(self, i, checksum):
        if self.checksums is not None and (i >= len(self.checksums) or self.checksums[i] != checksum):
            raise ValueError(self._other(f"another batch {i}"))

    def _other(self, what):
        return (
            f"{self.name} gave {what} in a later pass than in the first; expected the same batches in each pass, "
            "without which each product would be that of another matrix: of a loader that shuffles or augments, pass "
            "one that does not, or list(loader); of a generator, the function that makes it"
        )


def _checksum(leaves):
    checksum = 0
    for leaf in leaves:
        checksum = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).reshape(-1), checksum)
    return checksum


def _accumulation(summand, is_mean, batch, operands):
    """A step of a pass: a sum with the terms of one batch, which is given by so many arrays, as operands are."""

    def accumulate(examples, *arrays):
        terms = summand(list(arrays[:batch]), list(arrays[batch : batch + operands]))
        terms = [t * examples.astype(_real(t)) for t in terms] if is_mean else terms
        state = arrays[batch + operands :]
        totals, lost = with_terms((state[: len(terms)], state[len(terms) :]), terms)
        return [*totals, *lost]

    return accumulate


_in_all = jax.jit(in_all)


AHEAD = 2  # batches that are read while the device works


def ahead(read):
    """What a generator gives, computed in a thread, `AHEAD` of what is asked for."""
    found, stop = queue.Queue(AHEAD), threading.Event()
    end = object()

    def put(item):
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                found.put(item, timeout=0.1)
                return

    def fill():
        try:
            for item in read():
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:  # it is raised where the batch is asked for
            put((end, error))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            item, error = found.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
