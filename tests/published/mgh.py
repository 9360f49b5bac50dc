"""The problems of J. J. More, B. S. Garbow and K. E. Hillstrom, "Testing Unconstrained Optimization Software",
ACM Transactions on Mathematical Software 7 (1981), 17-41: minimize f(x) = sum of r_i(x)^2 from the standard start.

All 35 are here, under the paper's names. Two are smooth where the minimizers are but not everywhere: the helical
valley jumps at x_1 = 0, x_2 < 0, and the function of Gulf research has a power of |x_2 - y_i|. Where a minimum is
known for any number of variables, `SIZED` makes the problem of n, in work and memory of O(n).
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The residuals r of a problem, its standard start, and the minima of f that are published, the least one first."""

    number: int  # in the paper
    residuals: Callable[[Array], Array]  # in the precision of x
    start: np.ndarray
    minima: tuple[float, ...]

    @property
    def name(self):
        return self.residuals.__name__

    @property
    def n(self):
        return self.start.size

    def f(self, x):
        return jnp.sum(self.residuals(jnp.asarray(x)) ** 2)

    def reached(self, value, tolerance=1e-5):
        """Whether a value of f is one of the minima: in relative terms, or by its root if that is 0."""
        zero = tolerance**2 * min(1, float(self.f(self.start)))
        return any(abs(value - minimum) <= (tolerance * minimum if minimum else zero) for minimum in self.minima)


def _indices(count, x):
    """1, ..., count, in the precision of x."""
    return jnp.arange(1, count + 1, dtype=x.dtype)


def _array(text, x):
    return jnp.asarray(np.array(text.split(), float), x.dtype)


def rosenbrock(x):
    return extended_rosenbrock(x)


def freudenstein_and_roth(x):
    a, b = x
    return jnp.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x):
    a, b = x
    return jnp.stack([1e4 * a * b - 1, jnp.exp(-a) + jnp.exp(-b) - 1.0001])


def brown_badly_scaled(x):
    a, b = x
    return jnp.stack([a - 1e6, b - 2e-6, a * b - 2])


def beale(x):
    a, b = x
    return jnp.stack([1.5 - a * (1 - b), 2.25 - a * (1 - b**2), 2.625 - a * (1 - b**3)])


def jennrich_and_sampson(x):
    i = _indices(10, x)
    return 2 + 2 * i - jnp.exp(i * x[0]) - jnp.exp(i * x[1])


def helical_valley(x):
    a, b, c = x
    turns = 0.25 + jnp.arctan2(-a, b) / (2 * np.pi)  # of the angle, between -1/4 and 3/4
    return jnp.stack([10 * (c - 10 * turns), 10 * (jnp.sqrt(a**2 + b**2) - 1), c])


def bard(x):
    y = _array("0.14 0.18 0.22 0.25 0.29 0.32 0.35 0.39 0.37 0.58 0.73 0.96 1.34 2.10 4.39", x)
    u = _indices(15, x)
    v = 16 - u
    return y - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


def gaussian(x):
    half = "0.0009 0.0044 0.0175 0.0540 0.1295 0.2420 0.3521 "
    y = _array(half + "0.3989 " + " ".join(reversed(half.split())), x)
    t = (8 - _indices(15, x)) / 2
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - y


def meyer(x):
    y = _array("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872", x)
    return x[0] * jnp.exp(x[1] / (45 + 5 * _indices(16, x) + x[2])) - y


