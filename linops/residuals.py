"""What a linearization keeps for its products: results that are dear to compute, not those that are dear to read.

`jax.linearize` keeps every number that multiplies a tangent. Products of networks and grids are bound by memory, and
most of these numbers follow from a few others by an addition or a multiplication, which is cheaper than to read them.
"""

import jax

from linops.jaxpr import has_complex

# Computed anew in each product, beside the same operation on tangents; anything else, known or not, is kept.
CHEAP = frozenset(
    "abs add add_any and broadcast_in_dim ceil clamp concatenate conj convert_element_type copy copy_p div eq "
    "expand_dims floor ge gt imag integer_pow iota is_finite le lt max min mul ne neg not or pad real reduce_precision "
    "reshape rev round select_n sign slice sqrt square squeeze stop_gradient sub transpose".split()
)


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
