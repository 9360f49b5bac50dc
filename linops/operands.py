"""What a user combines with an operator: arrays, scalars, and the operators of others."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from linops.space import float64_if, is_complex, is_number, refuse_masked


def as_array(value):
    """A NumPy or device array, of whatever a user multiplies."""
    if type(value) is np.ndarray or isinstance(value, jax.Array):
        return value
    try:
        array = np.asanyarray(value)
    except (TypeError, ValueError) as error:  # ragged lists, and objects that refuse in their __array__
        raise TypeError(f"got {_brief(value)}, expected an array of numbers; NumPy said: {error}") from error
    for part in (array, *(value if isinstance(value, list | tuple) else ())):  # np.asarray drops the mask of rows, too
        refuse_masked(part, "an array to multiply")
    if array.dtype == object and array is not value:
        raise TypeError(f"got {_brief(value)}, expected an array of numbers; a pytree goes to .mv")
    return array if isinstance(array, np.matrix) else np.asarray(array)


def as_scalar(value, dtype):
    """A device scalar; by NumPy where it can be, since a conversion by JAX is a compilation."""
    with float64_if(jnp.finfo(dtype).bits == 64):
        if isinstance(value, jax.Array):
            return value if value.dtype == dtype and not value.weak_type else value.astype(dtype)
        return jnp.asarray(np.asarray(value).astype(dtype))


def as_conjugate(scalar):
    """The conjugate of a scalar that is an array; a real one is its own."""
    if not is_complex(jnp.result_type(scalar)):
        return scalar
    with float64_if(jnp.finfo(scalar.dtype).bits == 64):
        return scalar.conj()


def as_number(value):
    """A scalar that a user gives: an array without dimensions, on the device where it is there, in double precision."""
    if isinstance(value, jax.Array):
        return value
    refuse_masked(value, "a scalar")
    try:
        array = np.array(value)
        array = np.array(float(value)) if array.dtype == object else array  # fractions, decimals, long integers
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"got {_brief(value)}, expected a number; Python said: {error}") from error
    if not is_number(array.dtype):
        raise TypeError(f"got {_brief(value)} of dtype {array.dtype}, expected a number")
    return array.astype(np.complex128 if is_complex(array.dtype) else np.float64)


def is_scalar(value):
    """Whether a value is a number, or an array without dimensions."""
    return isinstance(value, numbers.Number) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0)


def as_summand(value):
    """As `as_foreign`; arrays and numbers, which are no operators, are refused with the way to make them such."""
    if isinstance(value, np.ndarray | jax.Array | numbers.Number):
        raise TypeError(
            f"got {type(value).__name__} to add to an operator, expected an operator: write linops.Matrix(M) for a "
            "dense matrix, lam * linops.Identity(n) for a shift, linops.Diagonal(d) for a diagonal"
        )
    return as_foreign(value)


def as_foreign(value):
    """A SciPy LinearOperator or sparse matrix as a LinearOperator, anything else as None."""
    if isinstance(value, LinearOperator):
        return value
    if not scipy.sparse.issparse(value):
        return None
    if value.ndim != 2:
        raise ValueError(f"got a sparse array of shape {value.shape}, expected (m, n); a vector goes as v.toarray()")
    return aslinearoperator(value)


def _brief(value):
    text = repr(value)
    return text if len(text) <= 200 else f"a {type(value).__name__}, {text[:100]} ..."
