"""What a function closes over: arrays that JAX narrows in silence, and what may be another since it was compiled."""

import dataclasses
import functools
import numbers
import types

import jax
import numpy as np

from linops.precision import say_digits
from linops.program.jaxpr.structure import Same

MOST = 2**16  # entries of an array that are looked at


def say_closed_over(f):
    """Warn of float64 arrays in the closure of a function, or its module, that lose digits where JAX has no float64."""
    if jax.config.jax_enable_x64:
        return
    for name, array in _held(f).items():
        if isinstance(array, np.ndarray) and array.dtype in (np.float64, np.complex128):
            dtype = jax.dtypes.canonicalize_dtype(array.dtype)
            say_digits(f"{name}, which f closes over,", array.flat[:MOST], dtype)


def _held(f):
    """What the code of a function names, of its closure and its module."""
    while isinstance(f, functools.partial | types.MethodType) or hasattr(f, "__wrapped__"):
        f = f.func if isinstance(f, functools.partial) else getattr(f, "__func__", None) or f.__wrapped__
    if not isinstance(f, types.FunctionType):
        return {}
    cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
    return {name: f.__globals__[name] for name in f.__code__.co_names if name in f.__globals__} | held


@dataclasses.dataclass(frozen=True)
class _AsRead:
    """A function of the user's as a part of what is compiled: equal to itself as long as all that it reads is the same.

    What may have changed in place, such as a NumPy array or an object, is never the same.
    """

    function: object = dataclasses.field(compare=False)
    read: tuple

    def __call__(self, *values):
        return self.function(*values)


def as_code(f):
    """A function as a part of what is compiled, which is another one where what it reads may be."""
    return _AsRead(f, (_identity(f, set()),))


def _identity(value, seen):
    """What is equal where a value is the same for sure."""
    if isinstance(value, numbers.Number | str | bytes | None | type | types.ModuleType | types.BuiltinFunctionType):
        return type(value), value
    if isinstance(value, functools.partial) and not value.keywords:
        return tuple(_identity(part, seen) for part in (value.func, *value.args))
    if isinstance(value, jax.Array) or type(value).__module__.split(".")[0] in ("jax", "jaxlib"):
        return Same(value)
    if not isinstance(value, types.FunctionType):
        return Same(object())
    if value in seen or (value.__module__ or "").split(".")[0] in ("jax", "numpy", "linops"):
        return value
    seen.add(value)
    return value, *(pair for name, held in _held(value).items() for pair in (name, _identity(held, seen)))
