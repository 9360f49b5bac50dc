"""Which factors of a product are transposes of each other: the same code over the same arrays."""

import operator

import jax


def outermost(lefts, rights):
    """Where the product of factors `lefts` and `rights` reads as B Aᵀ W A C or B Aᴴ W A C, with the widest W; or None.

    That is the index of Aᵀ or Aᴴ in `lefts` and of A in `rights`, scalars to take out, A, and whether it is Aᴴ.
    """
    for i, left in enumerate(lefts):
        for j in reversed(range(len(rights))):
            for reading in _readings(left, rights[j]):
                return i, j, *reading
    return None


def _readings(left, right):
    """The ways to read left as c Aᵀ or c Aᴴ and right as d A: scalars, A, and whether it is Aᴴ.

    Scalars that both have in common stay in A, whose Gram matrix is then known to be positive semidefinite.
    """
    if left.shape == right.shape[::-1]:
        (outer, without), (inner, A) = left._unscaled(), right._unscaled()
        for scalars, one, other in (([], left, right), (outer + inner, without, A)):
            for conjugate in (False, True):
                if _is_transpose(one, other, conjugate):
                    yield scalars, other, conjugate


def _is_transpose(left, right, conjugate):
    """Whether left is known to be the transpose, or the adjoint, of right: the same code over the same arrays.

    The transpose is made for that only where left holds the arrays of right, since then it has been made before.
    """
    if _alike(left, right):
        return right._equals_adjoint if conjugate else right._equals_transpose
    if {*map(id, jax.tree.leaves(left))} != {*map(id, jax.tree.leaves(right))}:
        return False
    return _alike(left, right.H if conjugate else right.T)


def _alike(A, B):
    """Whether two operators are the same code over the same arrays."""
    if type(A) is not type(B):
        return False
    (leaves, treedef), (others, other) = jax.tree.flatten(A), jax.tree.flatten(B)
    return treedef == other and all(map(operator.is_, leaves, others))
