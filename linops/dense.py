"""Dense forms of an operator: its matrix and its diagonal."""

import jax
import numpy as np

from linops.budget import block_budget
from linops.compiled import to_host
from linops.door import all_finite
from linops.products import concrete, dense_matrix
from linops.program.jaxpr.graph import nbytes
from linops.program.missing import MissingRule
from linops.program.staged import Flat


def toarray(operator):
    """The dense NumPy array of an operator, by columns, or by rows where a derivative rule for those alone is there."""
    return _by_rule(lambda: _of_columns(operator), lambda: np.ascontiguousarray(_of_columns(operator.T).T))


def diagonal(operator):
    """The NumPy vector of the diagonal entries of an operator, or of its transpose, as rules are there."""
    return _by_rule(lambda: _diagonal(operator), lambda: _diagonal(operator.T))


def _by_rule(first, second):
    """The first of two ways to compute the same, or the second where the first has no derivative rule."""
    try:
        return first()
    except MissingRule as error:
        try:
            return second()
        except MissingRule:
            raise error from None


def _door(operator):
    """For blocks: it is linearized before, so that no program for vectors is compiled meanwhile."""
    operator.linearize()
    return operator._door


def _of_columns(operator):
    """The same, block by block of columns."""
    if "_door" not in vars(operator) and not _is_heard(operator) and (result := _at_once(operator)) is not None:
        return result
    door = _door(operator)
    result = np.empty((door.rows, door.columns), door.dtype)
    for start, block in _identity_blocks(door, door.columns):
        result[:, start : start + block.shape[1]] = door.matmat(block)
    return result


def _is_heard(operator):
    """Whether someone hears of products, which then are made at the door; also of those in solves."""
    return bool(operator._listeners()) or any(map(_is_heard, operator._factors().values()))


def _at_once(operator):
    """The same in one call, with the identity made in it; None where it is too large, or not finite."""
    # One program that linearizes and multiplies is compiled in half the time of two, but in it XLA computes again for
    # each column what two would keep.
    held = sum(nbytes(jax.typeof(leaf)) for leaf in jax.tree.leaves(operator))
    A = operator if held * operator.shape[1] <= SMALL else operator.linearize()
    flat = Flat(A, A._scope)
    staged = flat.stage(dense_matrix)
    if staged.bytes_live + staged.bytes_out > block_budget():
        return None
    result = to_host(concrete(lambda: flat.finish(staged)))
    return result if not operator._checks_finite or all_finite(result) else None


SMALL = 2**20  # bytes that are computed again, up to which that takes no longer than a call


def _diagonal(operator):
    door = _door(operator)
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
