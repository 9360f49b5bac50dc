"""Block diagonals: a pytree of operators as one operator."""

import functools

import jax

from linops.algebra.operator import Complexified, Operator
from linops.arrays import brief
from linops.precision import is_complex, lowest
from linops.space import Space, space_of


class BlockDiagonal(Operator):
    """The block diagonal of a tuple, list, dict or other pytree of operators: a tree v goes to the tree of A_i v_i.

    Its domain and codomain are the trees of those of the operators, and its vectors theirs, one after the other. It is
    symmetric, Hermitian or positive semidefinite where all of them claim that.

    Raises
    ------
    TypeError
        Where there are no operators, or leaves that are none.

    Examples
    --------
    >>> A = BlockDiagonal({"a": linops.Diagonal(jnp.array([2.0, 3.0])), "b": linops.Matrix(jnp.ones((1, 2)))})
    >>> A.toarray().tolist()
    [[2.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]

    The blocks of a Hessian on its diagonal, of each leaf of x:

    >>> x = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    >>> H = {name: linops.Hessian(lambda x: jnp.sum(x["w"] ** 3) * x["b"][0], x, wrt=name) for name in x}
    >>> BlockDiagonal(H).toarray().tolist()
    [[0.0, 0.0, 0.0], [0.0, 18.0, 0.0], [0.0, 0.0, 36.0]]
    """

    operators: object

    def __init__(self, operators):
        blocks, treedef = jax.tree.flatten(operators, is_leaf=_is_operator)
        if not blocks or not all(map(_is_operator, blocks)):
            other = next((block for block in blocks if not _is_operator(block)), operators)
            raise TypeError(
                f"BlockDiagonal got {brief(other)}, expected a pytree of linops operators, at least one: an array goes "
                "as linops.Matrix(M) or linops.Diagonal(d)"
            )
        vars(self).update(operators=treedef.unflatten(_of_one_field(blocks)))

    _blocks = functools.cached_property(lambda self: jax.tree.leaves(self.operators, is_leaf=_is_operator))
    _treedef = functools.cached_property(lambda self: jax.tree.structure(self.operators, is_leaf=_is_operator))
    domain = functools.cached_property(lambda self: self._tree_of(A.domain for A in self._blocks))
    codomain = functools.cached_property(lambda self: self._tree_of(A.codomain for A in self._blocks))
    symmetric = property(lambda self: all(A._equals_transpose for A in self._blocks))
    hermitian = property(lambda self: all(A._equals_adjoint for A in self._blocks))
    positive_semidefinite = property(lambda self: all(A.positive_semidefinite for A in self._blocks))
    _real = property(lambda self: all(A._real for A in self._blocks))

    def at(self, points):
        """The same operator with each block at its point of a tree like that of the operators."""
        return self._of(A.at(x) for A, x in zip(self._blocks, self._treedef.flatten_up_to(points), strict=True))

    def _points(self):
        """Of another kind than those of its blocks: a tree of them."""
        points = super()._points()
        return [("blocks", *points)] if points else []

    def _tree_of(self, spaces):
        return space_of(self._treedef.unflatten(space.struct for space in spaces), "a block diagonal")

    def _of(self, blocks):
        return self._replace(operators=self._treedef.unflatten(blocks))

    def _factors(self):
        return dict(enumerate(self._blocks))

    def _with_factors(self, factors):
        return self._of(factors.values())

    def _mv(self, v):
        parts = self._treedef.flatten_up_to(v)
        return self._treedef.unflatten(A._mv(part) for A, part in zip(self._blocks, parts, strict=True))

    def _transposed(self):
        return self._of(A.T for A in self._blocks)


def _is_operator(value):
    return isinstance(value, Operator)


def _of_one_field(blocks):
    """Operators over one field, where those that adapt have the dtype of the others."""
    if any(is_complex(A.dtype) for A in blocks):
        blocks = [A if is_complex(A.dtype) else Complexified(A) for A in blocks]
    if firm := [A.dtype for A in blocks if not A._adapts]:
        spaces = [Space.flat(A.shape[1], lowest(firm)) for A in blocks]
        blocks = [A._on(space, space) if A._adapts else A for A, space in zip(blocks, spaces, strict=True)]
    return blocks
