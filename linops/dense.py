"""Dense forms: the matrix of an operator, its diagonal, and blocks of derivatives per example."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import to_device
from linops.door import all_finite, block_budget, concrete, is_traced, to_host
from linops.precision import is_complex
from linops.program.function import Function
from linops.program.missing import MissingRule
from linops.program.staged import Flat
from linops.space import Space, space_of


def toarray(operator):
    """The dense NumPy array of an operator, by columns, or by rows where a derivative rule for those alone is there."""
    try:
        return _of_columns(operator)
    except MissingRule as error:
        try:
            return np.ascontiguousarray(_of_columns(operator.T).T)
        except MissingRule:
            raise error from None


def _of_columns(operator):
    """The same, block by block of columns."""
    if "_door" not in vars(operator) and (result := _at_once(operator)) is not None:
        return result
    door = operator._door
    result = np.empty((door.rows, door.columns), door.dtype)
    for start, block in _identity_blocks(door, door.columns):
        result[:, start : start + block.shape[1]] = door.matmat(block)
    return result


def _at_once(operator):
    """The same in one program that linearizes and multiplies; None where it is too large, or not finite."""
    flat = Flat(operator, operator._scope)
    staged = flat.stage("_dense")
    if staged.bytes_live + staged.bytes_out > block_budget():
        return None
    result = to_host(concrete(lambda: flat.finish(staged)))
    return result if not operator._checks_finite or all_finite(result) else None


def diagonal(door):
    """The NumPy vector of the diagonal entries of an operator behind its door."""
    result = np.empty(min(door.rows, door.columns), door.dtype)
    for start, block in _identity_blocks(door, len(result)):
        result[start : start + block.shape[1]] = door.diagonal_of(block, start)
    return result


def _identity_blocks(door, count):
    """The first `count` columns of the identity, in blocks of the width that the door takes at once."""
    for start in range(0, count, door.block_width):
        block = np.zeros((door.columns, min(door.block_width, count - start)), door.dtype)
        np.fill_diagonal(block[start:], 1)
        yield start, block


def batch_jacobian(f, X, args=()):
    """The Jacobians of f at each of b points, as dense blocks of shape (b, m, n).

    `X` is an array, or a pytree of arrays, with a leading axis of b examples; `f(x, *args)` maps one example to an
    array or pytree. Forward or reverse mode is taken by the shorter of m and n; examples go through `vmap` in chunks
    that fit the memory budget. The blocks are a NumPy array where all of `X` is NumPy, a `jax.Array` otherwise.

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

    forward = function.forward and domain.size <= function.codomain.size
    return (jax.jacfwd if forward else jax.jacrev)(flat)(v)


def _hessian_block(function, domain, v):
    def flat(v):
        value = function.codomain.ravel(function(domain.unravel(v)))
        return value[0] if function.codomain.shapes == ((),) else value

    return (jax.jacfwd if function.forward else jax.jacrev)(jax.jacrev(flat))(v)


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
        staged = flat.stage("one", *one)
        chunk = max(1, block_budget() // max(1, staged.bytes_live + staged.bytes_out))
        convert, join = (np.array, np.concatenate) if is_numpy else (jnp.asarray, jnp.concatenate)
        pieces = [
            convert(flat.call("all", *(leaf[start : start + chunk] for leaf in leaves)))
            for start in range(0, max(count, 1), chunk)
        ]
        return pieces[0] if len(pieces) == 1 else join(pieces)
