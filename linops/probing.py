"""Lanczos runs of random vectors, beside eigenvectors that are known, as an algorithm for the driver.

Of each probe w, projected beside what is known, remains a tridiagonal matrix: for every function f of the operator it
gives wᴴ f(A) w, and so traces, norms and densities together (Golub and Meurant, 2010). What eigenvectors are known has
no part in the scatter of the probes, nor do their eigenvalues take steps (the deflation of Gambhir, Stathopoulos and
Orginos, SIAM J. Sci. Comput. 39, 2017).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linops.estimate.densities import Progress
from linops.estimate.probes import keys_of, rademacher
from linops.iterate import maybe
from linops.krylov import Krylov, begin, expand, rows_of, seed_of
from linops.precision import real_dtype

BATCHED = Krylov(0, 0, None, 0)  # spaces of as many probes, one size


class State(NamedTuple):
    """The Krylov spaces of some probes, and what is kept of those that are done."""

    key: jax.Array
    held: Any  # eigenvectors, as rows, or None
    spaces: Krylov
    matrices: jax.Array  # of all probes
    done: jax.Array  # how many of them


@dataclasses.dataclass(frozen=True)
class Probing:
    """So many steps of Lanczos for each probe, `width` of them at a time, which divides their number."""

    steps: int
    probes: int
    width: int

    def begin(self, A, key, held):
        """From a key, and eigenvectors as rows or None."""
        none = jnp.zeros((), jnp.int32)
        matrices = jnp.zeros((self.probes, self.steps + 1, self.steps), real_dtype(A.domain.dtype))
        return State(key, held, self._drawn(A, key, held, none), matrices, none)

    def step(self, A, state):
        """A step for each of the probes at hand; after the last one the next ones."""

        def expanded(krylov):
            return expand(A._mv, A.domain, krylov)

        spaces = jax.vmap(expanded, in_axes=(BATCHED,), out_axes=BATCHED)(state.spaces)
        state = state._replace(spaces=spaces)
        return maybe(self._steps_made(state) == self.steps, lambda state: self._stored(A, state), state)

    def done(self, A, state):
        """Whether all probes are, or a product was not finite."""
        return (state.done >= self.probes) | ~jnp.all(jnp.isfinite(state.matrices))

    def matvecs(self, state):
        """How many products were made."""
        return state.done * self.steps + self._steps_made(state) * self.width

    def progress(self, A, state):
        """How far a state is."""
        return Progress(state.done, self.matvecs(state), self.probes)

    def _steps_made(self, state):
        return state.spaces.size - (state.spaces.matrix.shape[-1] - self.steps)

    def _drawn(self, A, key, held, first):
        """The spaces of the next probes."""
        capacity = self.steps + (0 if held is None else rows_of(held))

        def drawn(key):
            start, more = jax.random.split(key)
            w = jax.tree.map(lambda leaf: leaf[None], rademacher(A.domain, start))
            return begin(A, capacity, w, seed_of(more), held)

        return jax.vmap(drawn, out_axes=BATCHED)(keys_of(key, first, self.width))

    def _stored(self, A, state):
        """What remains of the probes at hand is kept, and the next ones take their place."""
        matrices = state.spaces.matrix[:, -self.steps - 1 :, -self.steps :].real
        done = state.done + self.width
        matrices = jax.lax.dynamic_update_slice_in_dim(state.matrices, matrices, state.done, 0)
        return State(state.key, state.held, self._drawn(A, state.key, state.held, done), matrices, done)


class Measure(NamedTuple):
    """What probes see of a spectrum: nodes and weights, a row for each, that integrate functions to their mean.

    In NumPy's double precision. `low` and `high` are the ends of the part of the spectrum that is not known.
    """

    nodes: np.ndarray
    weights: np.ndarray
    low: float
    high: float

    def integrals(self, f):
        """Of each probe the mean of f over the spectrum."""
        return np.sum(self.weights * f(self.nodes), axis=-1)


def measured(size, known, matrices):
    """The `Measure` of an operator of a size: of known eigenvalues, and the matrices of probes beside them."""
    matrices = np.asarray(matrices, np.float64)
    count = matrices.shape[2]
    diagonal, below = (np.diagonal(matrices, -k, 1, 2) for k in (0, 1))
    places = np.arange(count)
    T = np.zeros((len(matrices), count, count))
    T[:, places, places] = diagonal
    T[:, places[1:], places[:-1]] = below[:, : count - 1]
    nodes, vectors = np.linalg.eigh(T)  # reads the lower part
    beyond = np.abs(below[:, count - 1 :] * vectors[:, -1])  # bounds of the residuals of the nodes
    # The probes have one length each here, by which their number comes out as it is known to be.
    weights = vectors[:, 0] ** 2 * (size - len(known)) / size
    known = np.broadcast_to(np.asarray(known, np.float64), (len(T), len(known)))
    return Measure(
        np.hstack([known, nodes]),
        np.hstack([np.full_like(known, 1 / size), weights]),
        float(np.min(nodes - beyond)),
        float(np.max(nodes + beyond)),
    )


def measured_whole(values, known):
    """The `Measure` of all eigenvalues, ascending, of which so many at each end are known beforehand."""
    low, high = known
    rest = values[low : len(values) - high]
    rest = rest if len(rest) else values
    return Measure(values[None], np.full((1, len(values)), 1 / len(values)), float(rest[0]), float(rest[-1]))
