"""Products with a Hessian by central differences of the gradient, which is all that is asked of the function.

(g(x + h u) - g(x - h u)) / (2 h) is off by h² times the third derivative, and by the rounding of g, eps |g| / h, which
h = eps^(1/3) balances where all is of size one: then both are about eps^(2/3). Here v = ν u, where u moves no number by
more than the size of its leaf, so that the step is relative, and the product scales as v does. The size of a leaf is
its root mean square; of a leaf that is small beside x, as one of zeros, it is not known, and taken for a sixteenth of
that of x: a compromise between noise, which grows as steps get short, and the third derivative, as they get long.

Source: Gill, Murray, Wright, Practical Optimization (1981), sec. 8.6; Nocedal, Wright, Numerical Optimization (2006),
sec. 8.1.
"""

import functools

import jax
import jax.numpy as jnp

from linops.precision import real_dtype
from linops.program.missing import MissingRule

SMALLEST = 1 / 16  # of the size of x, that of a leaf is taken for
PROBES = 2  # random vectors of which the error is estimated


def unit(space):
    """The error of products to be expected, relative to their norm, of the coarsest leaf."""
    return _eps(space) ** (2 / 3)


def _eps(space):
    return max(float(jnp.finfo(dtype).eps) for dtype in space.dtypes)


def difference(gradient, space, x, v, longer=1):
    """The slope of a gradient along v; `longer` multiplies the step."""
    step = longer * _eps(space) ** (1 / 3)
    with space.scope():
        size = _largest(jax.tree.map(_relative, v, _sizes(space, x)))
        size = jnp.where(size >= jnp.finfo(size.dtype).tiny, size, 1)
        u = jax.tree.map(lambda leaf: (leaf / size).astype(leaf.dtype), v)
        ahead, behind = (gradient(_moved(x, u, by)) for by in (step, -step))
        return jax.tree.map(lambda a, b: ((a - b) / (2 * step) * size).astype(a.dtype), ahead, behind)


def error(gradient, space, x, key):
    """How far off products with random vectors are, relative to their norm: the change as the step is doubled."""

    def change(key):
        v = space.draw(key)
        short, long = (difference(gradient, space, x, v, longer) for longer in (1, 2))
        off, size = space.norm(space.add(long, space.scale(-1, short))), space.norm(short)
        return jnp.where(off > 0, off / size, 0)

    return jnp.max(jax.lax.map(change, jax.random.split(key, PROBES)))


def _moved(x, u, by):
    return jax.tree.map(lambda leaf, part: (leaf + by * part).astype(leaf.dtype), x, u)


def _sizes(space, x):
    """The size of each leaf of x."""
    squares = jax.tree.map(lambda leaf: jnp.sum(_wide(leaf) ** 2), x)
    counts = jax.tree.map(lambda leaf: max(1, leaf.size), x)
    whole = jnp.sqrt(sum(jax.tree.leaves(squares)) / max(1, space.size))
    least = jnp.where(whole > 0, SMALLEST * whole, 1)
    return jax.tree.map(lambda square, count: jnp.maximum(jnp.sqrt(square / count), least), squares, counts)


def _relative(leaf, size):
    return jnp.max(jnp.abs(_wide(leaf)), initial=0) / size


def _largest(sizes):
    return functools.reduce(jnp.maximum, jax.tree.leaves(sizes))


def _wide(leaf):
    return leaf.astype(jnp.promote_types(real_dtype(leaf.dtype), jnp.float32))


# The derivative of a product in v is another product, since the Hessian is symmetric. In anything else it has none.


@jax.custom_vjp
def product(H, v):
    """The product of an operator with v, by its `_difference`."""
    return H._difference(v)


def _forward(H, v):
    leaves, treedef = jax.tree.flatten(H, is_leaf=_is_primal)
    if any(leaf.perturbed for leaf in leaves):
        raise MissingRule(
            "a product by differences of the gradient has no derivative with respect to the point, args or weights, "
            'which would be a third one of f; expected only the vector to vary: products="exact" has one'
        )
    H = treedef.unflatten([leaf.value for leaf in leaves])
    return H._difference(jax.tree.map(lambda leaf: leaf.value, v, is_leaf=_is_primal)), H


def _backward(H, w):
    return None, product(H, w)


def _is_primal(value):
    return isinstance(value, jax.custom_derivatives.CustomVJPPrimal)


product.defvjp(_forward, _backward, symbolic_zeros=True)