def gulf_research_and_development(x):
    t = _indices(99, x) / 100
    y = 25 + (-50 * jnp.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def box_three_dimensional(x):
    t = _indices(10, x) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def powell_singular(x):
    return extended_powell_singular(x)


def wood(x):
    a, b, c, d = x
    scaled = math.sqrt(90) * (d - c**2), math.sqrt(10) * (b + d - 2), (b - d) / math.sqrt(10)
    return jnp.stack([10 * (b - a**2), 1 - a, scaled[0], 1 - c, scaled[1], scaled[2]])


def kowalik_and_osborne(x):
    y = _array("0.1957 0.1947 0.1735 0.1600 0.0844 0.0627 0.0456 0.0342 0.0323 0.0235 0.0246", x)
    u = _array("4.0 2.0 1.0 0.5 0.25 0.167 0.125 0.1 0.0833 0.0714 0.0625", x)
    return y - x[0] * u * (u + x[1]) / (u * (u + x[2]) + x[3])


def brown_and_dennis(x):
    t = _indices(20, x) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


def osborne_1(x):
    y = _array(
        "0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.850 0.818 0.784 0.751 0.718 0.685 0.658 0.628 0.603 0.580 0.558 "
        "0.538 0.522 0.506 0.490 0.478 0.467 0.457 0.448 0.438 0.431 0.424 0.420 0.414 0.411 0.406",
        x,
    )
    t = 10 * (_indices(33, x) - 1)
    return y - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


def biggs_exp6(x):
    t = _indices(13, x) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


def osborne_2(x):
    y = _array(
        "1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608 0.655 0.616 0.606 0.602 0.626 "
        "0.651 0.724 0.649 0.649 0.694 0.644 0.624 0.661 0.612 0.558 0.533 0.495 0.500 0.423 0.395 0.375 0.372 0.391 "
        "0.396 0.405 0.428 0.429 0.523 0.562 0.607 0.653 0.672 0.708 0.633 0.668 0.645 0.632 0.591 0.559 0.597 0.625 "
        "0.739 0.710 0.729 0.720 0.636 0.581 0.428 0.292 0.162 0.098 0.054",
        x,
    )
    t = (_indices(65, x) - 1) / 10
    decay = x[0] * jnp.exp(-t * x[4])
    return y - decay - sum(x[i] * jnp.exp(-((t - x[i + 7]) ** 2) * x[i + 4]) for i in (1, 2, 3))


def watson(x):
    n = x.size
    t, j = _indices(29, x)[:, None] / 29, np.arange(n)
    slope = t ** j[:-1] @ (j[1:] * x[1:])
    value = t**j @ x
    return jnp.concatenate([slope - value**2 - 1, jnp.stack([x[0], x[1] - x[0] ** 2 - 1])])


def extended_rosenbrock(x):
    a, b = x.reshape(-1, 2).T
    return jnp.stack([10 * (b - a**2), 1 - a], axis=1).reshape(-1)


def extended_powell_singular(x):
    a, b, c, d = x.reshape(-1, 4).T
    terms = a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2
    return jnp.stack(terms, axis=1).reshape(-1)


def penalty_1(x):
    return jnp.append(math.sqrt(1e-5) * (x - 1), jnp.sum(x**2) - 0.25)


def penalty_2(x):
    i, e = _indices(x.size, x), jnp.exp(x / 10)
    y = jnp.exp(i[1:] / 10) + jnp.exp(i[:-1] / 10)
    pairs, singles = math.sqrt(1e-5) * (e[1:] + e[:-1] - y), math.sqrt(1e-5) * (e[1:] - math.exp(-0.1))
    return jnp.concatenate([x[:1] - 0.2, pairs, singles, jnp.sum(i[::-1] * x**2, keepdims=True) - 1])


def variably_dimensioned(x):
    total = jnp.sum(_indices(x.size, x) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([total, total**2])])


def trigonometric(x):
    versines = 2 * jnp.sin(x / 2) ** 2  # 1 - cos(x)
    return jnp.sum(versines) + _indices(x.size, x) * versines - jnp.sin(x)


def brown_almost_linear(x):
    return jnp.append(x[:-1] + jnp.sum(x) - (x.size + 1), jnp.prod(x) - 1)


def discrete_boundary_value(x):
    h = 1 / (x.size + 1)
    padded = jnp.pad(x, 1)
    return 2 * x - padded[:-2] - padded[2:] + h**2 / 2 * (x + h * _indices(x.size, x) + 1) ** 3


def discrete_integral_equation(x):
    h = 1 / (x.size + 1)
    t = h * _indices(x.size, x)
    cubes = (x + t + 1) ** 3
    below, above = jnp.cumsum(t * cubes), jnp.cumsum(((1 - t) * cubes)[::-1])[::-1] - (1 - t) * cubes
    return x + h / 2 * ((1 - t) * below + t * above)


def broyden_tridiagonal(x):
    padded = jnp.pad(x, 1)
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(x):
    padded = jnp.pad(x * (1 + x), (5, 1))
    return x * (2 + 5 * x**2) + 1 - sum(padded[i : i + x.size] for i in (0, 1, 2, 3, 4, 6))


def linear_full_rank(x):
    """Of m = 2n residuals, as the next two."""
    return jnp.pad(x, (0, x.size)) - jnp.sum(x) / x.size - 1


def linear_rank_1(x):
    return _indices(2 * x.size, x) * (_indices(x.size, x) @ x) - 1


def linear_rank_1_with_zero_columns_and_rows(x):
    inner = jnp.pad(_indices(2 * x.size - 2, x), 1)  # 0, 1, ..., m - 2, 0
    return inner * (_indices(x.size, x)[1:-1] @ x[1:-1]) - 1


def chebyquad(x):
    """Means of the shifted Chebyshev polynomials at x, less their integrals over the unit interval."""
    T, integrals = jnp.stack([jnp.ones_like(x), 2 * x - 1]), np.zeros(x.size)
    while len(T) <= x.size:
        T = jnp.concatenate([T, 2 * T[-1] * T[1:] - T[-2::-1]])  # T_(k + j) = 2 T_k T_j - T_(k - j)
    integrals[1::2] = 1 / (1 - np.arange(2.0, x.size + 1, 2) ** 2)
    return jnp.mean(T[1 : x.size + 1], axis=1) - jnp.asarray(integrals, x.dtype)


def _penalty_1(n):
    """Its minimizer has equal components, a root of the cubic that the gradient is then."""
    t = max(np.roots([2 * n, 0, 1e-5 - 0.5, -1e-5]).real)
    return Problem(23, penalty_1, np.arange(1.0, n + 1), (float(1e-5 * n * (t - 1) ** 2 + (n * t**2 - 0.25) ** 2),))


