"""What users hand over: arrays, scalars, masks and dtypes; and what a computation would lose of them, which is said.

The one owner of how that becomes a device array. Its functions are called inside the scope of the Space that is
computed in (`Space.scope`), so that a Python float keeps its digits in a float64 operator while float64 is off.
"""

import contextlib
import numbers
import os

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import NamedSharding, PartitionSpec
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from linops.precision import is_complex, is_number, real_dtype, require_held, say_loss, say_rounded
from linops.program.jaxpr.private import backends_are_initialized

# Processes forked from one that computes with JAX: there it would hang, so that they are refused.

_forked = False  # whether this process is a child of one that computed, whose threads XLA waits for and it lacks


def _note_fork():
    global _forked
    _forked = backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def require_threads():
    """Refuse to compute where that would hang."""
    if _forked:
        raise RuntimeError(
            "got a call in a process that was forked from one that computes with JAX, where it could wait for ever for "
            "threads that the fork did not copy; expected a process of its own: use multiprocessing with the start "
            "method spawn or forkserver"
        )


def float64_if(needed):
    """A context to compute in, with float64 enabled if it is needed: what was made with it keeps it where it is off."""
    require_threads()
    return jax.enable_x64(True) if needed and not jax.config.jax_enable_x64 else contextlib.nullcontext()


# Arrays.


def to_device(leaf, what):
    """A JAX array that shares no memory with `leaf`, which SciPy may overwrite; what it loses in JAX is said."""
    require_threads()
    if isinstance(leaf, jax.core.Tracer):
        _require_alive(leaf, what)
    if isinstance(leaf, jax.Array):
        return leaf
    array = as_host(leaf, what)
    dtype = _device_dtype(array.dtype)
    narrowed = _cast(leaf, array, dtype, what)
    if array.dtype.kind in "iu" and not np.array_equal(narrowed, array):
        raise ValueError(
            f"{what} holds integers beyond {dtype}, expected ones within; convert it to floating point, or call "
            'jax.config.update("jax_enable_x64", True) before'
        )
    return jax.device_put(narrowed)  # a copy already: astype made it, and jnp.array would compile for each new shape


def as_leaf(leaf, dtype, what):
    """A device array of a floating-point dtype, of the leaf of a tree; what it loses is said."""
    if isinstance(leaf, jax.Array):
        leaf = to_device(leaf, what)
        if leaf.dtype == dtype and not leaf.weak_type:
            return leaf
        require_castable(leaf.dtype, dtype, what)
        say_loss(what, leaf, dtype)
        return leaf.astype(dtype)
    array = as_host(leaf, what)
    require_castable(array.dtype, dtype, what)
    return jax.device_put(_cast(leaf, array, dtype, what))


def as_batch(leaf, dtype, what):
    """An array of a batch that shares no memory with the leaf, which a loader may use again; of a dtype as before."""
    if isinstance(leaf, jax.Array):
        if leaf.dtype != dtype:
            raise ValueError(f"{what} gave an array of dtype {leaf.dtype} after one of {dtype}; expected all alike")
        return leaf
    array = as_host(leaf, what)
    if array.dtype != dtype and _device_dtype(array.dtype) != dtype:
        raise ValueError(f"{what} gave an array of dtype {array.dtype} after one of {dtype}; expected all alike")
    narrowed = array.astype(dtype)
    if array.dtype.kind in "iu" and array.dtype != dtype and not np.array_equal(narrowed, array):
        raise ValueError(f"{what} holds integers beyond {dtype}, expected ones within")
    return narrowed


def as_inexact(leaf, what):
    """A device array of floating point: of integers, that of JAX's default float."""
    dtype = leaf.dtype if isinstance(leaf, jax.Array) else as_host(leaf, what).dtype
    if jnp.issubdtype(dtype, jnp.inexact) or not is_number(dtype):
        return to_device(leaf, what)
    return as_leaf(leaf, jnp.result_type(float), what)


