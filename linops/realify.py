"""Complex numbers as pairs (Re, Im), and real operators on complex vectors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from linops.precision import complex_dtype, is_complex
from linops.space import Space, pair_of, space_of


def any_complex(space):
    """Whether a Space has complex leaves."""
    return any(map(is_complex, space.dtypes))


def realified(tree):
    """The pair (Re, Im) of a tree with complex leaves, any other tree as it is."""
    return pair_of(tree) if any(is_complex(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)) else tree


@dataclasses.dataclass(frozen=True)
class OnPairs:
    """The realification of functions: of a pair (Re, Im) instead of an element of `domain`, and with values like that.

    `domain` is None where it is real. Values are left as they are where `values` is False.
    """

    domain: Space | None
    values: bool = True

    def __call__(self, f):
        def on_pairs(x, *args):
            value = f(join(x, self.domain) if self.domain else x, *args)
            return realified(value) if self.values else value

        return on_pairs


def join(pair, space):
    """The element of a Space with complex leaves of a pair (Re, Im)."""
    real, imaginary = jax.tree.leaves(pair[0]), iter(jax.tree.leaves(pair[1]))
    leaves = [
        jax.lax.complex(re, next(imaginary)) if is_complex(d) else re for re, d in zip(real, space.dtypes, strict=True)
    ]
    return space.treedef.unflatten(leaves)


@functools.lru_cache(maxsize=512)
def realified_space(space):
    """The Space of the pairs (Re, Im) of the elements of a Space."""
    with space.scope():
        return dataclasses.replace(space_of(jax.eval_shape(pair_of, space.struct), "x"), paired=space)


def complex_space(space):
    """The Space with the complex counterparts of the leaves' dtypes."""
    return Space(space.treedef, space.shapes, tuple(map(complex_dtype, space.dtypes)))


def one_field(space):
    """The Space, with all leaves complex where one is: over the real numbers it would be another one."""
    return complex_space(space) if any_complex(space) else space


def extended(mv, v, domain, codomain):
    """The complex-linear extension of real-linear `mv`: the product with v in the complex Space `codomain`.

    It takes v and -iv, both restricted to `domain`, for the real and the imaginary part.
    """

    def restricted(z, struct):
        return z.astype(struct.dtype) if is_complex(struct.dtype) else z.real.astype(struct.dtype)

    def joined(product, struct):
        re, im = product.astype(struct.dtype)
        return jax.lax.complex(re.real - im.imag, re.imag + im.real)  # re + 1j * im, also where that is Inf

    parts = jax.tree.map(lambda z, s: jnp.stack([restricted(z, s), restricted(-1j * z, s)]), v, domain.struct)
    return jax.tree.map(joined, jax.vmap(mv)(parts), codomain.struct)
