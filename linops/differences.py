"""Derivatives against finite differences: what `check` compares the products of operators made of functions with.

Each of `comparisons` belongs to one kind of operator: a new operator registers its own. Central differences D(h) are
taken at steps h from 4 eps^(1/3) downward by factors of 4, relative to the scale of each leaf of x: eps^(1/3) balances
their truncation error, of order h², with rounding, of order eps |f| / h (Gill, Murray, Wright, Practical Optimization,
1981, sec. 4.6; Nocedal, Wright, Numerical Optimization, 2006, sec. 8.1). The step is kept for which the error estimate
4 |D(h) - D(4h)| + 8 eps |f| / h is the smallest; it is the tolerance. Its first term may be small by chance, so it is
the largest over all directions, counts as at least half of that of the step before (across kinks, relu say, which come
at random, the error falls like the root of h), and as at least the distance to D at shorter steps, as far as that is
not rounding. Where f leaves a line by more than 8 eps |f| when the last digits of x move, that counts for
rounding. Points x ± h v are rounded to the dtypes of x, and the direction compared is the one between the rounded
points, so that this costs nothing.
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from linops.gauss_newton import GaussNewton, JacobianGram
from linops.hessian import Hessian
from linops.jacobian import Jacobian
from linops.precision import is_complex
from linops.program.settings import Scope
from linops.program.staged import Flat
from linops.space import Space


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One claim tried: how far off it is, how far it may be, and the words for a failure."""

    error: float
    tolerance: float
    message: str

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


@functools.partial(jax.tree_util.register_dataclass, data_fields=("owner",), meta_fields=("method", "space"))
@dataclasses.dataclass(frozen=True)
class Values:
    """The map x -> owner.method(x) of points in a Space, called with the vector of x in double precision."""

    owner: object
    method: str
    space: Space

    def of_leaves(self, *leaves):
        return jax.tree.leaves(getattr(self.owner, self.method)(self.space.treedef.unflatten(leaves)))

    def __call__(self, x):
        with self.space.scope():
            return widened(Flat(self, Scope(self.space.wide)).call("of_leaves", *split(self.space, x)))


def widened(tree):
    """The vector of a tree, a NumPy array in double precision, which adds no rounding of its own."""
    leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    dtype = complex if any(is_complex(leaf.dtype) for leaf in leaves) else float
    return np.concatenate([np.zeros(0, dtype), *(leaf.astype(dtype) for leaf in leaves)])


def split(space, vector):
    """The leaves, NumPy arrays of the dtypes of the Space, of a vector."""
    ends = np.cumsum([int(np.prod(shape)) for shape in space.shapes])[:-1]
    parts = np.split(vector, ends)
    return [p.reshape(s).astype(d) for p, s, d in zip(parts, space.shapes, space.dtypes, strict=True)]


def slopes(values, x, vectors, eps):
    """Along each v, scaled as x is: the direction between rounded points, the central difference; a bound of errors."""
    scales = _scales(values.space, x)
    vectors = [v * scales / max(map(_rms, vectors)) for v in vectors]
    largest, smallest = scales.max(initial=0) or 1.0, scales.min(initial=1) or 1.0
    start = 4 * eps ** (1 / 3) * max(1.0, largest) / largest
    count = 9 + math.ceil(math.log(max(1.0, largest) / min(1.0, smallest), 4))
    differences, noises, directions = [], [], []
    with np.errstate(all="ignore"):
        noise = max(8 * eps * np.linalg.norm(values(x)), _noise(values, x, eps))
        for power in range(count):
            h = 2.0 ** np.round(np.log2(start)) / 4**power  # a power of two: the division by it is exact
            pairs = [[widened(split(values.space, x + step * v)) for step in (h, -h)] for v in vectors]
            ends = np.array([[values(ahead), values(behind)] for ahead, behind in pairs])
            differences.append((ends[:, 0] - ends[:, 1]) / (2 * h))
            noises.append(max(8 * eps * np.linalg.norm(ends, axis=2).max(), noise) / h)
            directions.append([(ahead - behind) / (2 * h) for ahead, behind in pairs])
        bounds = _bounds(differences, noises)
    best = int(np.argmin(bounds))
    if not np.isfinite(bounds[best]):
        raise Unavailable("f is not finite near x, so it has no differences")
    return list(zip(directions[best], differences[best], strict=True)), bounds[best]


