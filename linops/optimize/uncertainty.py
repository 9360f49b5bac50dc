"""Errors of fitted parameters: their covariance, as an operator, and standard errors."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import scipy.linalg
from scipy.optimize import OptimizeResult

from linops.algebra.operator import Gram
from linops.linalg.inverses import inverse
from linops.matrix import Matrix
from linops.optimize.limits import ROUNDINGS, eps, norms
from linops.space import Space

# The first and second derivatives of SciPy's losses rho(z).
SLOPES = {
    "soft_l1": lambda z: ((1 + z) ** -0.5, -0.5 * (1 + z) ** -1.5),
    "huber": lambda z: (np.maximum(z, 1) ** -0.5, np.where(z > 1, -0.5 * np.maximum(z, 1) ** -1.5, 0)),
    "cauchy": lambda z: (1 / (1 + z), -1 / (1 + z) ** 2),
    "arctan": lambda z: (1 / (1 + z**2), -2 * z / (1 + z**2) ** 2),
}
MOST_PARAMETERS = 5_000  # of which a dense factorization is made


class Fit(OptimizeResult):
    """SciPy's result, of trees, with errors of the parameters, computed when they are asked for.

    - `covariance`: the covariance matrix of the parameters, a symmetric operator on trees like x; of a function g of
      the parameters it is `J @ covariance @ J.T`, with `J = linops.Jacobian(g, result.x)`. For more than 5,000
      parameters it is a `linops.inverse`, of which each product is a solve.
    - `standard_errors`: the square roots of its diagonal, a tree like x. For more parameters
      `linops.estimate.diagonal(result.covariance, key)` estimates their squares, with errors of its own.

    A parameter at its bound is held there: it has no standard error, NaN, and the covariance of the others is that of
    a fit without it. Where parameters are not determined, both raise `numpy.linalg.LinAlgError`, which says which. All
    are of the model at x as it is: where `success` is False, of an x that is not the best.
    """

    @classmethod
    def of(cls, result, vectors, errors):
        """The fit of a result, with what its `Errors` are computed by."""
        fit = cls(result)
        vars(fit).update(vectors=vectors, errors=errors)
        return fit

    def __reduce__(self):
        return OptimizeResult, (dict(self),)

    @functools.cached_property
    def _root(self):
        return self.errors.root()

    @functools.cached_property
    def covariance(self):
        """The covariance matrix of the parameters, an operator."""
        if not self.errors.is_small:
            return self.errors.whole()
        space, root = self.vectors.space, self._root
        with space.scope():
            half = Matrix(root.T.astype(space.dtype))
        return Gram.of(half._on(space, Space.flat(root.shape[1], space.dtype)))

    @functools.cached_property
    def standard_errors(self):
        """The standard errors of the parameters, a tree like x."""
        if not self.errors.is_small:
            raise MemoryError(
                f"got {self.vectors.space.size} parameters, expected at most {MOST_PARAMETERS}, and a Jacobian that "
                "fits memory, for standard errors by a dense factorization: "
                "linops.estimate.diagonal(result.covariance, key) estimates their squares"
            )
        return self.vectors.tree(np.where(self.errors.held, np.nan, norms(self._root.T)))


@dataclasses.dataclass(frozen=True)
class Errors:
    """What errors of parameters are computed by, when they are asked for."""

    held: np.ndarray  # which parameters are at bounds
    is_small: bool  # whether there is a dense factorization
    root: Callable  # of no arguments: B with B Bᵀ = the covariance
    whole: Callable  # the covariance, where there is none


def inverse_of(A, held):
    """The inverse of a positive definite matrix, where no parameter is held: products by conjugate gradients."""
    if held.any():
        raise ValueError(
            f"the covariance of more than {MOST_PARAMETERS} parameters was asked for where {held.sum()} are at bounds, "
            "expected none: leave these out of the parameters"
        )
    return inverse(A, method="cg")


def errors_of_residuals(J, size, absolute_sigma):
    """Errors by the inverse of JᵀJ, of the Jacobian at the solution, where no parameter is held, and of ‖f‖ there."""
    held, unit = np.zeros(J.shape[1], bool), eps(J.dtype)

    def root():
        deviation = deviation_of_residuals(size, *J.shape, absolute_sigma)  # whose square may leave the range
        return deviation * root_of_jacobian(J.toarray().astype(float), 1.0, held, unit, J.domain)

    def whole():
        return deviation_of_residuals(size, *J.shape, absolute_sigma) ** 2 * inverse_of(J.T @ J, held)

    return Errors(held, J.shape[1] <= MOST_PARAMETERS, root, whole)


def errors_of_minimum(hessian, held, unit, space):
    """Errors by the inverse of the Hessian at the minimum, `hessian()`; of a mean over data, by that of the sum."""

    def root():
        H = hessian()
        return root_of_hessian(_examples(H) * H.toarray().astype(float), held, unit, space)

    def whole():
        H = hessian()
        return inverse_of(_examples(H) * H, held)

    return Errors(held, held.size <= MOST_PARAMETERS, root, whole)


def _examples(H):
    """How many likelihoods there are in the mean that is minimized; 1 where it is no mean over data."""
    source = H._source
    return source.count if source is not None and source.is_mean else 1


def variance_of_residuals(cost, rows, count, absolute_sigma):
    """The variance of residuals, half of whose sum of squares is the cost, from what `count` parameters leave free."""
    return deviation_of_residuals(math.sqrt(2 * cost), rows, count, absolute_sigma) ** 2


def deviation_of_residuals(size, rows, count, absolute_sigma):
    """Their standard deviation, of residuals of a norm."""
    if absolute_sigma:
        return 1.0
    enough = "; with absolute_sigma=True, for residuals in units of their standard deviations, there are enough"
    return size / math.sqrt(_freedom(rows, count, enough))


def _freedom(rows, count, enough=""):
    """The degrees of freedom; `enough` says how as many residuals as parameters would do."""
    if rows <= count:
        raise np.linalg.LinAlgError(
            f"got {rows} residuals for {count} parameters, expected more residuals, from which to estimate their "
            f"variance{enough * int(rows == count)}"
        )
    return rows - count


def variance_of_robust(values, count, loss, f_scale):
    """What takes the place of the variance of residuals under a robust loss: that of ψ beside its slope (Huber 1981).

    ψ(f) = ρ'(z) f is the derivative of f_scale² ρ(z) / 2, z = (f / f_scale)², and errors of all residuals are alike.
    """
    freedom = _freedom(values.size, count)
    z = (values / f_scale) ** 2
    first, second = np.asarray(loss(z))[1:] if callable(loss) else SLOPES[loss](z)
    slopes = first + 2 * z * second
    slope = np.mean(slopes)
    if not slope > ROUNDINGS * eps(float) * np.mean(np.abs(first) + 2 * z * np.abs(second)):
        raise np.linalg.LinAlgError(
            f"the cost is not convex at the solution, as far as residuals tell: the loss {loss!r} with f_scale="
            f"{f_scale} has a mean second derivative of {slope:.3g} there; expected a positive one, as at a minimum "
            "most of whose residuals are within f_scale"
        )
    correction = 1 + count / values.size * np.var(slopes) / slope**2
    return correction**2 * np.sum((first * values) ** 2) / freedom / slope**2


def root_of_jacobian(J, variance, held, unit, space):
    """B with B Bᵀ = variance (JᵀJ)⁻¹, for the parameters that are not held; by QR of the scaled columns."""
    J = J[:, ~held]
    lengths = norms(J)
    scale = np.where(lengths > 0, lengths, 1)
    R, order = scipy.linalg.qr(J / scale, mode="r", pivoting=True, check_finite=True)
    count = J.shape[1]
    R = R[:count]
    sizes = np.abs(np.diag(R))
    rank = int(np.sum(sizes > max(J.shape) * unit * sizes.max(initial=0)))
    if rank < count:
        kernel = np.zeros((count, count - rank))
        kernel[order] = _kernel(R, rank)
        raise np.linalg.LinAlgError(
            f"the Jacobian has rank {rank} of {count} at the solution, so that the data do not determine "
            f"{_names(np.linalg.norm(kernel, axis=1) / scale, held, space)}, which have no covariance: expected as "
            f"many independent residuals as parameters, to the digits that {space.dtype} has; hold some fixed, or add "
            "residuals that tie them"
        )
    inverse = np.zeros((count, count))
    inverse[order] = scipy.linalg.solve_triangular(R, np.eye(count))
    return _among_all(inverse / scale[:, None] * np.sqrt(variance), held)


def root_of_hessian(H, held, unit, space):
    """B with B Bᵀ = H⁻¹, for the parameters that are not held; by eigenvalues of the scaled matrix."""
    H = H[np.ix_(~held, ~held)]
    scale = np.sqrt(np.abs(np.diag(H)))
    scale = np.where(scale > 0, scale, 1)
    w, V = np.linalg.eigh(H / np.outer(scale, scale))
    least = len(w) * unit * abs(w).max(initial=0)
    if w.size and not w[0] > least:
        kind, along = "singular" if abs(w[0]) <= least else "indefinite", np.linalg.norm(V[:, w <= least], axis=1)
        raise np.linalg.LinAlgError(
            f"the Hessian is {kind} at the solution, with a scaled eigenvalue of {w[0]:.3g} beside {w[-1]:.3g} along "
            f"{_names(along / scale, held, space)}: its inverse is no covariance; expected a minimum where all "
            f"parameters are determined, to the digits that {space.dtype} has"
        )
    return _among_all(V / np.sqrt(w) / scale[:, None], held)


def _kernel(R, rank):
    """Vectors that R takes to almost nothing, all there are."""
    within = -scipy.linalg.solve_triangular(R[:rank, :rank], R[:rank, rank:]) if rank else R[:0, rank:]
    return np.concatenate([within, np.eye(R.shape[1] - rank)])


def _among_all(root, held):
    whole = np.zeros((held.size, root.shape[1]))
    whole[~held] = root
    return whole


def _names(vector, held, space, most=5):
    """Where the largest entries of a vector lie in the tree of x."""
    places = np.flatnonzero(~held)[np.argsort(-abs(vector))]
    count = int(np.sum(abs(vector) > 0.1 * abs(vector).max()))
    return ", ".join(f"x{space.locate(int(i))}" for i in places[: min(count, most)]) + ", ..." * (count > most)
