"""`linops.precondition`: operators that are close to the inverse of another one, for M= of solvers.

Each is symmetric, or Hermitian, and positive definite by construction.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from linops.algebra.operator import Operator
from linops.arrays import as_key
from linops.counted import allowed, told
from linops.estimate.diagonals import diagonal
from linops.estimate.probes import columns, gram, in_blocks, joined, orthonormal, unit
from linops.estimate.ranges import new_probes
from linops.estimate.runs import operand, require_square
from linops.iterate import compute, scope_of
from linops.krylov import laid, product, rotated
from linops.linalg.operands import fitting, require_dtype
from linops.linalg.systems import require_not_negative
from linops.matrix import Diagonal, Identity, LowRank
from linops.node import static
from linops.products import is_traced
from linops.space import Space, as_whole, combination, inner_products, length, placed

SMALLEST = 100  # times eps, eigenvalues of a preconditioner: U is orthonormal to some eps
FIRST_RANK = 16
POWERS = 3  # products, from which the norm of what is left is known to a fourth
DIGITS = 6  # to which a solver is thought to come
MOST_OF_LEAF = 2048  # entries of a leaf, of which a block is inverted


def jacobi(A, *, key=None, num_matvecs=None):
    """The inverse of the diagonal of A: exact, of n products in blocks, or estimated from `num_matvecs` with a key.

    A is symmetric with a positive diagonal; absolute values are taken of the entries, and none is smaller than eps
    times the largest.

    >>> A = linops.Matrix(np.array([[4.0, 1.0], [1.0, 2.0]], np.float32))
    >>> linops.precondition.jacobi(A).toarray().tolist()
    [[0.25, 0.0], [0.0, 0.5]]
    """
    require_square(A, "jacobi")
    if (key is None) != (num_matvecs is None):
        raise ValueError(
            f"jacobi got key={key!r} and num_matvecs={num_matvecs!r}, expected both, for an estimate, or none of them"
        )
    entries = A.diagonal() if key is None else diagonal(A, key, num_matvecs=num_matvecs).value
    with scope_of(A).entered():
        sizes = abs(jnp.asarray(entries))
        floor = jnp.finfo(sizes.dtype).eps * jnp.max(sizes, initial=0)
        sizes = jnp.where(sizes > floor, sizes, jnp.where(floor > 0, floor, 1))
        entries = A.domain.unravel((1 / sizes).astype(A.domain.dtype))
        return Diagonal._make(entries=entries, space=A.domain)  # a matrix may be the element


def nystrom(A, shift=0.0, rank=None, *, key=None):
    """The randomized Nystroem preconditioner of A + shift I, for a positive semidefinite A whose eigenvalues decay.

    From `rank` products, of random vectors, come approximate eigenpairs (w, U), and the preconditioner is
    I + U ((w_r + shift) / (w + shift) - 1) Uᴴ, with the smallest w_r of them, none of its eigenvalues below 100 eps, so
    that rounding leaves it positive: the condition number of A + shift I is
    at most 1 + (w_r + E) / shift then, with the norm E of A - U w Uᴴ. Without a rank there are 16, or twice as many,
    and so on, until six digits take `cg`, by its bound for 1 + E / shift, no more steps than that; or until half of n,
    or what a fourth of the memory holds, is reached. w_r itself says little, for it may be a third of the eigenvalue
    that it stands for: E is estimated, from three products more each time. Where the spectrum does not decay, as of a
    Laplacian, it does not help.

    Source: Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 44 (2023), in which E is estimated too. The
    eigenvalues are those of the core matrix with its null space left out, in place of a Cholesky factor, which float32
    often does not have.

    >>> A = linops.Diagonal(jnp.exp2(-jnp.arange(100.0)))
    >>> M = linops.precondition.nystrom(A, shift=1e-3)
    >>> from linops.linalg import cg
    >>> cg(A + 1e-3 * linops.Identity(100), jnp.ones(100), M=M, full_output=True)[2].iterations < 8
    Array(True, dtype=bool)
    """
    require_square(A, "nystrom")
    require_not_negative("nystrom", shift=shift)
    A, width = operand(A, "nystrom")
    n = A.shape[0]
    key = as_key(jax.random.key(0) if key is None else key, "nystrom")
    limit = n if is_traced((A, shift)) else allowed(A._listeners(), math.inf)
    if rank is not None:
        if not 1 <= rank <= min(n, limit):
            raise ValueError(
                f"nystrom got rank={rank} for {A!r}, expected 1 <= rank <= n = {n}, and no more than its monitors allow"
            )
        pairs = _pairs(A, shift, _sketched(A, None, key, rank, width))
        told(A._listeners(), rank)
        return _nystrom(A, shift, *pairs)
    if is_traced((A, shift)):
        raise ValueError("nystrom got no rank= within jit, vmap or grad, expected one: shapes do not depend on numbers")
    if limit < 1:
        raise ValueError(f"nystrom got {A!r}, whose monitors allow no more products, expected one at least")
    most = fitting([A.domain] * 3, min(max(1, n // 2), limit), 1)
    rank, sketch, products = min(FIRST_RANK, most), None, 0
    while True:
        sketch = _sketched(A, sketch, key, rank, width)
        pairs = _pairs(A, shift, sketch)
        room = limit - rank - products - POWERS
        if rank == most or room <= 0:
            break
        products += POWERS
        if rank >= _steps(A, shift, pairs, key):
            break
        rank = min(2 * rank, most, rank + room)
    told(A._listeners(), rank + products)
    return _nystrom(A, shift, *pairs)


def block_jacobi(A):
    """The inverse of the blocks of A along the leaves of its domain, of as many products as it has columns.

    A is symmetric with blocks that are positive definite; absolute values are taken of their eigenvalues, and none is
    smaller than eps times the largest. A leaf has at most 2048 entries: `jacobi` takes more.

    >>> H = linops.Hessian(lambda x: x["a"] @ x["a"] * x["b"], {"a": jnp.ones(2), "b": jnp.ones(())})
    >>> linops.precondition.block_jacobi(H).mv({"a": jnp.ones(2), "b": jnp.ones(())})["a"].tolist()
    [0.5, 0.5]
    """
    require_square(A, "block_jacobi")
    require_dtype("block_jacobi", A)
    A, width = operand(A, "block_jacobi")
    sizes = [math.prod(shape) for shape in A.domain.shapes]
    if max(sizes, default=0) > MOST_OF_LEAF:
        raise ValueError(
            f"block_jacobi got {A!r} with a leaf of {max(sizes)} entries, expected at most {MOST_OF_LEAF}: linops."
            "precondition.jacobi inverts the diagonal, nystrom takes what decays"
        )
    blocks = Blocks(compute(_Blocks(width), A), A.domain)
    told(A._listeners(), A.shape[1])
    return blocks


def deflation(w, V):
    """The preconditioner I + V (w_min / w - 1) Vᴴ that makes the eigenvalues w, at orthonormal eigenvectors V, equal.

    w, of shape (k,), is positive, and V of shape (n, k), or a tree of k elements along a leading axis: what
    `linops.linalg.eigsh` returns. Where w are the largest eigenvalues, the condition number is that of the others.

    >>> w, V = linops.linalg.eigsh(linops.Diagonal(jnp.array([1.0, 2.0, 100.0])), k=2)
    >>> np.allclose(linops.precondition.deflation(w, V).toarray().diagonal(), [1, 1, 0.02])
    True
    """
    w = jnp.asarray(w)
    if not is_traced(w) and not bool(jnp.all(w > 0)):
        raise ValueError(f"deflation got eigenvalues {np.asarray(w)}, expected positive ones")
    correction = LowRank(_shrinking(jnp.min(w) / w), V)
    _require_definite(correction)
    return Identity(correction.space) + correction


def _require_definite(correction):
    """Refuse vectors that are known and so far from orthonormal that I - V |d| Vᴴ has an eigenvalue below zero."""
    if is_traced(correction):
        return
    with scope_of(correction).entered():
        roots = jnp.sqrt(-correction.values)
        G = gram(correction.space, correction.rows, correction.rows)
        largest = jnp.linalg.norm(roots[:, None] * G * roots, 2)
    if not largest < 1:
        raise ValueError(
            f"deflation got V with which it has an eigenvalue of {1 - float(largest):.3g}, expected positive ones, as "
            "with orthonormal columns: those of linops.linalg.eigsh"
        )


# What it comes to.


@dataclasses.dataclass(frozen=True)
class _Sketch:
    """More orthonormal random vectors, and their products."""

    rank: int
    width: int

    def __call__(self, A, sketch, key):
        space = A.domain
        before = None if sketch is None else sketch[0]
        more = new_probes(type(space).draw, A, key, sketch, self.rank)
        W = orthonormal(space, joined(before, more), before)
        added = jax.tree.map(lambda leaf: leaf[columns(before) :], W)
        Y = in_blocks(A._mv, added, self.width)
        return W, joined(None if sketch is None else sketch[1], Y)


def _sketched(A, sketch, key, rank, width):
    return compute(_Sketch(rank, width), A, sketch, key)


def _eigenpairs(A, W, Y):
    """Eigenvalues, ascending, and eigenvectors of Y (Wᴴ Y)^-1 Yᴴ, for Y = A W with a little of W in it.

    And the smallest Ritz value of A in the span of W.
    """
    space = A.domain
    norms = jax.vmap(space.norm)(Y)
    shift = jnp.sqrt(space.size * 1.0).astype(norms.dtype) * jnp.finfo(norms.dtype).eps * length(norms)
    Y = jax.tree.map(lambda y, w: y + (shift * w).astype(y.dtype), Y, W)
    core = gram(space, W, Y)
    g, E = jnp.linalg.eigh((core + core.conj().T) / 2)
    kept = g > len(g) * jnp.finfo(g.dtype).eps * g[-1]
    roots = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, g, 1)), 0)
    Q = orthonormal(space, Y)
    U, s, _ = jnp.linalg.svd(product(gram(space, Q, Y), E * roots))
    return jnp.maximum(s**2 - shift, 0)[::-1], rotated(Q, U.T[::-1]), g[0]


def _pairs(A, shift, sketch):
    w, U, lowest = compute(_eigenpairs, A, *sketch)
    if not is_traced((lowest, shift)) and lowest < -shift - math.sqrt(jnp.finfo(w.dtype).eps) * w[-1]:
        raise ValueError(
            f"nystrom got {A!r} and shift={shift}, whose sum is not positive definite: a Ritz value of the first is "
            f"{lowest:.3g}; expected a positive semidefinite operator, as J.T @ J or a Gauss-Newton matrix of a convex "
            "loss, or a larger shift"
        )
    return w, U


def _steps(A, shift, pairs, key):
    """How many steps of `cg` are enough: its error falls by (k - 1) / (k + 1), k the root of the condition number."""
    rest = compute(_rest, A, *pairs, key)
    with scope_of(A).entered():
        return math.log(2 * 10**DIGITS) / 2 * jnp.sqrt(1 + rest / _least(shift, pairs[0]))


def _rest(A, w, U, key):
    """The norm of A - U w Uᴴ, from below, by the power method, begun with a probe that is not in the sketch."""
    space = A.domain

    def step(_, state):
        v, norm = state
        v = space.scale(1 / jnp.where(norm > 0, norm, 1), v)
        found = combination(U, w * inner_products(space, U, v))
        v = space.add(A._mv(v), space.scale(-1, found))
        return v, space.norm(v)

    v = laid(A, space.draw(jax.random.fold_in(key, space.size)))
    return jax.lax.fori_loop(0, POWERS, step, (v, space.norm(v)))[1]


def _least(shift, w):
    """What is taken for the shift: not less than rounding, and not zero of A = 0."""
    least = jnp.maximum(jnp.asarray(shift, w.dtype), jnp.finfo(w.dtype).eps * w[-1])
    return jnp.where(least > 0, least, 1)


def _nystrom(A, shift, w, U):
    with scope_of(A).entered():
        least = _least(shift, w)
        values = _shrinking((w[0] + least) / (w + least))
        return Identity(A.domain) + LowRank._make(values=values, rows=U, space=A.domain)


def _shrinking(ratios):
    """What I + U diag Uᴴ has, to multiply by these ratios along U: none so small that rounding makes it indefinite."""
    return jnp.maximum(ratios, SMALLEST * jnp.finfo(ratios.dtype).eps) - 1


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The inverse of each block, from the columns of the identity."""

    width: int

    def __call__(self, A):
        starts = np.cumsum([0, *(math.prod(shape) for shape in A.domain.shapes)]).tolist()

        def block(i):
            def column(index):
                return jnp.ravel(as_whole(jax.tree.leaves(A._mv(unit(A.domain, index)))[i]))

            return _inverted(in_blocks(column, jnp.arange(starts[i], starts[i + 1]), self.width).T)

        return tuple(map(block, range(len(starts) - 1)))


def _inverted(block):
    """The inverse of a Hermitian matrix with the absolute values of its eigenvalues, none of them too small."""
    w, V = jnp.linalg.eigh((block + block.conj().T) / 2)
    sizes = abs(w)
    floor = jnp.finfo(sizes.dtype).eps * jnp.max(sizes, initial=0)
    sizes = jnp.maximum(sizes, jnp.where(floor > 0, floor, 1))
    return product(V / sizes, V.conj().T)


class Blocks(Operator):
    """A block diagonal matrix of Hermitian positive definite blocks, one for each leaf."""

    blocks: tuple
    space: Space = static()

    hermitian = positive_semidefinite = True
    symmetric = property(lambda self: self._real)
    domain = codomain = property(lambda self: self.space)

    def _mv(self, v):
        leaves, treedef = jax.tree.flatten(v)
        products = [product(block, jnp.ravel(as_whole(leaf))) for block, leaf in zip(self.blocks, leaves, strict=True)]
        return treedef.unflatten(placed(y.reshape(leaf.shape), leaf) for y, leaf in zip(products, leaves, strict=True))
