"""Derivatives against finite differences: what `check` compares the products of operators made of functions with.

Each of `comparisons` belongs to one kind of operator: a new operator registers its own. All is compared row by row, and
along vectors in columns of like size, so that what is small beside the rest is seen: once in the precision of the
operator, and where its programs can be computed in double precision (`linops.double`), there as well, with the digits
that float32 does not show.

Central differences D(h) are taken at steps h from eps^(1/4) downward by factors of 4, relative to the scale of each
leaf of x: on the way is eps^(1/3), which balances their truncation error, of order h², with rounding, of order
eps |f| / h (Gill, Murray, Wright, Practical Optimization, 1981, sec. 4.6; Nocedal, Wright, Numerical Optimization,
2006, sec. 8.1), and where f is large beside its slopes, it rounds less in longer steps. Each row keeps the step for
which the error estimate 4 |D(h) - D(4h)| + 8 eps |f| / h is the smallest; it is the tolerance. Its first term may be
small by chance, so it is the largest over all directions, counts as at least half of that of the step before (across
kinks, relu say, which come at random, the error falls like the root of h), and as at least twice the distance to D at
shorter steps, as far as that is not rounding; and relative to the slopes no row has a smaller one than the median of
its leaf. Where f leaves a line by more than 8 eps |f| when the last digits of x move, that counts for rounding. Points
x ± h v are rounded to the dtypes of x, and the direction compared is the one between the rounded points, so that this
costs nothing.

Where the slopes to the two sides of x do not come together as h falls, x is at a kink, and a derivative is any slope
between the two.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from linops.derivatives.gauss_newton import GaussNewton, JacobianGram
from linops.derivatives.hessian import Hessian
from linops.derivatives.jacobian import Jacobian
from linops.program.missing import MissingRule
from linops.program.over_data import at_once
from linops.space import Space
from linops.verify.values import DOUBLE_EPS, Values, in_double, product, split, value_at, widened


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One claim tried: how far off it is, how far it may be, and the words for a failure."""

    error: float
    tolerance: float
    message: str
    remark: str = ""  # to be said even if it holds

    @property
    def holds(self):
        return bool(self.error <= self.tolerance)  # not so for NaN

    @property
    def excess(self):
        """How bad it is, for the worst to be shown."""
        ratio = self.error / self.tolerance if self.tolerance else self.error
        return math.inf if math.isnan(ratio) else ratio


class Unavailable(Exception):  # noqa: N818 - not an error: the reason why something is not checked
    """A check cannot be made here."""


@dataclasses.dataclass(frozen=True)
class Slopes:
    """Slopes along directions, in some of the rows of f: arrays (d, n), (d, rows), and what to make of them."""

    rows: np.ndarray
    directions: np.ndarray
    slopes: np.ndarray
    bounds: np.ndarray  # of errors, (rows,)
    gaps: np.ndarray  # from the slope to that on either side of a kink, (d, rows)


def slopes(values, x, vectors, eps, codomain):
    """Yield Slopes along the vectors, which are scaled as x is, for each step that is the best one of some rows."""
    scales = _scales(values.space, x)
    vectors = [v * scales / (max(map(_rms, vectors)) or 1.0) for v in vectors]
    largest, smallest = scales.max(initial=0) or 1.0, scales.min(initial=1) or 1.0
    start = eps ** (1 / 4) * max(1.0, largest) / largest
    count = 10 + math.ceil(math.log(max(1.0, largest) / min(1.0, smallest), 4))
    differences, noises, directions, gaps = [], [], [], []
    with np.errstate(all="ignore"):
        value = values(x)
        tiny = max(float(jnp.finfo(dtype).tiny) for dtype in values.space.dtypes)  # what underflows rounds by this
        noise = np.maximum(8 * eps * abs(value) + tiny, _noise(values, x, value, eps))
        for power in range(count):
            h = 2.0 ** np.round(np.log2(start)) / 4**power  # a power of two: the division by it is exact
            pairs = [[widened(split(values.space, x + step * v)) for step in (h, -h)] for v in vectors]
            ends = np.array([[values(ahead), values(behind)] for ahead, behind in pairs])
            differences.append((ends[:, 0] - ends[:, 1]) / (2 * h))
            gaps.append(abs(ends[:, 0] + ends[:, 1] - 2 * value) / (2 * h))
            noises.append(np.maximum(8 * eps * abs(ends).max(axis=(0, 1)), noise) / h)
            directions.append([(ahead - behind) / (2 * h) for ahead, behind in pairs])
        bounds = _bounds(differences, noises)
    best, least = np.argmin(bounds, axis=0), np.min(bounds, axis=0)
    finite = np.isfinite(least)
    if len(finite) and not finite.any():
        raise Unavailable("f is not finite near x, so it has no differences")
    sizes = np.take_along_axis(_largest(differences, axis=1), best[None], axis=0)[0]
    least = _no_less_than_median(least, sizes, codomain)
    for k in np.unique(best[finite]):
        rows = np.flatnonzero(finite & (best == k))
        gap = _kinks(gaps, noises, k)[:, rows]
        yield Slopes(rows, np.array(directions[k]), differences[k][:, rows], least[rows], gap)


