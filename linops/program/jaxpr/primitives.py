"""What is known of JAX's primitives, by their names and parameters. What is not named here is the careful case.

An unknown primitive is not cheap, not pure (never merged with its like, which might be another draw), not linear over
the complex numbers, and what its parameters hold is its own.
"""

import jax
import numpy as np

# Structure and selection: they move numbers, and change none.
_MOVES = {
    "broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "pad",
    "reshape", "rev", "select_n", "slice", "split", "squeeze", "stack", "tile", "transpose", "unstack",
}  # fmt: skip

# What a product may compute again where it depends on the point, for then it does the same to a tangent anyway.
CHEAP = (_MOVES - {"dynamic_update_slice", "gather"}) | {
    "abs", "add", "add_any", "ceil", "clamp", "div", "floor", "integer_pow", "max", "min", "mul", "neg",
    "one_minus_square", "round", "rsqrt", "sign", "sqrt", "square", "sub",
    "and", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "not", "or", "xor",
    "bitcast_convert_type", "convert_element_type", "iota", "reduce_precision",
}  # fmt: skip

# What XLA takes into a loop over entries, beside what is cheap.
_FUSED = CHEAP | {
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "digamma", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "lgamma", "log", "log1p", "logistic", "pow", "rem", "sin", "sinh", "tan", "tanh",
}  # fmt: skip

# Functions of their inputs and nothing else: equal ones give equal results.
PURE = CHEAP | _MOVES | {
    "acos", "acosh", "argmax", "argmin", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cholesky", "clz",
    "complex", "conj", "conv_general_dilated", "cos", "cosh", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum",
    "digamma", "dot_general", "eigh", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "fft", "householder_product",
    "igamma", "igammac", "imag", "lgamma", "log", "log1p", "logistic", "lu", "lu_pivots_to_permutation", "mul_add",
    "nextafter", "polygamma", "population_count", "pow", "qr", "random_bits", "random_fold_in", "random_seed",
    "random_split", "random_unwrap", "random_wrap", "real", "reduce_and", "reduce_max", "reduce_min", "reduce_or",
    "reduce_prod", "reduce_sum", "reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum", "rem",
    "scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter_add", "scatter_max", "scatter_min",
    "scatter_mul", "select_and_gather_add", "select_and_scatter_add", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sin", "sinh", "sort", "svd", "tan", "tanh", "threefry2x32", "top_k", "triangular_solve",
    "zeta",
}  # fmt: skip

# Linear over the complex numbers in the inputs that a tangent reaches, in the equations of a derivative: a product of
# two is linear in one of them, and what divides, multiplies or is solved with does not depend on the tangent.
COMPLEX_LINEAR = _MOVES | {
    "add", "add_any", "complex_to_complex", "convert_element_type", "conv_general_dilated", "cumsum", "div",
    "dot_general", "fft", "mul", "mul_add", "neg", "optimization_barrier", "psum", "psum_invariant", "pvary",
    "reduce_precision", "reduce_sum", "reduce_window_sum", "reshard", "scatter", "scatter-add", "scatter_add",
    "select_and_gather_add", "select_and_scatter_add", "sharding_constraint", "sub", "triangular_solve",
}  # fmt: skip

# Integers computed from integers, as JAX writes an index: broadcast, and counted from the end where negative.
OF_PLACES = {"add", "broadcast_in_dim", "concatenate", "convert_element_type", "lt", "reshape", "select_n", "squeeze"}
_PLACES = 8  # how many integers are a handful


def is_cheap(equation):
    """Whether to compute an equation again costs less than to read its results."""
    return equation.name in CHEAP and not equation.effects


def is_fused(equation):
    """Whether XLA takes an equation into a loop over entries with others."""
    return equation.name in _FUSED


def is_inexact_tanh(equation):
    """Whether an equation is a hyperbolic tangent of which JAX has an inexact derivative, as before 0.12."""
    return _BEFORE_0_12 and equation.name == "tanh" and equation.params.get("accuracy") is None


@jax.custom_jvp
def exact_tanh(x):
    """tanh, with the derivative of JAX 0.12."""
    return jax.lax.tanh(x)


@exact_tanh.defjvp
def _exact_tanh_jvp(primals, tangents):
    """In JAX 0.10 it is (t + t y) (1 - y), of which a fused multiplication and addition leaves the rounding of a large
    t where y is -1, by luck of the program: in a block of columns, say, and not in its columns.
    """
    (x,), (t,) = primals, tangents
    y = exact_tanh(x)
    return y, t * ((1 + y) * (1 - y))


_BEFORE_0_12 = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12)


# What only runs the graphs inside of it.
_CONTROL = {"scan", "while", "cond", "remat2", "remat", "checkpoint", "custom_linear_solve"}


def is_pure(equation):
    """Whether an equation is a function of its inputs, as far as is known."""
    if equation.effects or equation.rule is not None:
        return False
    if equation.graphs:
        return equation.name in _CONTROL and all(map(is_pure, (e for g in equation.inner() for e in g.equations)))
    return equation.name in PURE


