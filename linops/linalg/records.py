"""What an algorithm says of its run: the record of a result, and the exception where there is none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence

from linops.products import is_traced

REASONS = (
    "converged",
    "the limit of iterations was reached",
    "the residuals are as small as rounding lets them be, and above the tolerance",
    "a product was NaN or infinite",
    "it was stopped",
    "the matrix is not Hermitian",
    "OPinv is not the inverse",
    "the matrix is not positive definite",
    "the preconditioner is not positive definite",
    "the boundary of the trust region was reached",
    "the matrix is singular, and the right-hand side not in its range",
    "it makes no progress any more: the matrix is singular, or restart is too small",
    "the condition number is beyond conlim",
    "f(X) and X do not commute: f is no function of matrices",
)
(
    CONVERGED,
    LIMIT,
    ROUNDING,
    NOT_FINITE,
    STOPPED,
    NOT_SYMMETRIC,
    NO_INVERSE,
    NOT_DEFINITE,
    NO_PRECONDITIONER,
    BOUNDARY,
    INCONSISTENT,
    STAGNATED,
    ILL_CONDITIONED,
    NO_FUNCTION,
) = range(len(REASONS))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Record:
    """How a run ended: a pytree of arrays, which a jitted function can return.

    `residual_norms` are computed anew from products with what is returned, `tolerance` is what they were compared with:
    what was asked for, raised to what the dtype can reach; both have one number for each value, as `converged` has.
    `matvecs` counts products with A and with its adjoint, also those of residuals. `direction` is that of `cg`, None
    elsewhere.

    >>> print(Record(*map(np.asarray, ([True, False], 1, 30, 124, [1e-9, 2e-3], [1e-6, 1e-6]))))
    1 of 2 converged: the limit of iterations was reached
      iterations 30, products 124, largest residual 2.0e-03 (tolerance 1.0e-06)
    """

    converged: jax.Array
    code: jax.Array
    iterations: jax.Array
    matvecs: jax.Array
    residual_norms: jax.Array
    tolerance: jax.Array
    direction: Any = None

    @property
    def reason(self):
        """Why it ended, in words; under jit their place in `linops.linalg.records.REASONS`."""
        if is_traced(self.code):
            return self.code
        codes = np.unique(self.code)  # of many right-hand sides each has one
        return "; ".join(REASONS[code] for code in codes)

    @property
    def text(self):
        """How far a run is, in a few words."""
        if np.size(self.converged) == 1:
            return f"residual {np.max(self.residual_norms):.1e}"
        return f"{np.sum(self.converged)} of {np.size(self.converged)} converged"

    def after(self, iterations, matvecs):
        """The same run with what was spent before it."""
        return dataclasses.replace(self, iterations=self.iterations + iterations, matvecs=self.matvecs + matvecs)

    def __repr__(self):
        if is_traced(self):
            return f"Record(converged={self.converged!r}, ...)"
        residuals, tolerance = np.ravel(self.residual_norms), np.ravel(self.tolerance)
        text = f"{self.text}: {self.reason}\n  iterations {int(np.max(self.iterations))}, products {int(self.matvecs)}"
        if residuals.size == 0:
            return text
        worst = np.argmax(residuals - tolerance)
        return f"{text}, largest residual {residuals[worst]:.1e} (tolerance {tolerance[worst]:.1e})"


class NoConvergence(ArpackNoConvergence):
    """Not all that was asked for converged: what did is in `eigenvalues` and `eigenvectors`, the rest in `record`.

    Of `svds` the eigenvalues are singular values, and the eigenvectors a pair of left and right singular vectors; of
    functions of an operator there are none, both are None.
    """

    def __init__(self, message, eigenvalues, eigenvectors, record):
        super().__init__(message, eigenvalues, eigenvectors)
        self.args = (message,)  # not as an error of ARPACK's
        self.record = record

    def __reduce__(self):
        return type(self), (*self.args, self.eigenvalues, self.eigenvectors, self.record)


def no_tangent(leaf):
    """The tangent of what has no derivative, as a record."""
    is_real = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jnp.zeros_like(leaf) if is_real else np.zeros(leaf.shape, jax.dtypes.float0)


class Interrupted(NoConvergence, KeyboardInterrupt):
    """Ctrl-C stopped a run of `eigsh` or `svds`: a KeyboardInterrupt that has what is known, as `NoConvergence` has."""