def _bounds(differences, noises):
    """An estimate of the error of the differences in each row at each step, infinite where there is none."""
    bounds, truncation = [], np.nan
    for k, (difference, noise) in enumerate(zip(differences, noises, strict=True)):
        before = differences[k - 1] if k else np.full_like(difference, np.nan)
        truncation = np.fmax(4 * _largest(difference - before), truncation / 2)
        # At a step much too long a wave has slopes near 0, and so near each other, and far from those at shorter ones.
        later = zip(differences[k + 1 :], noises[k + 1 :], strict=True)
        unlike = [2 * (_largest(difference - other) - other_noise) for other, other_noise in later]
        bounds.append(np.max([truncation, *unlike], axis=0) + noise)
    return np.nan_to_num(bounds, nan=np.inf)


def _no_less_than_median(bounds, sizes, codomain):
    """Bounds that chance does not make too small: relative to the slopes, no less than the median of the leaf."""
    with np.errstate(all="ignore"):
        ratios = bounds / sizes
    for rows in _leaves(codomain):
        known = ratios[rows][np.isfinite(ratios[rows])]
        if len(known):
            bounds = np.where(rows, np.fmax(bounds, np.median(known) * sizes), bounds)
    return bounds


def _kinks(gaps, noises, k):
    """How far the slopes to the two sides are from their mean where, at step k, they do not come together; or 0."""
    longer, shorter = (gaps[k - 1], gaps[k]) if k else (gaps[0], gaps[1])  # of a smooth f a fourth
    return np.where((2 * shorter >= longer) & (gaps[k] > 4 * noises[k]), gaps[k], 0.0)


def _largest(differences, axis=0):
    """The largest over all directions."""
    return np.max(np.abs(differences), axis=axis)


def _leaves(space):
    """Masks of the entries of each leaf."""
    numbers = np.repeat(np.arange(len(space.shapes)), [math.prod(shape) for shape in space.shapes])
    return [numbers == leaf for leaf in range(len(space.shapes))]


def _scales(space, x):
    """The size of the leaf that each entry belongs to, where it is 0 that of x."""
    sizes = [_rms(widened(leaf)) or _rms(x) or 1.0 for leaf in split(space, x)]
    return np.repeat(sizes, [int(np.prod(shape)) for shape in space.shapes])


def _noise(values, x, value, eps, samples=8):
    """How far each value of f is from a line where the last digits of x move: what rounds within f."""
    moves = eps * np.random.default_rng(0).uniform(-4, 4, (samples, *x.shape)) * x
    return 2 * _largest(np.array([values(x + move) + values(x - move) - 2 * value for move in moves]))


def _by_size(vectors, sizes):
    """The vectors, restricted to columns whose sizes are alike: to each power of 1000, smaller ones together."""
    with np.errstate(all="ignore"):
        powers = np.floor(np.log10(sizes.max(initial=0) / sizes) / 3)
    powers = np.clip(np.nan_to_num(powers, nan=0.0), 0, 5)
    return [[np.where(powers == power, v, 0) for v in vectors] for power in np.unique(powers)]


