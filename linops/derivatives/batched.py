"""Derivatives at each of many points, as dense blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import to_device
from linops.budget import block_budget
from linops.precision import is_complex
from linops.products import is_traced
from linops.program.function import Function
from linops.program.staged import Flat
from linops.space import Space, space_of


def batch_jacobian(f, X, args=()):
    """The Jacobians of f at each of b points, as dense blocks of shape (b, m, n).

    `X` is an array, or a pytree of arrays, with a leading axis of b examples; `f(x, *args)` maps one example to an
    array or pytree. Forward or reverse mode is taken by the shorter of m and n; examples go through `vmap` in chunks
    that fit the memory budget. The blocks are a NumPy array where all of `X` is NumPy, a `jax.Array` otherwise. What is
    NaN or Inf at an example is so in its block.

    >>> batch_jacobian(lambda x: x**2, np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)).tolist()
    [[[2.0, 0.0], [0.0, 4.0]], [[6.0, 0.0], [0.0, 8.0]]]
    """
    return _batched(_jacobian_block, f, X, args)


def batch_hessian(f, X, args=()):
    """The Hessians of f at each of b points: (b, n, n) for a scalar f, (b, m, n, n) for f with m values.

    `X`, `args` and the kind of array that is returned are as in `batch_jacobian`.

    >>> batch_hessian(lambda x: jnp.sum(x**3), np.array([[1.0, 2.0]], np.float32)).tolist()
    [[[6.0, 0.0], [0.0, 12.0]]]
    """
    return _batched(_hessian_block, f, X, args)


def _jacobian_block(function, domain, v):
    def flat(v):
        return function.codomain.ravel(function(domain.unravel(v)))

    forward = function.has_forward_rules and domain.size <= function.codomain.size
    return (jax.jacfwd if forward else jax.jacrev)(flat)(v)


def _hessian_block(function, domain, v):
    def flat(v):
        value = function.codomain.ravel(function(domain.unravel(v)))
        return value[0] if function.codomain.shapes == ((),) else value

    return (jax.jacfwd if function.has_forward_rules else jax.jacrev)(jax.jacrev(flat))(v)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("function",), meta_fields=("block", "domain"))
@dataclasses.dataclass(frozen=True)
class _Blocks:
    function: Function
    block: object
    domain: Space

    def one(self, *leaves):
        v = self.domain.ravel(self.domain.treedef.unflatten(leaves))
        return self.block(self.function, self.domain, v)

    def all(self, *leaves):
        return jax.vmap(self.one)(*leaves)


def _batched(block, f, X, args):
    paths, treedef = jax.tree_util.tree_flatten_with_path(X)
    leaves = [to_device(leaf, f"X{jax.tree_util.keystr(path)}") for path, leaf in paths]
    if not leaves or len({leaf.shape[:1] for leaf in leaves}) != 1 or leaves[0].ndim == 0:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"X has leaves of shapes {shapes}, expected arrays with a common leading axis of examples")
    count = leaves[0].shape[0]
    one = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves]
    domain = space_of(treedef.unflatten(one), "X")
    if any(map(is_complex, domain.dtypes)):
        raise TypeError(
            "X holds complex numbers, expected real ones; give f the pair of real and imaginary parts, or build a "
            "linops.Jacobian for each example"
        )
    is_numpy = not any(isinstance(leaf, jax.Array) for _, leaf in paths)
    with domain.scope():
        blocks = _Blocks(Function.trace(f, domain, args), block, domain)
        if is_traced((blocks, leaves)):
            return blocks.all(*leaves)
        flat = Flat(blocks, blocks.function.origin.scope)
        staged = flat.stage(_Blocks.one, *one)
        chunk = max(1, block_budget() // max(1, staged.bytes_live + staged.bytes_out))
        convert, join = (np.array, np.concatenate) if is_numpy else (jnp.asarray, jnp.concatenate)
        pieces = [
            convert(flat.call(_Blocks.all, *(leaf[start : start + chunk] for leaf in leaves)))
            for start in range(0, max(count, 1), chunk)
        ]
        return pieces[0] if len(pieces) == 1 else join(pieces)