def _bounds(differences, noises):
    """An estimate of the error of the differences at each step, infinite where there is none."""
    bounds, truncation = [], np.nan
    for k, (difference, noise) in enumerate(zip(differences, noises, strict=True)):
        before = differences[k - 1] if k else np.nan
        truncation = np.fmax(4 * _largest(difference - before), truncation / 2)
        # At a step much too long a wave has slopes near 0, and so near each other, and far from those at shorter ones.
        later = zip(differences[k + 1 :], noises[k + 1 :], strict=True)
        unlike = [_largest(difference - other) - other_noise for other, other_noise in later]
        bounds.append(np.max([truncation, *unlike]) + noise)
    return np.nan_to_num(bounds, nan=np.inf)


def _largest(differences):
    return np.linalg.norm(differences, axis=-1).max()


def _scales(space, x):
    """The size of the leaf that each entry belongs to, where it is 0 that of x."""
    sizes = [_rms(widened(leaf)) or _rms(x) or 1.0 for leaf in split(space, x)]
    return np.repeat(sizes, [int(np.prod(shape)) for shape in space.shapes])


def _noise(values, x, eps):
    """How far the value of f is from a line where the last digits of x move: what rounds within f."""
    move = 2 * eps * np.random.default_rng(0).choice([-1, 1], x.shape) * x
    return 8 * np.linalg.norm(values(x + move) + values(x - move) - 2 * values(x))


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
    yield from _against_slopes(J, Values(J.function, "__call__", Space.of(J.x)), subject, "f")


@comparisons.register
def _hessian(H: Hessian, subject):
    space, x = Space.of(H.x), widened(H.x)
    f, gradient = Values(H.function, "__call__", space), Values(H, "_gradient", space)
    weights = np.ones(1) if H.weights is None else widened(H.weights)
    g = gradient(x)
    found, bound = slopes(f, x, subject.draw(space), subject.eps)
    for direction, slope in found:
        error = abs(np.sum(g * direction) - np.sum(weights * slope))
        scale = np.linalg.norm(g) * np.linalg.norm(direction)
        yield _compared(error, np.linalg.norm(weights) * bound, subject.rtol * scale, f"the gradient in {H!r}", "f")
    yield from _against_slopes(H, gradient, subject, "the gradient of f")


@comparisons.register
def _gauss_newton(G: GaussNewton, subject):
    J = G._jacobian(G.x)
    yield from comparisons(J, subject)
    H = None
    if G.loss is not None:
        with G._scope.entered():
            H = G._loss_hessian()
        yield from comparisons(H, subject)
    for v, w in zip(subject.draw(J.domain), subject.draw(J.domain, left=True), strict=True):
        v, w = v.astype(G.dtype), w.astype(G.dtype)
        pushed = J @ v
        pulled = J @ w, pushed if H is None else H @ pushed.astype(H.dtype)
        yield paired(f"<w, A v> and <J w, {'H' * bool(H)} J v> of {G!r}", (w, G @ v), pulled, subject.rtol)


@comparisons.register
def _gram(K: JacobianGram, subject):
    points = [K.x] if K.x2 is None else [K.x, K.x2]
    factors = [K._jacobian(x) for x in points]
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
    found, bound = slopes(values, widened(A.x), subject.draw(values.space), subject.eps)
    for direction, slope in found:
        product = widened(A @ direction.astype(A.dtype))
        rounding = subject.rtol * math.sqrt(max(1, *A.shape)) * np.linalg.norm(product)
        yield _compared(np.linalg.norm(product - slope), bound, rounding, f"a product with {A!r}", what)


def _compared(error, bound, rounding, product, function):
    message = f"{product} is not the slope of {function} by central differences: look at custom derivative rules"
    return Comparison(float(error), float(bound + rounding), message)


def _rms(vector):
    return np.linalg.norm(vector) / math.sqrt(max(1, len(vector)))
