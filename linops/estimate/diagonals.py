"""The diagonal of an operator: Hutchinson's estimate and XDiag."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from linops.estimate.probes import diagonal_entry, gram, in_blocks, of_field, rademacher
from linops.estimate.ranges import grown_range, left_out, new_probes, scaled
from linops.estimate.result import mean_of, with_rounding
from linops.estimate.runs import Basis, Mean, fits, operand, require_square, run
from linops.space import combination

METHODS = ("hutchinson", "xdiag")


def diagonal(A, key, *, method="auto", rtol=None, num_matvecs=None):
    """The diagonal of a square operator, a vector of shape (n,) on the device, and one of standard errors.

    It takes `num_matvecs` products, 100 by default, or with `rtol` as many as it takes until the norm of the standard
    errors is at most that share of the norm of the value. Where the products suffice for all columns of the identity,
    the value is exact and its standard error 0. `A.domain.unravel` makes a tree of it.

    - "hutchinson": the mean of w * (A w) over vectors w of entries 1 and -1 (Bekas, Kokiopoulou, Saad 2007).
    - "xdiag": half of the products find the range of A, for which products with Aᴴ give the diagonal, and the rest is
      estimated by each probe beside the range of the others (Epperly, Tropp, Webber 2024). Its standard errors are
      those that the paper tells from their scatter, which are none since the estimates depend on each other, times 1.5.
    - "auto": "hutchinson" with `rtol`, for less than 16 products, and where memory is short; otherwise "xdiag".

    It can be a part of a jitted function, and of one that is differentiated, as `trace` can: the derivative is that of
    the estimate with its probes and its basis held fixed, whose expectation is that of the diagonal.

    >>> H = linops.Hessian(lambda x: jnp.sum(jnp.cos(x) * x[::-1]), jnp.linspace(0.0, 1.0, 500))
    >>> found = linops.estimate.diagonal(H, jax.random.key(0), num_matvecs=60)
    >>> found.value.shape, bool(np.linalg.norm(found.value - H.diagonal()) < 3 * np.linalg.norm(found.standard_error))
    ((500,), True)
    """
    require_square(A, "diagonal")
    A, width = operand(A, "diagonal")
    if method == "auto":
        few = rtol is not None or (num_matvecs or 100) < 16 or not fits(A, 2 * (num_matvecs or 100))
        method = "hutchinson" if few else "xdiag"
    if method not in METHODS:
        raise ValueError(f"diagonal got method={method!r}, expected 'auto' or one of {', '.join(map(repr, METHODS))}")
    return run(_ESTIMATORS[method](width), A, key, rtol, num_matvecs)


def _sample(A, key):
    w = rademacher(A.domain, key)
    return jax.tree.map(lambda w, y: of_field(A, w * y), w, A._mv(w))


def _finish(A, mean, error):
    return of_field(A, A.domain.ravel(mean)), jnp.real(A.domain.ravel(error))


def _whole(A, columns):
    return columns


def _hutchinson(width):
    return Mean("diagonal", width, _sample, _finish, diagonal_entry, _whole)


@dataclasses.dataclass(frozen=True)
class _XDiag(Basis):
    width: int
    name: ClassVar = "diagonal"
    matvecs: ClassVar = 2
    fewest: ClassVar = 4

    column = staticmethod(diagonal_entry)
    whole = staticmethod(_whole)

    def grown(self, A, key, state, count):
        W = new_probes(rademacher, A, key, state, count)
        return grown_range(A, state, W, self._times(A), self._times(A.H))

    def _times(self, A):
        return lambda V: in_blocks(A._mv, V, self.width)

    def read(self, A, state):
        W, Y, Q, Z = state
        size, Y, Z = scaled(A.domain, Y, Z)
        S = left_out(A, *jax.lax.stop_gradient((Y, W, Q)))
        QY = gram(A.domain, Q, Y)
        inside = combination(Q, (QY - S * jnp.sum(S.conj() * QY, axis=0)).T)  # the bases without the probes
        outside = jax.tree.map(jnp.subtract, Y, inside)

        def read(w, outside, q, z, qs, zs):
            inside = q * z.conj()
            samples = jnp.sum(inside, axis=0) - qs * zs.conj() + w * outside
            value, error = mean_of(of_field(A, samples), WIDENING)
            return value, with_rounding(A, error, jnp.sum(jnp.abs(inside), axis=0))

        blocks = W, outside, Q, Z, combination(Q, S.T), combination(Z, S.T)
        found = list(map(read, *map(jax.tree.leaves, blocks)))
        value, error = (A.domain.treedef.unflatten([pair[i] for pair in found]) for i in (0, 1))
        return tuple(size * result for result in _finish(A, value, error))


WIDENING = 1.5  # counted over 40 keys and all entries, by which one and two cover .68 and .95 at least

_ESTIMATORS = {"hutchinson": _hutchinson, "xdiag": _XDiag}
