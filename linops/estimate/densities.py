"""The spectral density of a Hermitian operator, by stochastic Lanczos quadrature or the kernel polynomial method."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops.arrays import as_key
from linops.counted import allowed, told
from linops.estimate.determinants import PROBES, probes_at_once
from linops.estimate.probes import in_blocks, keys_of, rademacher, unit
from linops.estimate.quadrature import ends, expanded, gauss, krylov_space
from linops.estimate.result import mean_of
from linops.estimate.runs import operand, require_hermitian, require_whole
from linops.iterate import compute
from linops.krylov import is_hermitian, seed_of
from linops.linalg.operands import require_matrix
from linops.precision import real_dtype
from linops.products import concrete, is_traced
from linops.watching import refuse_in_jit, watched

METHODS = ("slq", "kpm")
STEPS = 64
POINTS = 512
MARGIN = 4  # widths of smoothing, by which the grid goes beyond the spectrum


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("grid", "density", "band", "width", "matvecs"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, repr=False)
class Density:
    """A spectral density: of integral 1, at the points of `grid`, smoothed by `width`.

    `band` is the standard error at each point, the scatter of the probes; 0 where all eigenvalues were computed. It is
    one of the smoothed density: `width` is the standard deviation of the Gaussian, or of the kernel in the middle of
    the spectrum, and what is narrower than that is not seen. `matvecs` is the number of products that it took.
    """

    grid: jax.Array
    density: jax.Array
    band: jax.Array
    width: jax.Array
    matvecs: jax.Array

    def __repr__(self):
        if is_traced(self) or not hasattr(self.grid, "__array__") or jnp.ndim(self.grid) != 1:
            return f"Density(grid={self.grid!r}, ...)"
        low, high = float(self.grid[0]), float(self.grid[-1])
        return (
            f"<spectral density at {len(self.grid)} points from {low:.4g} to {high:.4g}, smoothed by "
            f"{float(self.width):.2g}, of {int(self.matvecs)} products; largest {float(jnp.max(self.density)):.4g}, "
            f"standard error {float(jnp.max(self.band)):.2g} at most>"
        )


@functools.partial(jax.tree_util.register_dataclass, data_fields=("probes", "matvecs"), meta_fields=("wanted",))
@dataclasses.dataclass(frozen=True)
class Progress:
    """How many probes of those wanted have been multiplied."""

    probes: jax.Array
    matvecs: jax.Array
    wanted: int

    @property
    def text(self):
        """The same in a few words."""
        return f"{int(self.probes)} of {self.wanted} probes"


def spectral_density(
    A, key, *, method="slq", grid=None, width=None, steps=STEPS, num_matvecs=None, callback=None, save=None
):
    """The density of the eigenvalues of a Hermitian operator, φ(t) = 1/n Σᵢ δ(t - λᵢ), smoothed.

    `steps` products of Lanczos give for each probe, a vector of entries 1 and -1, nodes and weights of the part of the
    spectrum that it sees; the density is their mean over probes, of as many as `num_matvecs` products allow, 16 by
    default. Where the products suffice for all columns of the identity, it is that of all eigenvalues.

    - "slq": a Gaussian of standard deviation `width` at each node (Lin, Saad, Yang 2016), by default as wide as the
      nodes are apart in the middle of the spectrum.
    - "kpm": the Chebyshev series of the same nodes and weights, as far as they give its moments exactly, with Jackson's
      kernel (Weiße, Wellein, Alvermann, Fehske 2006); its width follows from the steps, narrower towards the ends.

    `grid` is an array of points, by default 512 from end to end. It can be a part of a jitted function. Outside of
    one, `callback(progress)` is called between blocks of probes, with the `probes` and `matvecs` made; where it
    says True the density is that of the probes so far, as after Ctrl-C. `save`, a path or a pair of one and
    seconds, is a file from which a run that was stopped goes on. An A that does not claim to be Hermitian is a
    `ValueError`. Many eigenvalues at one point, as thousands of zeros, are one peak there of their weight.

    >>> A = linops.Diagonal(jnp.linspace(-1.0, 1.0, 2000))
    >>> found = linops.estimate.spectral_density(A, jax.random.key(0))
    >>> middle = jnp.abs(found.grid) < 0.9
    >>> bool(jnp.all(jnp.abs(found.density - 0.5) < 0.1, where=middle)), int(found.matvecs)
    (True, 1024)
    """
    require_hermitian(A, "spectral_density")
    listeners = A._listeners()
    A, columns = operand(A, "spectral_density")
    require_matrix("spectral_density", A)
    if method not in METHODS:
        raise ValueError(f"spectral_density got method={method!r}, expected one of {', '.join(map(repr, METHODS))}")
    if width is not None and method == "kpm":
        raise ValueError(f'spectral_density got width={width!r} with method="kpm", whose width follows from steps=')
    steps = min(require_whole("spectral_density", steps, "steps"), A.shape[1])
    budget = PROBES * steps if num_matvecs is None else require_whole("spectral_density", num_matvecs)
    budget = allowed(listeners, budget)
    key = as_key(key, "spectral_density")
    if A.shape[1] <= budget:
        found = compute(_Whole(method, steps, columns), A, grid, width)
        told(listeners, found.matvecs)
        return _finite(A, found)
    if budget < 2 * steps:
        raise ValueError(
            f"spectral_density got num_matvecs={budget}, expected those of two probes at least, {2 * steps} products "
            f"for steps={steps}"
        )
    rules = _Rules(steps, budget // steps, probes_at_once(A, columns, steps))
    if is_traced((A, key, grid, width)):
        refuse_in_jit("spectral_density", callback=callback, save=save)
        return _Density(method, rules)(A, key, grid, width)
    state, watch = watched(rules, A, (key,), rules.progress, listeners, callback, save)
    known = int(state.count)
    if known < 2 and watch.interrupted:
        raise KeyboardInterrupt
    if known < 2:
        raise ValueError(
            f"spectral_density was stopped after {known} probes, expected two at least, whose scatter is the band"
        )
    return _finite(A, compute(_Smoothed(method, steps), A, *(a[:known] for a in state[:4]), grid, width))


def _finite(A, found):
    if A._checks_finite and not is_traced(found) and not concrete(lambda: jnp.all(jnp.isfinite(found.density))):
        raise FloatingPointError(
            f"spectral_density of {A!r} has NaN or Inf: expected finite products, multiply by a vector, A @ v, to "
            "see where they come from, and a Hermitian operator, as linops.check(A) tells"
        )
    return found


class _Probes(NamedTuple):
    """Gauss rules of probes, of which so many are there."""

    nodes: jax.Array
    weights: jax.Array
    low: jax.Array
    high: jax.Array
    count: jax.Array
    keys: jax.Array


@dataclasses.dataclass(frozen=True)
class _Rules:
    """The Gauss rules of some probes, a block of them at a time, as an algorithm for the driver."""

    steps: int
    probes: int
    width: int

    def begin(self, A, key):
        real = real_dtype(A.domain.dtype)
        rules, numbers = jnp.zeros((self.probes, self.steps), real), jnp.zeros(self.probes, real)
        return _Probes(rules, rules, numbers, numbers, jnp.zeros((), jnp.int32), keys_of(key, 0, self.probes))

    def step(self, A, state):
        places = state.count + jnp.arange(min(self.width, self.probes))
        found = jax.vmap(functools.partial(self.rule, A))(state.keys[places])
        known = (a.at[places].set(new, mode="drop") for a, new in zip(state[:4], found, strict=True))
        return _Probes(*known, jnp.minimum(state.count + len(places), self.probes), state.keys)

    def done(self, A, state):
        return state.count >= self.probes

    def progress(self, A, state):
        return Progress(state.count, state.count * self.steps, self.probes)

    def rule(self, A, key):
        start, more = jax.random.split(key)
        krylov = krylov_space(A, rademacher(A.domain, start), self.steps, seed_of(more))
        rule = gauss(A, expanded(A, krylov, self.steps))
        return rule.nodes, rule.weights, *ends(rule)


@dataclasses.dataclass(frozen=True)
class _Density:
    """The density in one piece, which is differentiable."""

    method: str
    rules: _Rules

    def __call__(self, A, key, grid, width):
        keys = keys_of(key, 0, self.rules.probes)
        rules = in_blocks(functools.partial(self.rules.rule, A), keys, self.rules.width)
        return _Smoothed(self.method, self.rules.steps)(A, *rules, grid, width)


@dataclasses.dataclass(frozen=True)
class _Smoothed:
    method: str
    steps: int

    def __call__(self, A, nodes, weights, low, high, grid, width):
        return smoothed(self.method, self.steps, nodes, weights, jnp.min(low), jnp.max(high), grid, width)


@dataclasses.dataclass(frozen=True)
class _Whole:
    method: str
    steps: int
    width: int

    def __call__(self, A, grid, width):
        columns = in_blocks(lambda i: A.domain.ravel(A._mv(unit(A.domain, i))), jnp.arange(A.shape[1]), self.width)
        nodes = jnp.linalg.eigvalsh((columns + columns.conj().T) / 2)
        nodes = jnp.where(is_hermitian(A, columns), nodes, jnp.nan)
        weights = jnp.full_like(nodes, 1 / A.shape[1])
        found = smoothed(self.method, self.steps, nodes[None], weights[None], nodes[0], nodes[-1], grid, width)
        return dataclasses.replace(found, band=jnp.zeros_like(found.band), matvecs=jnp.int32(A.shape[1]))


def smoothed(method, steps, nodes, weights, low, high, grid, width):
    """The density of nodes and weights, a row for each probe, of a spectrum between two ends."""
    if width is None:
        width = _default_width(method, steps, low, high)
    if grid is None:
        grid = jnp.linspace(low - MARGIN * width, high + MARGIN * width, POINTS)
    grid = jnp.asarray(grid, nodes.dtype)
    if method == "slq":
        each = jax.lax.map(lambda rule: gaussians(*rule, grid, width), (nodes, weights))
    else:
        each = _chebyshev(steps, nodes, weights, low, high, grid)
    density, band = mean_of(each)
    return Density(grid, density, band, jnp.asarray(width, nodes.dtype), jnp.int32(len(nodes) * steps))


def _default_width(method, steps, low, high):
    """In the middle of an interval Chebyshev nodes are π/2 of its length by their number apart; of one, by rounding."""
    length = jnp.pi / 2 * (high - low) / steps
    width = length if method == "slq" else length / 2  # Jackson's kernel of 2 steps moments
    return jnp.maximum(width, 100 * jnp.finfo(width.dtype).eps * jnp.maximum(1e-30, jnp.maximum(abs(low), abs(high))))


def gaussians(nodes, weights, grid, width):
    """On a grid the sum of Gaussians at nodes, whose integrals are weights: in NumPy or JAX, as these arrays are."""
    xp = nodes.__array_namespace__()
    bells = xp.exp(-(((grid[:, None] - nodes) / width) ** 2) / 2)
    return xp.sum(bells * weights, axis=-1) / (width * math.sqrt(2 * math.pi))


def _chebyshev(steps, nodes, weights, low, high, grid):
    """The series with Jackson's kernel of the moments that Gauss rules give exactly."""
    count = 2 * steps
    center = (high + low) / 2
    half = (
        jnp.maximum((high - low) / 2, 100 * jnp.finfo(nodes.dtype).eps * jnp.maximum(1e-30, abs(center))) * MARGIN_KPM
    )
    j = jnp.arange(count)
    q = jnp.pi / (count + 1)
    jackson = ((count - j + 1) * jnp.cos(q * j) + jnp.sin(q * j) / jnp.tan(q)) / (count + 1)

    def angles(t):
        return jnp.arccos(jnp.clip((t - center) / half, -1, 1))

    def moments(rule):
        nodes, weights = rule
        return jnp.matmul(jnp.cos(j[:, None] * angles(nodes)), weights, precision="highest")

    found = jax.lax.map(moments, (nodes, weights))
    x = (grid - center) / half
    inside = abs(x) < 1
    series = jnp.where(j > 0, 2, 1)[:, None] * jackson[:, None] * jnp.cos(j[:, None] * angles(grid))
    weight = jnp.pi * half * jnp.sqrt(jnp.where(inside, 1 - x**2, 1))
    return jnp.where(inside, jnp.matmul(found, series, precision="highest") / weight, 0)


MARGIN_KPM = 1.02  # of the half length of the spectrum: the series has poles at its ends
