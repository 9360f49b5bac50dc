"""What a function closes over: arrays that JAX narrows in silence."""

import functools
import types

import jax
import numpy as np

from linops.precision import say_digits

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
