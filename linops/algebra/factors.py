"""Which factors of a product are transposes of each other: the same code over the same arrays."""

import operator

import jax


def outermost(lefts, rights):
    """Where the product of factors `lefts` and `rights` reads as B Aᵀ W A C or B Aᴴ W A C, with the widest W; or None.

    That is the index of Aᵀ or Aᴴ in `lefts` and of A in `rights`, scalars to take out, A, and whether it is Aᴴ.
    """
    rights = [(right, _arrays(right)) for right in rights]
    for i, left in enumerate(lefts):
        arrays = _arrays(left)
        for j, (right, others) in reversed([*enumerate(rights)]):
            # The transpose is made only where left holds the arrays of right: then it has been made before.
            if arrays == others and left.shape == right.shape[::-1] and (reading := _reading(left, right)):
                return i, j, *reading
    return None


def _reading(left, right):
    """Left as c Aᵀ or c Aᴴ and right as d A: the scalars, A, and whether it is Aᴴ; None where it is neither.

    Scalars that both have in common stay in A, whose Gram matrix is then known to be positive semidefinite.
    """
    (outer, without), (inner, A) = left._unscaled(), right._unscaled()
    for scalars, one, other in (([], left, right), (outer + inner, without, A)):
        for conjugate in (False, True):
            if _is_transpose(one, other, conjugate):
                return scalars, other, conjugate
    return None


def _is_transpose(left, right, conjugate):
    if _alike(left, right):
        return right._equals_adjoint if conjugate else right._equals_transpose
    return _alike(left, right.H if conjugate else right.T)


def _alike(A, B):
    """Whether two operators are the same code over the same arrays, and the same listen."""
    if type(A) is not type(B) or A._listeners() != B._listeners():
        return False
    (leaves, treedef), (others, other) = jax.tree.flatten(A), jax.tree.flatten(B)
    return treedef == other and all(map(operator.is_, leaves, others))


def _arrays(A):
    """The arrays of an operator, without scalars by which it is multiplied."""
    return {*map(id, jax.tree.leaves(A._unscaled()[1]))}
