"""Where batches of data come from: cut from arrays on the device, or from the host, one after another."""

import collections
import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import as_batch, to_device
from linops.precision import SaidTogether
from linops.processes import require_same, spans
from linops.program import settings as jax_settings
from linops.program.jaxpr.code import Code
from linops.program.jaxpr.evaluate import struct
from linops.program.missing import OtherBatchError
from linops.program.prefetch import ahead

# Sums of many terms lose no digits: what each addition rounds away is summed beside it, and added in the end (Knuth,
# "The Art of Computer Programming" 2, 4.2.2, and Neumaier, ZAMM 54, 1974). The error is that of one addition, eps / 2,
# and eps^2 for each term, in place of eps / 2 for each.


def no_sum(types):
    """The sum of no terms, and what was rounded away."""
    types = list(types)
    return tuple([jnp.zeros(aval.shape, aval.dtype, device=struct(aval).sharding) for aval in types] for _ in range(2))


def with_terms(state, terms):
    """A sum with one more term for each of its parts."""
    shapes = [[part.shape for part in parts] for parts in (state[0], terms)]
    if shapes[0] != shapes[1]:
        raise TypeError(
            f"got f over data with values of shapes {shapes[1]} for one batch and of {shapes[0]} for another, expected "
            "those of a mean or sum over the examples, whatever the batch"
        )
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