def place_like(tree, like, given):
    """Arrays that were made of NumPy's, on the devices of others; those that a user has put somewhere stay there."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(given)):
        return tree
    return jax.tree.map(_placed, tree, like)


def place_beside(tree, others):
    """Arrays that were made of NumPy's, on the mesh on which others lie, each device with the whole."""
    mesh = next((found for other in jax.tree.leaves(others) if (found := _mesh_of(other)) is not None), None)

    def beside(leaf):
        if mesh is None or isinstance(leaf, jax.core.Tracer) or leaf.committed:
            return leaf
        return jax.device_put(np.asarray(leaf), NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(beside, tree)


def _mesh_of(array):
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return None
    is_laid = isinstance(array.sharding, NamedSharding) and len(array.sharding.device_set) > 1
    return array.sharding.mesh if is_laid else None


def _placed(array, like):
    if isinstance(like, jax.core.Tracer) or not like.committed:
        return array
    return jax.device_put(array, like.sharding)


def as_data(leaf, what):
    """A device array of an argument of a function; a Python number takes the precision of what it is computed with."""
    if type(leaf) not in (float, complex):
        return to_device(leaf, what)
    array = jnp.asarray(leaf)
    _cast(leaf, np.asarray(leaf), array.dtype, what)
    return array


def as_array(value):
    """A NumPy or device array, of whatever a user multiplies."""
    if type(value) is np.ndarray or isinstance(value, jax.Array):
        return value
    if _is_sparse(value):  # NumPy would ask JAX's for one entry after the other
        raise TypeError(f"got {brief(value)}, expected an array of numbers; make it dense")
    try:
        array = np.asanyarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, and objects that refuse in their __array__
        raise TypeError(f"got {brief(value)}, expected an array of numbers; NumPy said: {error}") from error
    for part in (array, *(value if isinstance(value, list | tuple) else ())):  # np.asarray drops the mask of rows, too
        refuse_masked(part, "an array to multiply")
    if array.dtype == object and array is not value:
        raise TypeError(f"got {brief(value)}, expected an array of numbers; a pytree goes to .mv")
    return array if isinstance(array, np.matrix) else np.asarray(array)


def refuse_masked(array, what):
    """Refuse a masked array with masked entries, whose hidden numbers NumPy would hand out."""
    if isinstance(array, np.ma.MaskedArray) and array.mask.any():
        raise ValueError(f"{what} has masked entries, expected numbers in all; fill them with .filled(value)")


def as_host(leaf, what):
    """A NumPy array of numbers."""
    try:
        array = np.asanyarray(leaf)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or one that records a gradient
        raise TypeError(f"{what} is {brief(leaf)}, expected an array or a number; NumPy said: {error}") from error
    refuse_masked(array, what)
    array = np.asarray(array)
    if not is_number(array.dtype):
        raise TypeError(f"{what} is {brief(leaf)}; expected an array or a number")
    return array


def _cast(leaf, array, dtype, what):
    """A copy in another dtype; of a number that it does not hold an error, of digits that are lost a warning."""
    with np.errstate(over="ignore", under="ignore"):
        narrowed = array.astype(dtype)
    if isinstance(leaf, numbers.Number) and narrowed.dtype.kind != "b":
        require_held(leaf, narrowed, what)
    if not isinstance(leaf, float | complex) or isinstance(leaf, np.generic):  # a Python float asks for no precision
        say_loss(what, array, dtype)
    return narrowed


def require_castable(given, dtype, what):
    """Refuse complex numbers where real ones are, and what is no number."""
    if not is_number(given) or (is_complex(given) and not is_complex(dtype)):
        parts = ": hand over its real and its imaginary part one by one" if is_number(given) else ""
        raise TypeError(f"{what} has dtype {given}, expected {dtype}{parts}")


def _require_alive(tracer, what):
    """Refuse a tracer of a jit, vmap or grad that has ended: any operation on it fails."""
    try:
        jnp.reshape(tracer, (1, *tracer.shape))
    except jax.errors.UnexpectedTracerError as error:
        raise TypeError(
            f"{what} is a traced value that has left the jit, vmap or grad in which it was made; expected an array: "
            "return it from the transformed function, or build the operator inside"
        ) from error


def _device_dtype(dtype):
    """What JAX holds numbers of a NumPy dtype in: native, and double precision for long double."""
    widest = np.dtype({"f": np.float64, "c": np.complex128}.get(dtype.kind, dtype))
    return jax.dtypes.canonicalize_dtype(min(dtype.newbyteorder("="), widest, key=lambda dtype: dtype.itemsize))


# Points, of which a derivative is taken.


def refuse_point(x, what="x"):
    """Refuse a point with what has no derivative, and say what to pass instead."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(x, is_leaf=_is_sparse)[0]:
        if remedy := _remedy(x, leaf):
            raise TypeError(
                f"{what}{jax.tree_util.keystr(path)} is {brief(leaf)}; expected an array or a number in floating "
                f"point, since a derivative is taken there: {remedy}"
            )


def _remedy(x, leaf):
    """What to pass instead of a leaf of a point x, where it is of a kind that has no derivative."""
    if _is_sparse(leaf):
        return "pass the numbers that it holds, its .data, and let f make a sparse array of them"
    if isinstance(leaf, jax.Ref):
        return "pass the value of the reference, as in ref[...]"
    dtype = getattr(leaf, "dtype", np.bool_)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "pass a random key through args= or a closure"
    if hasattr(x, "params") and not (isinstance(leaf, float | complex) or jnp.issubdtype(dtype, jnp.inexact)):
        return "pass its parameters, x.params, and let f put them in their place, as in x.replace(params=params)"
    if callable(leaf) or isinstance(leaf, str | bytes):
        return (
            "pass the arrays of the model alone, and let f put the rest back; of an equinox module they are "
            "eqx.partition(model, eqx.is_inexact_array), to be joined by eqx.combine"
        )
    return None  # an array, perhaps of a dtype that the Space refuses


def _is_sparse(value):
    """Whether a value is a sparse array of SciPy or of JAX, whose module takes long to import."""
    return scipy.sparse.issparse(value) or any(base.__name__ == "JAXSparse" for base in type(value).__mro__)


# Scalars.


def is_scalar(value):
    """Whether a value is a number, or an array without dimensions."""
    return isinstance(value, numbers.Number) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0)


def is_list_of_numbers(node):
    """Whether a part of a tree is a list with numbers alone, or their types, where an array may be meant."""

    def is_one(entry):
        return is_scalar(entry) or getattr(entry, "shape", None) == () or is_list_of_numbers(entry)

    return isinstance(node, list) and bool(node) and all(map(is_one, node))


def as_number(value):
    """A scalar that a user gives: an array without dimensions, on the device where it is there, in double precision."""
    if isinstance(value, jax.Array):
        return value
    refuse_masked(value, "a scalar")
    try:
        array = np.array(value)
        array = np.array(float(value)) if array.dtype == object else array  # fractions, decimals, long integers
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"got {brief(value)}, expected a number; Python said: {error}") from error
    if not is_number(array.dtype):
        raise TypeError(f"got {brief(value)} of dtype {array.dtype}, expected a number")
    with np.errstate(over="ignore", under="ignore"):
        number = array.astype(np.complex128 if is_complex(array.dtype) else np.float64)
    require_held(value, number, "a scalar")
    return number


def as_scalar(value, dtype):
    """A device scalar of a dtype that holds it; by NumPy where it can be, for a conversion by JAX is a compilation."""
    with float64_if(jnp.finfo(dtype).bits == 64):
        if isinstance(value, jax.Array):
            if value.dtype == dtype and not value.weak_type:
                return value
            if isinstance(value, jax.core.Tracer):
                return value.astype(dtype)
            value = np.asarray(value)
        with np.errstate(over="ignore", under="ignore"):
            narrowed = as_number(value).astype(dtype)
        require_held(value, narrowed, "a scalar")
        say_rounded(value, narrowed, "a scalar")
        return jnp.asarray(narrowed)


def as_factor(scalar, dtype):
    """A device scalar for numbers of a dtype: a real one stays real beside complex ones, whatever its value."""
    return as_scalar(scalar, dtype if is_complex(jnp.result_type(as_number(scalar))) else real_dtype(dtype))


def is_at_least_zero(array):
    """Whether all numbers of an array are known to be real, and none is negative."""
    is_known = not isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct)
    if isinstance(array, jax.Array) and is_known:
        is_known = array.is_fully_addressable  # or other processes have some
    return is_known and not is_complex(array.dtype) and bool(np.all(np.asarray(array) >= 0))


def as_conjugate(scalar):
    """The conjugate of a scalar that is an array; a real one is its own."""
    if not is_complex(jnp.result_type(scalar)):
        return scalar
    with float64_if(jnp.finfo(scalar.dtype).bits == 64):
        return scalar.conj()


def reciprocal(value):
    """1 / value, in double precision where the value is not traced."""
    if isinstance(value, jax.core.Tracer):
        return 1 / value
    number = as_number(np.asarray(value) if isinstance(value, jax.Array) else value)
    with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
        inverse = 1 / number
    if not np.isfinite(inverse) and np.isfinite(number):
        raise ZeroDivisionError(f"got {value!r} to divide an operator by; expected a number further from 0")
    return inverse


# The operators of others.


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


def as_key(key, what):
    """A key of `jax.random`, of either kind."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if dtype == jnp.uint32 and key.ndim == 1:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"{what} got the key {brief(key)}, expected one of JAX, such as jax.random.key(0)")


def brief(value):
    """What a value is, for an error."""
    text = repr(value)
    return text if len(text) <= 200 else f"a {type(value).__name__}, {text[:100]} ..."