def paired(what, left, right, rtol, norm=0.0):
    """<w, a> = <b, v> for a = A v and b = Aᴴ w, of an operator of at least this norm."""
    (w, a), (b, v) = ([widened(vector) for vector in pair] for pair in (left, right))
    first, second = np.vdot(w, a), np.vdot(b, v)
    sizes = {name: np.linalg.norm(vector) for name, vector in {"w": w, "a": a, "b": b, "v": v}.items()}
    scale = max(sizes["w"] * sizes["a"], sizes["b"] * sizes["v"], norm * sizes["w"] * sizes["v"])
    return Comparison(abs(first - second), rtol * scale, f"{what}: {first:.6g} and {second:.6g}")


@functools.singledispatch
def comparisons(A, subject):
    """Yield the Comparisons of an operator made of a function with differences of this function."""
    yield from ()


@comparisons.register
def _jacobian(J: Jacobian, subject):
    yield from _against_slopes(J, Values(value_at, J.function, Space.of(J.x)), subject, "f")


@comparisons.register
def _hessian(H: Hessian, subject):
    gradient = Values(Hessian._gradient, H, Space.of(H.x))
    yield from _gradient_against_slopes(H, gradient, subject)
    yield from _against_slopes(H, gradient, subject, "the gradient of f")


@comparisons.register
def _gauss_newton(G: GaussNewton, subject):
    if G._source is not None and G._source.is_of_host:
        raise Unavailable("its data come from the host, batch by batch")
    whole = G if G._source is None else at_once(G)
    J = whole._jacobian(whole.map)
    yield from comparisons(J, subject)
    with G._scope.entered():
        H = whole._weight()
    if H is not None:
        yield from comparisons(H, subject)
    for v, w in zip(subject.draw(J.domain), subject.draw(J.domain, left=True), strict=True):
        v, w = v.astype(G.dtype), w.astype(G.dtype)
        pushed = J @ v / (whole.examples if whole.is_mean else 1)
        pulled = J @ w, pushed if H is None else H @ pushed.astype(H.dtype)
        yield paired(f"<w, A v> and <J w, {'H' * bool(H)} J v> of {G!r}", (w, G @ v), pulled, subject.rtol)


@comparisons.register
def _gram(K: JacobianGram, subject):
    factors = [K._jacobian(at) for at in ([K.map] if K.x2 is None else [K.map, K._second])]
    for J in factors:
        yield from comparisons(J, subject)
    for u, v, w in zip(*map(subject.draw, (factors[0].domain, K.domain, K.codomain), (0, 0, 1)), strict=True):
        u, v, w = (vector.astype(K.dtype) for vector in (u, v, w))
        for J in factors:
            yield paired(f"<w, J u> and <Jᴴ w, u> in {K!r}", (w, J @ u), (J.rmatvec(w), u), subject.rtol)
        pulled = factors[0].rmatvec(w), factors[-1].rmatvec(v)
        yield paired(f"<w, A v> and <J1ᴴ w, J2ᴴ v> of {K!r}", (w, K @ v), pulled, subject.rtol)


def _against_slopes(A, values, subject, what):
    """Products with A, the derivative of `values`, against its slopes."""
    x, vectors = widened(A.x), subject.draw(values.space)
    doubled = in_double(Values(product, A, A.domain), vectors[0], subject.eps), in_double(values, x, subject.eps)
    rounding, underflow = subject.rtol * math.sqrt(max(1, *A.shape)), 4 * float(jnp.finfo(A.dtype).tiny)
    tried = [(*doubled, DOUBLE_EPS, 4 * subject.rtol)] if None not in doubled else []
    tried += [(lambda v: widened(A @ v.astype(A.dtype)), values, subject.eps, rounding)]
    for group in _by_size(vectors, _column_sizes(A, subject) * _scales(values.space, x)):
        exact = _Exact(len(group), A.codomain)
        for multiply, function, eps, rtol in tried:
            for found in map(exact.seen, slopes(function, x, group, eps, A.codomain)):
                products = np.array([multiply(v) for v in found.directions])[:, found.rows]
                tolerance = rtol * _largest(products) + underflow
                yield _compared(found, products, tolerance, f"a product with {A!r}", what, A.codomain)