def may_be_places(value):
    """Whether an array is a handful of signed integers: unsigned ones are keys, and one alone is a count."""
    if isinstance(value, jax.core.Tracer) or np.ndim(value) == 0 or np.size(value) > _PLACES:
        return False
    return jax.numpy.issubdtype(value.dtype, np.signedinteger)  # also of random keys, which NumPy does not know


def tells_places(name, position):
    """Whether the input of an equation at a position says where a scatter puts numbers."""
    return name.startswith("scatter") and position == 1


# How JAX writes jaxprs down. JAX 0.12 has one class for open and closed ones, before there were two.


def is_jaxpr(value):
    """Whether a parameter is a jaxpr, open or closed."""
    return hasattr(value, "eqns")


def open_jaxpr(value):
    """A jaxpr and its consts, of an open or a closed one."""
    return getattr(value, "jaxpr", value), tuple(getattr(value, "consts", ()))


def is_literal(atom):
    """Whether an input of an equation is a value in it; the class, jax.extend.core.Literal, takes 60 ms to import."""
    return hasattr(atom, "val")


def unwrapped(const):
    """JAX wraps NumPy constants, to have them compare by identity."""
    return const if isinstance(const, jax.Array) else getattr(const, "val", const)


def identity(array):
    """What tells an array from all others that are alive: JAX sees a NumPy array through a new view in each trace."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data, array.shape, array.strides, array.dtype
    return id(array)


def content(array):
    """The content of a small array, by its bytes, such as one that is made anew in each trace; else None."""
    if isinstance(array, jax.core.Tracer) or not isinstance(array, np.ndarray | jax.Array):
        return None
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) or array.nbytes > _SMALL:
        return None
    addressable = isinstance(array, np.ndarray) or array.is_fully_addressable
    return (array.shape, array.dtype, np.asarray(array).tobytes()) if addressable else None


_SMALL = 2**16  # bytes


def has_rule(eqn):
    """Whether an equation calls a function with a custom derivative rule."""
    return eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call")


def inlined(eqn, rules):
    """The jaxpr that an equation only calls, else None: of a jitted function, of a custom rule that is not kept."""
    if eqn.primitive.name in ("jit", "pjit") and not any(map(_is_placed, _placements(eqn.params))):
        return eqn.params["jaxpr"]
    if eqn.primitive.name in ("closed_call", "core_call"):
        return eqn.params["call_jaxpr"]
    if eqn.primitive.name == "remat_opt":  # the forward pass of a custom_vjp, of which JAX drops what is not needed
        return eqn.params["fwd_jaxpr"]
    return eqn.params["call_jaxpr"] if has_rule(eqn) and not rules else None


def says_where(equation):
    """Whether an equation lays arrays along axes of a mesh."""
    specs = [getattr(value, "spec", ()) for value in equation.params.values()]
    return equation.name in _LAYING or any(any(spec) for spec in specs if isinstance(spec, tuple))


# A jitted function that is still one was told where its arguments lie, or its results.
_LAYING = {"jit", "pjit", "shard_map", "sharding_constraint", "reshard", "mesh_cast"}


def _placements(params):
    return (*params["in_shardings"], *params["out_shardings"], *params["in_layouts"], *params["out_layouts"])


def _is_placed(placement):
    """Whether a jitted function was told where an argument or a result lies."""
    return placement is not None and type(placement).__name__ != "UnspecifiedValue"


_INNER = {
    "scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",), "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",), "remat": ("jaxpr",), "custom_linear_solve": ("jaxprs",), "shard_map": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",), "custom_vjp_call": ("call_jaxpr",),
}  # fmt: skip


def inner_jaxprs(name, params):
    """The jaxprs among the parameters of an equation that is seen into: pairs of a name and a list."""
    if name == "scan" and params.get("_split_transpose"):  # not to be written anew
        return
    for key in _INNER.get(name, ()):
        value = params[key]
        yield key, list(value) if isinstance(value, tuple) else [value]


def jaxprs_in(values):
    """The jaxprs among parameters."""
    for value in values:
        for item in value if isinstance(value, tuple | list) else (value,):
            if is_jaxpr(item):
                yield item


def is_unrolled(equation):
    """Whether an equation is a scan that its author wants to be written out whole, of not too many steps."""
    if equation.name != "scan" or equation.effects or not equation.graphs:
        return False
    return 0 < equation.params["length"] <= min(UNROLLED, equation.params["unroll"])


UNROLLED = 16  # `jnp.polyval`, which most special functions call, unrolls as many


def scan_counts(params):
    """How many of a scan's inputs are constants, and how many carries."""
    if "ft_in" in params:  # JAX 0.12
        consts, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
        return consts, carry
    return params["num_consts"], params["num_carry"]


def is_reference(aval):
    """Whether a value is a mutable reference."""
    return hasattr(aval, "inner_aval")
