"""What a linearization keeps for its products: results that are dear to compute, not those that are dear to read.

`jax.linearize` keeps every number that multiplies a tangent. Products of networks and grids are bound by memory, and
most of these numbers follow from a few others by an addition or a multiplication, which is cheaper than to read them.
"""

import jax

from linops.jaxpr import has_complex

# Computed anew in each product, beside the same operation on tangents; anything else, known or not, is kept.
CHEAP = {
    "abs", "add", "add_any", "ceil", "clamp", "div", "floor", "integer_pow", "max", "min", "mul", "neg",
    "one_minus_square", "round", "rsqrt", "sign", "sqrt", "square", "sub",
    "and", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "not", "or", "select_n", "xor",
    "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "iota",
    "pad", "reduce_precision", "reshape", "rev", "slice", "split", "squeeze", "stack", "tile", "transpose", "unstack",
}  # fmt: skip


def thrifty(f, jaxpr):
    """f, of which a linearization keeps the dear results only; `jaxpr` says what f computes, or is the gradient of.

    It is f itself where there are effects, which are to happen once, and complex numbers, for which `jax.checkpoint`
    fails where it keeps them.
    """
    if jaxpr.effects or has_complex(jaxpr):
        return f
    # Not f itself, which JAX would take for a key of its caches, and which may hold traced arrays.
    return jax.checkpoint(lambda x: f(x), policy=is_dear, prevent_cse=False)


def is_dear(primitive, *_, **__):
    """Whether the results of a primitive are kept: a policy of `jax.checkpoint`."""
    return primitive.name not in CHEAP
