"""Sums over batches of data as one operation of JAX, with its own derivatives: a pass over the data is an equation.

The equation holds a `Summand`, the function of one batch that is summed, and where the batches come from, a source.
Its derivative is the sum of the summand's derivative, its transpose the sum of the transposes, and of many vectors it
is one pass with all of them: whatever is made of it goes over the data batch by batch, and keeps nothing of a batch.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from linops.program.jaxpr.code import Code
from linops.program.jaxpr.evaluate import is_inexact, struct


class Summand(Code):
    """A function of one batch and of operands, lists of arrays, to a list of arrays: code, and no arrays."""

    def within(self, mode):
        """The context to take a derivative in."""
        return contextlib.nullcontext()

    opaque = property(lambda self: self.inner.opaque)


@dataclasses.dataclass(frozen=True)
class Slope(Summand):
    """The derivative of a summand along tangents of some arrays of a batch and of some operands, which follow these."""

    inner: Summand
    of_batch: tuple[int, ...]
    moving: tuple[int, ...]

    def __call__(self, batch, operands):
        batch, along = _split(batch, len(self.of_batch))
        operands, tangents = _split(operands, len(self.moving))

        def of_moving(parts, moving):
            return self.inner(_put(batch, self.of_batch, parts), _put(operands, self.moving, moving))

        at = [batch[i] for i in self.of_batch], [operands[i] for i in self.moving]
        with self.inner.within("forward"):
            return jax.jvp(of_moving, at, (along, tangents))[1]

    within = property(lambda self: self.inner.within)


@dataclasses.dataclass(frozen=True)
class Pull(Summand):
    """The transpose of a summand that is linear in some operands; in their place it takes cotangents, at the end."""

    inner: Summand
    linear: tuple[int, ...]
    types: tuple  # of the operands it is linear in
    results: int  # of the summand

    def __call__(self, batch, operands):
        count = len(operands) - self.results
        known, cotangents = list(operands[:count]), operands[count:]

        def of_linear(*linear):
            rest, given = iter(known), dict(zip(self.linear, linear, strict=True))
            places = range(count + len(linear))
            return self.inner(batch, [given[i] if i in given else next(rest) for i in places])

        with self.inner.within("reverse"):
            return list(jax.linear_transpose(of_linear, *map(struct, self.types))(list(cotangents)))

    within = property(lambda self: self.inner.within)


@dataclasses.dataclass(frozen=True)
class Rows(Summand):
    """A summand of many operands at once, along the leading axes of some."""

    inner: Summand
    axes: tuple[int | None, ...]

    def __call__(self, batch, operands):
        return jax.vmap(lambda *operands: self.inner(batch, operands), self.axes)(*operands)

    within = property(lambda self: self.inner.within)


def _split(values, count):
    """A list, and its last entries, so many."""
    end = len(values) - count
    return list(values[:end]), list(values[end:])


def _put(values, places, others):
    values = list(values)
    for i, value in zip(places, others, strict=True):
        values[i] = value
    return values


total_p = type(jax.lax.add_p)("total_over_data")
total_p.multiple_results = True


def total(summand, source, types, data, operands):
    """The sum over batches of `summand(batch, operands)`, a list of arrays of these types.

    `data` are the arrays that batches are cut from on the device, none where they come from the host.
    """
    return total_p.bind(*data, *operands, summand=summand, source=source, types=tuple(types), arrays=len(data))


@total_p.def_abstract_eval
def _types(*operands, types, **params):
    return list(types)


@total_p.def_impl
def _run(*values, summand, source, types, arrays):
    if source.is_of_host:
        return source.total(summand, types, values, _jitted)
    jitted = _of_types.__wrapped__ if summand.opaque else _of_types
    return jitted(summand, source, types, arrays)(*values)


def _jitted(function, types, donated):
    last = len(types)
    return jax.jit(function, donate_argnums=tuple(range(last - donated, last)))


@functools.lru_cache(16)
def _of_types(summand, source, types, arrays):
    return jax.jit(functools.partial(on_device, summand=summand, source=source, types=types, arrays=arrays))


def on_device(*values, summand, source, types, arrays):
    """The sum over chunks of arrays on the device, written out in traceable JAX."""
    return source.total(summand, types, values[:arrays], values[arrays:])


def _lowered(context, *values, **params):
    if params["source"].is_of_host:
        raise TypeError(
            f"got a jit, or a loop of JAX, around a product over {params['source']}, which come from the host; "
            "expected arrays as data= there, which are walked on the device: or call the solvers of linops.linalg "
            "and linops.optimize by themselves, outside of jit, which go over batches of the host between their steps"
        )
    return mlir.lower_fun(on_device, multiple_results=True)(context, *values, **params)


mlir.register_lowering(total_p, _lowered, cacheable=False)


def _jvp(primals, tangents, *, summand, source, types, arrays):
    results = total_p.bind(*primals, summand=summand, source=source, types=types, arrays=arrays)
    assert all(map(is_inexact, types)), "sums are of floating point"
    data, operands = primals[:arrays], primals[arrays:]
    of_batch, moving = _moving(tangents[:arrays]), _moving(tangents[arrays:])
    slope = Slope(summand, of_batch, moving)
    with_tangents = *data, *(tangents[i] for i in of_batch), *operands, *(tangents[arrays + i] for i in moving)
    changes = total_p.bind(*with_tangents, summand=slope, source=source, types=types, arrays=arrays + len(of_batch))
    return results, changes


def _moving(tangents):
    return tuple(i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero)


def _transpose(cotangents, *values, summand, source, types, arrays):
    data, operands = values[:arrays], values[arrays:]
    if any(map(ad.is_undefined_primal, data)):
        raise TypeError(
            "a gradient with respect to data= was asked for, which is not taken batch by batch; expected that of x "
            "or of args=: pass what is to be differentiated through args="
        )
    linear = tuple(i for i, value in enumerate(operands) if ad.is_undefined_primal(value))
    known = [value for value in operands if not ad.is_undefined_primal(value)]
    of_linear = tuple(operands[i].aval for i in linear)
    pull = Pull(summand, linear, of_linear, len(types))
    given = [_instantiated(ct, aval) for ct, aval in zip(cotangents, types, strict=True)]
    pulled = total_p.bind(*data, *known, *given, summand=pull, source=source, types=of_linear, arrays=arrays)
    results = [None] * len(values)
    for i, result in zip(linear, pulled, strict=True):
        results[arrays + i] = result
    return results


def _instantiated(cotangent, aval):
    if type(cotangent) is ad.Zero:
        return jnp.zeros(aval.shape, aval.dtype, device=struct(aval).sharding)
    return cotangent


def _batched(values, axes, *, summand, source, types, arrays):
    if any(axis is not None for axis in axes[:arrays]):
        raise TypeError(
            "an operator over data= went through jax.vmap with its data, as many operators; expected one: build the "
            "operators inside of jax.vmap without data="
        )
    size = next(v.shape[axis] for v, axis in zip(values, axes, strict=True) if axis is not None)
    leading = [
        value if axis is None else jnp.moveaxis(value, axis, 0) for value, axis in zip(values, axes, strict=True)
    ]
    rows = Rows(summand, tuple(None if axis is None else 0 for axis in axes[arrays:]))
    with_rows = jax.eval_shape(lambda: [jnp.zeros((size, *aval.shape), aval.dtype) for aval in types])
    results = total_p.bind(
        *leading, summand=rows, source=source, types=tuple(map(jax.typeof, with_rows)), arrays=arrays
    )
    return results, [0] * len(results)


ad.primitive_jvps[total_p] = _jvp
ad.primitive_transposes[total_p] = _transpose
batching.primitive_batchers[total_p] = _batched