TUPLE = "a list is one of batches, and a data set of several arrays a tuple, (X, y)"


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

    def of_a_shard(self):
        """The chunks of one shard by itself."""
        return Examples(self.size // self.shards, self.count // self.shards, self.is_mean)

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

    The device works on a batch while the next ones are read, in a thread where that takes long. The first pass notes a
    checksum of each batch, and another pass that brings other batches is refused, for it would be another matrix.
    """

    is_of_host = opaque = True

    def __init__(self, data, is_mean, name):
        self.data, self.is_mean, self.name = data, is_mean, name
        self.treedef = self.checksums = self._dtypes = self._opening = None
        self.settings = jax_settings.current()
        self.count = None  # of examples, known after a pass
        self._parts, self._sources, self._steps = {}, {}, {}
        self.cache = {}  # of what is staged with it, which dies with it
        self.types = self._first()

    def __repr__(self):
        return self.name

    def __reduce__(self):
        return Stream, (self.data, self.is_mean, self.name)

    def iterate(self):
        """A pass, also in a thread under the settings of JAX that the operator was made in."""
        if type(self.data) in (list, tuple):  # in which nothing of a user runs
            yield from self.data
            return
        with jax_settings.entered(self.settings):
            iterator = iter(self.data if hasattr(self.data, "__iter__") else self.data())
        while True:
            with jax_settings.entered(self.settings):
                batch = next(iterator, iterator)
            if batch is iterator:
                return
            yield batch

    def _first(self):
        """The types of the first batch, which are those of all but for their lengths."""
        for batch in self.iterate():
            leaves, self.treedef = jax.tree.flatten(batch)
            with jax_settings.entered(self.settings), SaidTogether():
                arrays = [to_device(leaf, "data") for leaf in leaves]
            self._require_examples(arrays)
            self._dtypes = [array.dtype for array in arrays]
            self._opening = self._checksums(leaves)[1]
            return tuple(map(jax.typeof, arrays))
        raise ValueError(f"{self.name} gave no batch, expected at least one: of a generator pass the function")

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
            try:
                with jax.ensure_compile_time_eval():  # it is kept: arrays, not tracers of a step that is traced now
                    self._parts[key] = source.trace(first.args, tuple(map(struct, types)))
            except (TypeError, ValueError) as error:
                shapes = [[aval.shape for aval in avals] for avals in (types, self.types)]
                raise OtherBatchError(
                    f"{source.what} fails for a batch of arrays of shapes {shapes[0]}, after a first one of "
                    f"{shapes[1]}; expected one that takes all batches: {TUPLE}. It said: {error}"
                ) from error
        return self._parts[key].replaced(args=first.args)

    # A pass.

    def total(self, summand, types, operands, compiled):
        """The sum over all batches, by a loop of the host over calls of `compiled(function, types of arguments)`.

        A call is waited for when a few later ones have been made: what it takes has its memory until then.
        """
        steps = self._steps.setdefault((summand, tuple(map(jax.typeof, operands)), jax.config.jax_enable_x64), {})
        if None not in steps:  # the sum of no batches
            steps[None] = compiled(lambda: [zeros for part in no_sum(types) for zeros in part], (), 0)
        state, count, running = steps[None](), 0, collections.deque()
        for group in self.groups(several=spans(operands)):
            batch, given, step = group[0], group[0], _step
            if _is_small(batch):  # the last one stands in for those that are missing, and is not counted
                filled = (group + [group[-1]] * TOGETHER)[:TOGETHER]
                given, step = (np.int32(len(group)), *(array for batch in filled for array in batch)), _step_of_many
            key = step, _shapes(batch)
            if key not in steps:
                step = step(summand, self.is_mean, len(batch), len(operands))
                avals = tuple(map(jax.typeof, [*given, *operands, *state]))
                steps[key] = compiled(step, avals, len(state))
            done, *state = steps[key](*given, *operands, *state)
            count += len(group) * batch[0].shape[0]
            running.append((done, len(group) * sum(array.nbytes for array in batch)))
            while len(running) > MOST_RUNNING or (len(running) > 1 and sum(n for _, n in running) > RUNNING_BYTES):
                running.popleft()[0].block_until_ready()
        if not count:
            raise ValueError(f"{self.name} have no examples, expected at least one")
        self.count = count
        return _in_all((state[: len(types)], state[len(types) :]), 1 / count if self.is_mean else None)

    def groups(self, several):
        """The batches of a pass, as `_alike` has them, each a list of arrays of the host or of the device.

        They are the same in each of `several` processes, or arrays on devices of all, to which each brings its part.
        """
        seen, whole = [], self.checksums
        known, is_first = whole or [self._opening], several and whole is None
        for group, checksums in ahead(_alike(self._read())):
            for batch, checksum in zip(group, checksums, strict=True):
                if is_first:
                    parts = [array.shape if spans(array) else _checksum(array) for array in batch]
                    require_same(_bits(parts), self.name)
                if (whole or not seen) and known[len(seen) : len(seen) + 1] != [checksum]:
                    raise ValueError(self._other(f"another batch {len(seen)}"))
                seen.append(checksum)
            if group[0][0].shape[0]:
                yield group
        if len(seen) < len(known):
            raise ValueError(self._other(f"{len(seen)} batches in place of {len(known)}"))
        if is_first:
            require_same(_bits("no more"), self.name)
        self.checksums = seen

    def _read(self):
        for batch in self.iterate():
            leaves, treedef = jax.tree.flatten(batch)
            if treedef != self.treedef:
                raise ValueError(
                    f"{self.name} gave a batch of structure {treedef} after one of {self.treedef}; expected all of one "
                    "structure"
                )
            arrays, checksums = self._checksums(leaves)
            self._require_examples(arrays)
            if [array.ndim for array in arrays] != [len(aval.shape) for aval in self.types]:
                raise ValueError(
                    f"{self.name} gave a batch of shapes {[array.shape for array in arrays]} after one of "
                    f"{[aval.shape for aval in self.types]}; expected as many dimensions in all"
                )
            yield arrays, checksums

    def _checksums(self, leaves):
        """The arrays of a batch, and a checksum of each."""
        pairs = list(zip(leaves, self._dtypes, strict=True))
        if all(type(leaf) is np.ndarray and leaf.dtype == dtype for leaf, dtype in pairs):
            arrays = [leaf.copy() for leaf in leaves]  # a loader may use its memory again
        else:
            with jax_settings.entered(self.settings):
                arrays = [as_batch(leaf, dtype, self.name) for leaf, dtype in pairs]
        return arrays, tuple(map(_checksum, arrays))

    def _require_examples(self, arrays):
        counts = {array.shape[:1] for array in arrays}
        if len(counts) != 1 or counts == {()}:
            raise ValueError(
                f"{self.name} gave a batch of arrays of shapes {[array.shape for array in arrays]}, expected a common "
                "leading axis, of examples"
            )

    def _other(self, what):
        return (
            f"{self.name} gave {what} in a later pass than in the first; expected the same batches in each pass, "
            "without which each product would be that of another matrix: of a loader that shuffles or augments, pass "
            "one that does not, or list(loader); of a generator, the function that makes it"
        )


MOST_RUNNING, RUNNING_BYTES = 8, 2**25  # calls that are made before the first is waited for, and bytes of their batches


def _checksum(array):
    """A number that another batch does not have, but by chance; entries in another order are another batch."""
    if isinstance(array, jax.Array):
        if spans(array):
            return tuple(_checksum(shard.data) for shard in array.addressable_shards)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
    return zlib.crc32(np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8)), array.shape


def _bits(value):
    return np.frombuffer(repr(value).encode(), np.uint8)


def _step(summand, is_mean, batch, operands):
    """A step of a pass: the sum with the terms of one batch, which is given by so many arrays, as operands are.

    Beside the sum, whose memory the next step takes, there is a number to wait for.
    """

    def step(*arrays):
        terms = summand(list(arrays[:batch]), list(arrays[batch : batch + operands]))
        examples = arrays[0].shape[0]
        terms = [t * jnp.asarray(examples, _real(t)) for t in terms] if is_mean else terms
        state = arrays[batch + operands :]
        totals, lost = with_terms((state[: len(terms)], state[len(terms) :]), terms)
        return [jnp.zeros(()), *totals, *lost]

    return step


def _step_of_many(summand, is_mean, batch, operands):
    """The same of the first few of so many batches."""
    step = _step(summand, is_mean, batch, operands)

    def steps(count, *arrays):
        given, others = arrays[: TOGETHER * batch], arrays[TOGETHER * batch :]
        stacks = [jnp.stack(given[i::batch]) for i in range(batch)]

        def next_(i, state):
            return step(*(stack[i] for stack in stacks), *others[:operands], *state[1:])

        return jax.lax.fori_loop(0, count, next_, [jnp.zeros(()), *others[operands:]])

    return steps


TOGETHER, SMALL = 8, 2**17  # batches of up to so many bytes that one call goes over: it takes as long as they do


def _is_small(batch):
    return all(type(array) is np.ndarray for array in batch) and sum(array.nbytes for array in batch) <= SMALL


def _shapes(batch):
    return tuple(array.shape for array in batch)


def _alike(pairs):
    """Batches and their checksums in groups: small ones of the same shapes together, also where these are empty."""
    group, checksums, are_small = [], [], False
    for batch, checksum in pairs:
        is_small = _is_small(batch)
        alike = are_small and is_small and _shapes(batch) == _shapes(group[0])
        if group and (len(group) == TOGETHER or not alike):
            yield group, checksums
            group, checksums = [], []
        group.append(batch)
        checksums.append(checksum)
        are_small = is_small
    if group:
        yield group, checksums


_in_all = jax.jit(in_all)
