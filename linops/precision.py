"""Dtypes, and the digits and range that numbers lose in them, which is said by a warning or an error."""

import contextvars
import numbers
import os
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np

_PACKAGE = os.path.dirname(__file__)


class PrecisionWarning(UserWarning):
    """Numbers lose digits before a computation: float64 narrowed to float32, say."""


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


def loses_precision(source, target):
    """Whether `target` lacks digits or range of `source`; integers are judged by their values."""
    if not jnp.issubdtype(source, jnp.inexact):
        return False
    source, target = jnp.finfo(source), jnp.finfo(target)
    return source.nmant > target.nmant or source.maxexp > target.maxexp


def lowest(dtypes):
    """The dtype of the fewest digits, whose numbers all the others hold."""
    dtypes = set(map(np.dtype, dtypes))
    held = [dtype for dtype in dtypes if not any(loses_precision(dtype, other) for other in dtypes)]
    if not held:
        names = " and ".join(sorted(map(str, dtypes)))
        raise TypeError(
            f"got {names} in one operator, none of which holds the numbers of the others; expected dtypes of which one "
            "does: convert the arrays to float32"
        )
    return min(held, key=str)  # of complex64 and float32, one


# What is lost, said on the line that called into linops.


def say_loss(what, array, dtype):
    """Warn where an array loses digits in a dtype, and return whether it does: floats by dtype, integers by value."""
    if loses_precision(array.dtype, dtype):
        warn_narrowing(what, array.dtype, dtype)
        return True
    if (integer := _rounded_integer(array, dtype)) is not None:
        more = _more_digits(dtype)
        _warn(f"{what} holds integers with more digits than {dtype}, such as {integer}, which it rounds{more}")
        return True
    return False


def say_digits(what, array, dtype):
    """As `say_loss`, where numbers of the array do have more digits than the dtype; of a tracer nothing is known."""
    if isinstance(array, jax.core.Tracer) or not loses_precision(array.dtype, dtype):
        return _rounded_integer(array, dtype) is not None and say_loss(what, array, dtype)
    array = np.asarray(array)
    with np.errstate(over="ignore", under="ignore"):
        kept = array.astype(dtype).astype(array.dtype)
    return not np.array_equal(kept, array, equal_nan=True) and say_loss(what, array, dtype)


def warn_narrowing(what, source, target):
    """Say that `what` is narrowed, and how to avoid it."""
    if jax.config.jax_enable_x64 or jnp.finfo(source).bits < 64:
        remedy = f"build the operator at a {source} point to compute in {source}"
    else:
        remedy = 'call jax.config.update("jax_enable_x64", True) before making arrays to compute in float64'
    _warn(f"{what} is {source} and is narrowed to {target}; {remedy}")


def say_uncertain(what, dtype):
    """Say that what was computed may be all rounding."""
    _warn(f"{what} are so small that rounding in {dtype} may have made them up: they may be 0{_more_digits(dtype)}")


def _more_digits(dtype):
    """The remedy, where there is one."""
    if jnp.finfo(dtype).bits == 64:
        return ""
    return "; build the operator at a float64 point, with float64 enabled in JAX, to compute with all digits"


def _rounded_integer(array, dtype):
    """An integer that a floating-point dtype does not hold, of a concrete array, or None."""
    if array.dtype.kind not in "iu" or isinstance(array, jax.core.Tracer) or not jnp.issubdtype(dtype, jnp.inexact):
        return None
    info = jnp.finfo(dtype)
    digits = info.nmant + 1
    if np.iinfo(array.dtype).bits <= digits:
        return None
    array = np.asarray(array)
    wide = array.astype(np.int64) if array.dtype.kind == "i" else array
    magnitude = np.abs(wide).astype(np.uint64)  # of the least int64 as well: 2**63
    if magnitude.max(initial=0) <= 2**digits:
        return None
    odd = magnitude // np.maximum(magnitude & -magnitude, 1)  # without the zeros that its binary digits end in
    rounded = (odd >= 2**digits) | (magnitude > float(info.max))
    return array[rounded].flat[0] if rounded.any() else None


# Scalars.


def say_nested(scalars, dtype):
    """Say that scalars are not held together, as in 1e-30 * (1e-30 * A), where each of them is."""
    if any(isinstance(scalar, jax.core.Tracer) for scalar in scalars):
        return
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        magnitude = np.prod([np.abs(np.asarray(scalar, np.complex128)) for scalar in scalars])
    info = jnp.finfo(dtype)
    if all(np.asarray(scalar) != 0 for scalar in scalars) and not info.smallest_normal <= magnitude <= info.max:
        _warn(
            f"the scalars of an operator make {magnitude:.3g} together, which {dtype} does not hold, so that products "
            "may be 0 or infinite; multiply the scalars before, or compute in another precision"
        )


def require_held(given, held, what):
    """Refuse a number that would be 0 or infinite in a dtype, and say where a part of it is lost.

    Compared are Python's numbers, since NumPy would narrow the given one to the dtype of the other.
    """
    dtype, held = held.dtype, held.item()
    given = given.item() if isinstance(given, np.ndarray | np.generic) else given
    if not jnp.issubdtype(dtype, jnp.inexact) or given != given:
        return
    info = jnp.finfo(dtype)
    if np.isinf(held) and given != held:
        raise OverflowError(f"{what} is {given}, beyond the largest {dtype}, {info.max}; {_SCALE}")
    normal = float(info.smallest_normal)
    parts = [(given.real, held.real), (given.imag, held.imag)] if is_complex(dtype) else [(given, held)]
    if not any(part != 0 and abs(kept) < normal for part, kept in parts):
        return
    if all(abs(kept) < normal for _, kept in parts):
        raise ValueError(
            f"{what} is {given}, below the smallest normal {dtype}, {info.smallest_normal}, where it loses digits and "
            f"most devices take it for 0; {_SCALE}"
        )
    _warn(f"{what} is {given}, of which one part is too small for {dtype} and is lost; {_SCALE}")


def say_rounded(given, held, what):
    """Say that an integer has more digits than the dtype of a number."""
    is_integer = isinstance(given, numbers.Integral) or (isinstance(given, np.ndarray) and given.dtype.kind in "iu")
    if is_integer and int(held.item().real) != int(given):
        more = _more_digits(held.dtype)
        _warn(f"{what} is {given}, an integer with more digits than {held.dtype}, which rounds it{more}")


_SCALE = "expected a number that it holds: scale what it multiplies instead, or compute in float64"


class SaidTogether:
    """A context in which what is lost of many leaves is one warning, of the first of them."""

    def __enter__(self):
        self.said = []
        self.token = _together.set(self.said)

    def __exit__(self, *_):
        _together.reset(self.token)
        if self.said:
            _warn(self.said[0] + (f" (so also for {len(self.said) - 1} leaves more)" if len(self.said) > 1 else ""))


_together = contextvars.ContextVar("together", default=None)


def _warn(message):
    if (said := _together.get()) is not None:
        said.append(message)
        return
    depth, frame = 1, sys._getframe()
    while frame.f_back and os.path.dirname(frame.f_code.co_filename).startswith(_PACKAGE):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, PrecisionWarning, stacklevel=depth)
