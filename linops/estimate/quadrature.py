"""Gauss and Gauss-Radau quadrature by Lanczos: what a vector sees of the spectrum of a Hermitian operator.

Golub and Meurant, "Matrices, Moments and Quadrature with Applications", 2010.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops.estimate.probes import gram, in_blocks
from linops.krylov import Krylov, begin, expand, is_hermitian, projected
from linops.linalg.operands import are_zero, instantiated, once
from linops.program.settings import full_precision

ROUNDINGS = 10  # eps of an integral of absolute values, below which a change is none
LAST = 3  # steps, each of which may have changed much where f is singular within the spectrum
SLACK = 100  # times what products are off by, as shares of the norm: a node further beyond a bound disproves it


class Rule(NamedTuple):
    """A Gauss rule: `nodes` and `weights` of the measure of a vector of length one, and what made it."""

    nodes: jax.Array
    weights: jax.Array
    vectors: jax.Array  # of the tridiagonal matrix, by columns
    matrix: jax.Array
    coupling: jax.Array  # to the next vector of the Krylov space
    size: jax.Array  # of the space; what is beyond stands apart, with no weight


def krylov_space(A, b, steps, seed):
    """The Krylov space of a vector, not yet multiplied, for so many steps."""
    return begin(A, steps, jax.tree.map(lambda leaf: leaf[None], b), seed)


def expanded(A, krylov, steps):
    """The space after some steps more, as far as there is memory."""
    until = jnp.minimum(krylov.size + steps, krylov.capacity)
    return jax.lax.while_loop(lambda k: k.size < until, functools.partial(expand, A._mv, A.domain), krylov)


def gauss(A, krylov: Krylov):
    """The Gauss rule of a Krylov space of A; NaN where that is not Hermitian."""
    places, size = jnp.arange(krylov.capacity), krylov.size
    diagonal, below = (jnp.real(jnp.diagonal(krylov.matrix, -k)) for k in (0, 1))
    # Beyond the size stands a number from within the spectrum: f need not be finite elsewhere.
    matrix = tridiagonal(jnp.where(places < size, diagonal, diagonal[0]), jnp.where(places < size - 1, below, 0)[:-1])
    nodes, vectors = jnp.linalg.eigh(matrix)
    nodes = jnp.where(is_hermitian(A, projected(krylov)), nodes, jnp.nan)
    return Rule(nodes, vectors[0] ** 2, vectors, matrix, below[size - 1], size)


def rule_and_changes(A, f, krylov: Krylov, is_bounded):
    """The Gauss rule of a space, and for `truncation` how its steps have changed the integral of f.

    These are what the second half of the steps has changed, what the fourth before it has, the most that the last of
    them have, and rounding; zeros where bounds of the spectrum say more. Of a space that is all there is they are zero,
    and what f makes of nodes that are off by rounding is the last of them, which elsewhere is less than the others. The
    rules are made one after the other: batched calls of LAPACK, two at once or on several devices, block each other on
    two cores in JAX 0.10.
    """
    if is_bounded:
        rule = gauss(A, krylov)
        return rule, jnp.zeros(5, rule.nodes.dtype)
    shares, last = -(-krylov.size // jnp.array([1, 2, 4])), krylov.size - jnp.arange(1, LAST + 1)
    sizes = jnp.append(shares, jnp.maximum(last, shares[1]))
    rules = jax.lax.map(lambda size: gauss(A, krylov._replace(size=size)), sizes)
    rule = jax.tree.map(lambda leaf: leaf[0], rules)
    values = integral(f, rules.nodes, rules.weights)
    swing = jnp.max(jnp.abs(values[0] - values[3:]))
    last, before = jnp.abs(jnp.diff(values[:3]))
    changes = jnp.array([jnp.where(krylov.size > 1, last, jnp.inf), before, swing])
    is_all = krylov.size == A.shape[0]
    sums, moved = off_by_rounding(A, f, rule)
    is_whole = is_all | (rule.coupling == 0)  # nothing is left beyond the space
    return rule, jnp.array([*jnp.where(is_whole, 0, changes), sums, jnp.where(is_all, moved, 0)])


def off_by_rounding(A, f, rule):
    """What sums round, and what f makes of nodes that are off as products are: more where it is steep, or jumps."""
    by, nodes, weights = ROUNDINGS * off_by(A, rule.nodes), rule.nodes, rule.weights

    def moved(t):
        return functools.reduce(jnp.fmax, (jnp.abs(f(t + step) - f(t)) for step in (by, -by)))

    gaps = jnp.diff(nodes)  # vectors of close nodes turn into each other
    turned = jnp.minimum(1, by / jnp.where(gaps > 0, gaps, by)) * jnp.sqrt(weights[1:] * weights[:-1])
    turned = jnp.sum(jnp.where(turned > 0, turned * jnp.abs(jnp.diff(f(nodes))), 0))
    sums = ROUNDINGS * jnp.finfo(nodes.dtype).eps * integral(lambda t: jnp.abs(f(t)), nodes, weights)
    return sums, integral(moved, nodes, weights) + turned


def truncation(changes):
    """What is left of an integral by its changes: the rest of a series that converges as algebraically as they do.

    Where it converges faster, as geometric ones do, it is the next term but one, times ten; infinite where they grow.
    It is no less than the last steps have changed: next to a point where f is singular nodes come and go.
    """
    last, before, swing, rounding, moved = changes
    ratio = last / jnp.where(before > 0, before, 1)
    rest = last * ratio * jnp.minimum(1, 10 * ratio) / jnp.where(ratio < 1, 1 - ratio, 1)
    rest = jnp.where(last <= rounding, 0, jnp.where((before > 0) & (ratio < 1), rest, jnp.inf))
    return jnp.maximum(moved, jnp.maximum(rest, jnp.where(swing <= rounding, 0, swing)))


def tridiagonal(diagonal, below):
    """The symmetric matrix of a diagonal and the one below it."""
    return jnp.diag(diagonal) + jnp.diag(below, -1) + jnp.diag(below, 1)


def ends(rule):
    """What the spectrum is taken to lie between: the outermost nodes, further by the bounds of their residuals."""
    residuals = jnp.abs(rule.coupling * rule.vectors[rule.size - 1])
    low, high = rule.nodes[0], rule.nodes[-1]
    # A positive one stays positive.
    return jnp.where(
        low > 0, low / (1 + residuals[0] / jnp.where(low > 0, low, 1)), low - residuals[0]
    ), high + residuals[-1]


def radau(rule, ends):
    """The nodes and weights of Gauss-Radau rules, of one node more, with one prescribed at each of the ends."""
    count, size = len(rule.nodes), rule.size
    last = rule.vectors[size - 1] ** 2

    def matrix(end):
        distance = rule.nodes - end
        solved = jnp.sum(jnp.where(distance == 0, 0, last / jnp.where(distance == 0, 1, distance)))
        wide = jnp.zeros((count + 1, count + 1), rule.matrix.dtype).at[:count, :count].set(rule.matrix)
        corner = end + rule.coupling * (rule.coupling * solved)  # whose square may leave the range
        wide = wide.at[count, count].set(rule.matrix[0, 0]).at[size, size].set(corner)
        return wide.at[size, size - 1].set(rule.coupling).at[size - 1, size].set(rule.coupling)

    nodes, vectors = jax.lax.map(lambda end: tuple(jnp.linalg.eigh(matrix(end))), jnp.stack(ends))
    return nodes, vectors[:, 0] ** 2


def integral(f, nodes, weights):
    """The sum of f by the weights; where there is none, f may be anything."""
    values = f(nodes)
    return jnp.sum(jnp.where(weights == 0, 0, weights * values), axis=-1)


def off_by(A, nodes):
    """What products are off by, of an operator with these nodes."""
    return A._unit * jnp.max(jnp.abs(nodes))


def bracket(A, f, rule, bounds):
    """The Gauss-Radau values for the two bounds, of None as the nodes suggest; NaN where a node disproves a bound."""
    taken = [end if bound is None else bound for bound, end in zip(bounds, ends(rule), strict=True)]
    low, high = (jnp.asarray(end, rule.nodes.dtype) for end in taken)
    slack = SLACK * off_by(A, rule.nodes)
    is_false = jnp.stack([rule.nodes[0] < low - slack, rule.nodes[-1] > high + slack])
    return jnp.where(is_false, jnp.nan, integral(f, *radau(rule, [low, high])))


def differentiable(f, A, b, basis, rule, width):
    """The value bᴴ V f(T) Vᴴ b for T = Vᴴ A V, with the derivative of that for a fixed V, also by what f closes over.

    Written out, for eigenvectors have no derivative where eigenvalues are equal: that of f(T) is Y (D * Yᴴ dT Y) Yᴴ
    with the divided differences D of f (Daleckii and Krein).
    """
    V = jax.lax.stop_gradient(jax.tree.map(lambda leaf: leaf[:-1], basis))
    nodes, Y = jax.lax.stop_gradient((rule.nodes, rule.vectors))
    c = Y.T @ gram(A.domain, V, b)
    return _weighted(A, c, f(nodes)) + _tilt(width, A, f, V, Y, nodes, c)


_ONCE = (
    "a quadratic form of a function of an operator was differentiated twice, where its Krylov space would be held "
    "fixed; expected one derivative by the operator and the vector, and more by what the function closes over"
)


@jax.custom_jvp
def _weighted(A, c, values):
    """The sum of |c|² times values, which are of the Krylov space of one A and b."""
    return jnp.sum(jnp.abs(c) ** 2 * values)


def _weighted_jvp(primals, tangents):
    (A, c, values), (_, dc, dvalues) = primals, tangents
    change = jnp.zeros((), values.dtype)
    if not are_zero(dvalues):
        change = change + jnp.sum(jnp.abs(c) ** 2 * dvalues)
    if not are_zero(dc):
        mark = jnp.asarray(once(_ONCE, c), values.dtype)
        change = change + mark * jnp.sum(2 * jnp.real(c.conj() * dc) * values)
    return _weighted(A, c, values), jnp.asarray(once(_ONCE, A), values.dtype) * change


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)


def divided_differences(f, nodes):
    """(f(s) - f(t)) / (s - t) of all pairs of nodes, and the derivative where they are close."""
    s, t = nodes[:, None], nodes[None, :]
    close = jnp.abs(s - t) <= jnp.sqrt(jnp.finfo(nodes.dtype).eps) * jnp.maximum(jnp.abs(s), jnp.abs(t))
    middle = (s + t) / 2
    slope = jax.jvp(f, (middle,), (jnp.ones_like(middle),))[1]
    return jnp.where(close, slope, (f(s) - f(t)) / jnp.where(close, 1, s - t))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tilt(width, A, f, V, Y, nodes, c):
    """0, with the derivative by A of the sum of D * Yᵀ Vᴴ A V Y, D that of f as c weighs it.

    The products are made where a derivative is taken, and only there, and so is D, which may be infinite.
    """
    return jnp.zeros((), nodes.dtype)


@full_precision()
def _tilt_jvp(width, primals, tangents):
    A, f, V, Y, nodes, c = primals
    zero = _tilt(width, *primals)
    if are_zero(tangents[0]):
        return zero, zero
    D = c.conj()[:, None] * c * divided_differences(f, nodes)

    def tilt(A):
        return jnp.real(jnp.sum(D * (Y.T @ gram(A.domain, V, in_blocks(A._mv, V, width)) @ Y)))

    change = jax.jvp(tilt, (A,), (jax.tree.map(instantiated, tangents[0]),))[1]
    return zero, jnp.asarray(once(_ONCE, A, f, c), nodes.dtype) * change.astype(nodes.dtype)


_tilt.defjvp(_tilt_jvp, symbolic_zeros=True)