def _trigonometric(n):
    """Descents from this start end in one of many local minima: where n = 10, it is one that all methods find."""
    return Problem(26, trigonometric, np.full(n, 1 / n), (0, 2.79506e-5) if n == 10 else (0,))


def _grid(n):
    return np.arange(1, n + 1) / (n + 1)


SIZED = {
    "extended_rosenbrock": lambda n: Problem(21, extended_rosenbrock, np.resize([-1.2, 1], n), (0,)),
    "extended_powell_singular": lambda n: Problem(22, extended_powell_singular, np.resize([3.0, -1, 0, 1], n), (0,)),
    "penalty_1": _penalty_1,
    "variably_dimensioned": lambda n: Problem(25, variably_dimensioned, 1 - np.arange(1, n + 1) / n, (0,)),
    "trigonometric": _trigonometric,
    "brown_almost_linear": lambda n: Problem(27, brown_almost_linear, np.full(n, 0.5), (0, 1)),
    "discrete_boundary_value": lambda n: Problem(28, discrete_boundary_value, _grid(n) * (_grid(n) - 1), (0,)),
    "discrete_integral_equation": lambda n: Problem(29, discrete_integral_equation, _grid(n) * (_grid(n) - 1), (0,)),
    "broyden_tridiagonal": lambda n: Problem(30, broyden_tridiagonal, np.full(n, -1.0), (0,)),
    "broyden_banded": lambda n: Problem(31, broyden_banded, np.full(n, -1.0), (0,)),
    "linear_full_rank": lambda n: Problem(32, linear_full_rank, np.ones(n), (n,)),
    "linear_rank_1": lambda n: Problem(33, linear_rank_1, np.ones(n), (n * (2 * n - 1) / (4 * n + 1),)),
    "linear_rank_1_with_zero_columns_and_rows": lambda n: Problem(
        34, linear_rank_1_with_zero_columns_and_rows, np.ones(n), ((2 * n**2 + 3 * n - 3) / (4 * n - 3),)
    ),
}


def _fixed(number, residuals, start, *minima):
    return Problem(number, residuals, np.array(start, float), minima)


# Minima are the paper's; Biggs' at 0 and what is marked as CUTEst's are of later collections.
_ALL = [
    _fixed(1, rosenbrock, [-1.2, 1], 0),
    _fixed(2, freudenstein_and_roth, [0.5, -2], 0, 48.9842),
    _fixed(3, powell_badly_scaled, [0, 1], 0),
    _fixed(4, brown_badly_scaled, [1, 1], 0),
    _fixed(5, beale, [1, 1], 0),
    _fixed(6, jennrich_and_sampson, [0.3, 0.4], 124.362),
    _fixed(7, helical_valley, [-1, 0, 0], 0),
    _fixed(8, bard, [1, 1, 1], 8.21487e-3, 17.4286),  # the second at infinity
    _fixed(9, gaussian, [0.4, 1, 0], 1.12793e-8),
    _fixed(10, meyer, [0.02, 4000, 250], 87.9458),
    _fixed(11, gulf_research_and_development, [5, 2.5, 0.15], 0),
    _fixed(12, box_three_dimensional, [0, 10, 20], 0),
    _fixed(13, powell_singular, [3, -1, 0, 1], 0),
    _fixed(14, wood, [-3, -1, -3, -1], 0),
    _fixed(15, kowalik_and_osborne, [0.25, 0.39, 0.415, 0.39], 3.07505e-4, 1.02734e-3),  # the second at infinity
    _fixed(16, brown_and_dennis, [25, 5, -5, -1], 85822.2),
    _fixed(17, osborne_1, [0.5, 1.5, -1, 0.01, 0.02], 5.46489e-5),
    _fixed(18, biggs_exp6, [1, 2, 1, 1, 1, 1], 0, 5.65565e-3),
    _fixed(19, osborne_2, [1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5], 4.01377e-2),
    _fixed(20, watson, np.zeros(6), 2.28767e-3),
    _fixed(20, watson, np.zeros(9), 1.39976e-6),
    _fixed(20, watson, np.zeros(12), 4.72238e-10),
    *(make(12 if name == "extended_powell_singular" else 10) for name, make in SIZED.items()),
    _fixed(24, penalty_2, np.full(4, 0.5), 9.37629e-6),
    _fixed(24, penalty_2, np.full(10, 0.5), 2.93660e-4),
    _fixed(24, penalty_2, np.full(50, 0.5), 4.29609813),  # CUTEst
    _fixed(35, chebyquad, _grid(7), 0),
    _fixed(35, chebyquad, _grid(8), 3.51687e-3),
    _fixed(35, chebyquad, _grid(9), 0),
    _fixed(35, chebyquad, _grid(10), 4.772713e-3, 6.50395e-3),  # the first of CUTEst
    _fixed(35, chebyquad, _grid(50), 5.386315e-3),  # CUTEst
]
PROBLEMS = {f"{problem.name}, n = {problem.n}": problem for problem in sorted(_ALL, key=lambda p: p.number)}
