"""The trace of an operator: Hutchinson's estimate, Hutch++, XTrace, XNysTrace."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from linops.estimate.probes import (
    columns,
    diagonal_entry,
    gram,
    in_blocks,
    joined,
    of_field,
    orthonormal,
    rademacher,
    spherical,
)
from linops.estimate.ranges import Others, forms_beside, grown_range, new_probes, normalized, scaled, size_of_forms
from linops.estimate.result import jackknife, mean_of, with_rounding
from linops.estimate.runs import FEWEST, Basis, Mean, fits, operand, require_square, run
from linops.linear_map import LinearMap

METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")


def trace(A, key, *, method="auto", rtol=None, num_matvecs=None):
    """The trace of a square operator, estimated from products with random vectors.

    It takes `num_matvecs` products, 100 by default, or with `rtol` as many as it takes until the standard error is at
    most that share of the value, `num_matvecs` at most. Where the products suffice for all columns of the identity,
    the value is exact and its standard error 0. It is a complex number for a complex operator that does not claim to
    be Hermitian, and a real one otherwise. Of one probe the standard error is infinite.

    - "hutchinson": the mean of wᴴ A w over vectors w of entries 1 and -1 (Hutchinson 1989). The standard error falls as
      the root of the number of products; any number of them takes the memory of a few vectors.
    - "hutch++": of a third of the products an orthonormal basis Q of A S, S random; tr(Qᴴ A Q) from a third, and
      Hutchinson's estimate of the rest from the last (Meyer, Musco, Musco, Woodruff 2021). Its standard error is
      widened by 1.3, for the samples are few and skew; of 24 products at least.
    - "xtrace": as Hutch++, but each probe serves for both, in turn left out of the basis beside which it estimates what
      is left (Epperly, Tropp, Webber 2024). These estimates depend on each other, and the error that the paper tells
      from their scatter is too small, for a spectrum that falls at once up to seven times. The standard error here is
      the one of the jackknife, in expectation not below that of one probe less (Efron and Stein 1981), which it is far
      above where each probe makes the error many times smaller.
    - "xnystrace": the same with Nyström approximations, for operators that claim `positive_semidefinite`, and sums of
      such with factors that are known and not negative, as J.T @ J + 0.1 * I; one product a probe, and a standard error
      of the same kind. Of an operator that is not what it claims the value is NaN.
    - "auto": "hutchinson" with `rtol`, for less than 16 products, and where memory is short; otherwise "xnystrace"
      where it may be used, and "xtrace" elsewhere. For a small `rtol` and a spectrum that decays, choose one of these.

    It can be a part of a jitted function, and of one that is differentiated: with `num_matvecs`, or by "hutchinson"
    with `rtol`, which has no derivative in reverse. The derivative is that of the estimate with its probes and its
    basis held fixed, for "xnystrace" that of Hutchinson's estimate by the same probes: in each case the derivative of
    the trace is its expectation. A wrong type of A is a `TypeError`, a shape or a number that does not fit a
    `ValueError`, a value that is not finite a `FloatingPointError`, outside of a jit.

    >>> H = linops.Hessian(lambda x: jnp.sum(jnp.cos(x) * x[::-1]), jnp.linspace(0.0, 1.0, 500))
    >>> found = linops.estimate.trace(H, jax.random.key(0), num_matvecs=60)
    >>> bool(abs(found.value - np.trace(H.toarray())) < 3 * found.standard_error), int(found.matvecs)
    (True, 60)
    """
    require_square(A, "trace")
    is_semidefinite = isinstance(A, LinearMap) and A._is_semidefinite
    A, width = operand(A, "trace")
    if method == "auto":
        method = _choice(A, is_semidefinite, rtol, num_matvecs)
    if method not in METHODS:
        raise ValueError(f"trace got method={method!r}, expected 'auto' or one of {', '.join(map(repr, METHODS))}")
    if method == "xnystrace" and not is_semidefinite:
        raise ValueError(
            f'trace got method="xnystrace" for {A!r}, which does not claim to be positive semidefinite; expected one '
            "that does, as J.T @ J or a class with positive_semidefinite = True, a sum of such with factors that are "
            'not negative, known and not traced, or method="xtrace"'
        )
    return run(_ESTIMATORS[method](width), A, key, rtol, num_matvecs)


def _choice(A, is_semidefinite, rtol, num_matvecs):
    if rtol is not None or (num_matvecs or 100) < 16 or not fits(A, 2 * (num_matvecs or 100)):
        return "hutchinson"
    return "xnystrace" if is_semidefinite else "xtrace"


def _sample(A, key):
    """The form of a probe, and a bound of its parts, which may cancel."""
    w = rademacher(A.domain, key)
    product = A._mv(w)
    size = jax.lax.stop_gradient(A.domain.norm(w) * A.domain.norm(product))
    return of_field(A, A.domain.inner(w, product)), size


def _finish(A, mean, error):
    return mean[0], with_rounding(A, error[0], mean[1])


def _sum(A, columns):
    return jnp.sum(columns)


def _hutchinson(width):
    return Mean("trace", width, _sample, _finish, diagonal_entry, _sum)


@dataclasses.dataclass(frozen=True)
class _TraceBasis(Basis):
    width: int
    name: ClassVar = "trace"

    column = staticmethod(diagonal_entry)
    whole = staticmethod(_sum)

    def times(self, A):
        return lambda V: in_blocks(A._mv, V, self.width)


class _HutchPlusPlus(_TraceBasis):
    """Of each three products one finds the range, one has its part of the trace, one is for the rest."""

    matvecs = 3
    fewest = 3 * FEWEST

    def grown(self, A, key, state, count):
        S, W = (new_probes(rademacher, A, part, state, count) for part in jax.random.split(key))
        old = (None,) * 6 if state is None else state
        S, Y, Q, Z = grown_range(A, state and state[:4], S, self.times(A), self.times(A))
        return S, Y, Q, Z, joined(old[4], W), joined(old[5], self.times(A)(W))

    def read(self, A, state):
        _, S, Q, Z, W, Y = state
        size, _, Y, Z = scaled(A.domain, S, Y, Z)
        X = gram(A.domain, Q, W)
        mean, error = mean_of(of_field(A, forms_beside(A, W, Y, Q, Z, X)), WIDENING)
        inside = of_field(A, jnp.trace(gram(A.domain, Q, Z)))
        return size * (inside + mean), size * with_rounding(A, error, size_of_forms(A, Y))


class _XTrace(_TraceBasis):
    matvecs = 2
    fewest = 4

    def grown(self, A, key, state, count):
        return grown_range(A, state, new_probes(spherical, A, key, state, count), self.times(A), self.times(A))

    def read(self, A, state):
        W, Y, Q, Z = state
        size, Y, Z = scaled(A.domain, Y, Z)
        others = Others.of(A, W, Y, Q, Z)
        value = of_field(A, jnp.mean(others.samples()))
        HS = others.H @ others.S
        error = jackknife(lambda j: of_field(A, others.samples_without(HS, j)), columns(W))
        return size * value, size * with_rounding(A, error, size_of_forms(A, Y))


class _XNysTrace(_TraceBasis):
    matvecs = 1
    fewest = 4

    def grown(self, A, key, state, count):
        W = new_probes(spherical, A, key, state, count)
        old = (None, None) if state is None else state
        return joined(old[0], W), joined(old[1], self.times(A)(W))

    def read(self, A, state):
        W, Y = state
        size, Y = scaled(A.domain, Y)
        value, error = _nystrom(A, *jax.lax.stop_gradient((W, Y)))
        by_hutchinson = of_field(A, jnp.mean(jax.vmap(A.domain.inner)(W, Y)))
        value += by_hutchinson - jax.lax.stop_gradient(by_hutchinson)
        return size * value, size * with_rounding(A, error, size_of_forms(A, Y))


def _nystrom(A, W, Y):
    """XNysTrace of probes and products, scaled ones: what it is of A + shift I, less the part of the shift."""
    space, n, count = A.domain, A.shape[0], columns(W)
    shift = SHIFT * jnp.finfo(space.dtype).eps * jnp.sqrt(count / n)
    Y = jax.vmap(lambda y, w: space.add(y, space.scale(shift, w)))(Y, W)
    # One LAPACK call waits for the other: at once, in a vmap on two cores, they block each other in JAX 0.10.
    sizes, U = jnp.linalg.eigh(gram(space, W, W))
    K = U / jnp.sqrt(sizes)  # W K is orthonormal
    H = K.conj().T @ gram(space, W, Y) @ K
    values, V = jnp.linalg.eigh((H + H.conj().T) / 2)
    claims = values[0] >= -jnp.sqrt(jnp.finfo(space.dtype).eps) * values[-1]  # beyond that it is not only rounding
    F = K @ V / jnp.sqrt(jnp.maximum(values, shift))  # F Fᴴ is the inverse of Wᴴ Y
    B = jnp.triu(gram(space, orthonormal(space, Y), Y)) @ F  # the Nystrom approximation is Q B Bᴴ Qᴴ
    D, lengths = normalized(F.conj().T)  # by which direction of B the approximation is smaller without a probe
    E, W_lengths = normalized(K.conj().T)
    BD = B @ D

    def samples(lost, lengths, W_lengths, out):
        # What a probe has beside the others is uniform on a sphere, of fewer dimensions, whose radius is set.
        scale = (n - count + out) * W_lengths**2
        return jnp.sum(jnp.abs(B) ** 2) - lost + scale / lengths**2 - shift * n

    def samples_without(j):
        d, Bd, e = D[:, j, None], BD[:, j, None], E[:, j, None]
        shares = d.conj().T @ D
        left = jnp.linalg.norm(D - d * shares, axis=0)
        also_lost = jnp.sum(jnp.abs(BD - Bd * shares) ** 2, axis=0) / jnp.where(left > 0, left, 1) ** 2
        W_left = jnp.linalg.norm(E - e * (e.conj().T @ E), axis=0)
        return samples(jnp.sum(jnp.abs(Bd) ** 2) + also_lost, lengths * left, W_lengths * W_left, 2)

    value = jnp.mean(samples(jnp.sum(jnp.abs(BD) ** 2, axis=0), lengths, W_lengths, 1))
    return jnp.where(claims, value, jnp.nan), jnp.where(claims, jackknife(samples_without, count), jnp.nan)


SHIFT = 4  # roundings

# Of the standard error of Hutch++: what is left of a spectrum beside a basis has few large eigenvalues, its samples are
# skew, and there are few; counted over 200 keys, one and two cover .68 and .95 at least.
WIDENING = 1.3

_ESTIMATORS = {"hutchinson": _hutchinson, "hutch++": _HutchPlusPlus, "xtrace": _XTrace, "xnystrace": _XNysTrace}