def _gradient_against_slopes(H, gradient, subject):
    """The gradient that a Hessian is the derivative of, against slopes of the function."""
    space = gradient.space
    x, vectors, f = widened(H.x), subject.draw(space), Values(_Weighted.__call__, _Weighted(H), space)
    doubled = in_double(gradient, x, subject.eps), in_double(f, x, subject.eps)
    tried = [(doubled[0](x), doubled[1], DOUBLE_EPS)] if None not in doubled else []
    tried += [(gradient(x), f, subject.eps)]
    for group in _by_size(vectors, abs(tried[0][0]) * _scales(space, x)):
        exact = _Exact(len(group), _SCALAR)
        for g, function, eps in tried:
            for found in map(exact.seen, slopes(function, x, group, eps, _SCALAR)):
                products = np.sum(g * found.directions, axis=1, keepdims=True)
                sizes = [np.linalg.norm(g[v != 0]) * np.linalg.norm(v) for v in found.directions]
                yield _compared(found, products, subject.rtol * max(sizes), f"the gradient in {H!r}", "f", _SCALAR)


class _Exact:
    """The first Slopes seen in each row, in double precision if any: how far off later ones are, these know from them.

    What rounds within f, of small numbers beside large ones say, moves with no last digit of x, and so is not seen in
    single precision alone.
    """

    def __init__(self, directions, codomain):
        self.slopes = np.full((directions, codomain.size), np.nan, complex)

    def seen(self, found):
        first = self.slopes[:, found.rows]
        self.slopes[:, found.rows] = np.where(np.isnan(first), found.slopes, first)
        return dataclasses.replace(found, bounds=found.bounds + _largest(np.nan_to_num(found.slopes - first)))


_SCALAR = Space.flat(1, np.float64)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("hessian",), meta_fields=())
@dataclasses.dataclass(frozen=True)
class _Weighted:
    """The scalar function whose second derivative a Hessian is."""

    hessian: Hessian

    def __call__(self, x):
        values = jax.tree.leaves(self.hessian.function(x))
        weights = jax.tree.leaves(self.hessian.weights) or [1] * len(values)
        return sum(jnp.sum(w * value) for w, value in zip(weights, values, strict=True))


def _column_sizes(A, subject):
    """How large the entries in each column are, as products with the adjoint see it; alike where there is none."""
    lefts = [w.astype(A.dtype) for w in subject.draw(A.codomain, left=True)]
    try:
        return _largest([widened(A.rmatvec(w)) for w in lefts])
    except (NotImplementedError, MissingRule):
        return np.ones(A.shape[1])


def _compared(found, products, rounding, product, function, codomain):
    """The Comparison of products with Slopes, in the row where they are the furthest apart."""
    errors = abs(products - found.slopes)
    smooth = found.bounds + rounding
    tolerances = smooth + found.gaps
    with np.errstate(all="ignore"):
        worst = np.unravel_index(np.argmax(np.nan_to_num(errors / tolerances)), errors.shape)
    kinked = found.rows[((errors > smooth) & (errors <= tolerances)).any(axis=0)]
    kink = f"{function} has a kink near x, where "
    cause = f"{kink}only slopes between those to its two sides pass; " if found.gaps[worst] else ""
    return Comparison(
        float(errors[worst]),
        float(tolerances[worst]),
        f"{product} is not the slope of {function} by central differences: {cause}look at custom derivative rules, "
        f"for {_entry(codomain, found.rows[worst[1]])} first",
        f"{kink}a product between its slopes to the two sides passes: at {_entry(codomain, kinked[0])}"
        if len(kinked)
        else "",
    )


def _entry(space, row):
    return "the value" if space is _SCALAR else f"entry {space.locate(int(row)) or 0}"


def _rms(vector):
    return np.linalg.norm(vector) / math.sqrt(max(1, len(vector)))
