"""The Hessian."""

import jax
import jax.numpy as jnp

from linops.derivatives.batches import read
from linops.derivatives.linearized import tangents
from linops.derivatives.map import Derived, Map
from linops.program.holomorphy import has_complex_derivative
from linops.realify import any_complex
from linops.space import pair_of


class Hessian(Derived):
    """The Hessian of a scalar function at x, a symmetric operator of shape (n, n): v -> d/dt grad f(x + t v) at t = 0.

    For a real function of n complex numbers it is the real (2n, 2n) Hessian on [Re x, Im x]; for a holomorphic one the
    complex symmetric (n, n) matrix.

    Parameters
    ----------
    f : callable
        `f(x, *args)`, a JAX function from a pytree of n real numbers to a scalar; with `weights`, to any pytree.
    x, args, data, batch_size, reduction, linearize, check_finite
        As for `Jacobian`.
    weights : pytree like f(x), optional
        The Hessian of the weighted sum `w . f(x)`, for a vector-valued f: the sum of w_i times the Hessian of f_i.
        For complex values of a function that is not holomorphic, that of its real part.

    Raises
    ------
    TypeError
        As `Jacobian` does, and where f is not scalar and no weights are given.
    ValueError
        Where the weights are not like f(x).

    Notes
    -----
    Products are forward over reverse; where f uses `jax.custom_vjp`, which has no forward rule, they are the transpose
    of reverse over reverse, so that they are the slope of the gradient also where a rule makes that no gradient.
    Source: Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).

    Examples
    --------
    >>> H = Hessian(lambda x: x[0] ** 2 * x[1], np.array([1.0, 2.0], np.float32))
    >>> H.toarray().tolist()
    [[4.0, 2.0], [2.0, 0.0]]
    """

    weights: object

    def __init__(
        self, f, x, *, args=(), data=None, batch_size=None, reduction="mean", weights=None, linearize=None,
        check_finite=True,
    ):  # fmt: skip
        traced = Map.trace(f, x, args, data=read(data, batch_size, reduction))
        vars(self).update(map=traced, weights=None, keep=linearize, check_finite=check_finite)
        if traced.is_extended:
            raise TypeError(
                "Hessian got f with complex values of a real point, expected real values; take the real or imaginary "
                "part, or the absolute value"
            )
        if weights is not None:
            vars(self).update(weights=_weights(traced.values, weights))
        elif traced.values.paired is not None:
            raise TypeError(
                "Hessian got f with complex values that is not holomorphic, expected real values, or a holomorphic f; "
                "take the real or imaginary part, or the absolute value"
            )
        else:
            require_scalar(traced.function, "f", "Hessian", "pass weights=w for the Hessian of w . f")
        is_known = self._source is not None  # and asked of each batch: a derivative of that is the sum of theirs
        if not (is_known or has_complex_derivative(self._gradient, self.domain, self.domain, traced.function)):
            raise TypeError(
                "Hessian got f that is holomorphic by its first derivative and not by its second, expected both; look "
                "at its custom derivative rules"
            )

    symmetric = True
    hermitian = property(lambda self: not any_complex(self.domain))
    codomain = property(lambda self: self.domain)

    def _gradient(self, x):
        return self.map.gradient(x, self.weights)

    def _mv(self, v):
        return self.map.push(v, self._gradient) if self.function.has_forward_rules else self._linearization()._mv(v)

    def _linearization(self):
        return self.map.linearize(self._gradient, self.domain, self.domain, tangents(self.x))


def _weights(space, weights):
    """Weights in the Space of values; of values in pairs, those that give Re(w . f) = Re w . Re f - Im w . Im f."""
    if space.paired is None:
        return space.point(weights, "weights")
    with space.scope():
        return pair_of(jax.tree.map(jnp.conj, space.paired.point(weights, "weights")))


def require_scalar(function, what, operator, remedy):
    """Refuse a function that is not scalar."""
    if function.codomain.shapes != ((),):
        shapes = list(function.codomain.shapes)
        raise TypeError(
            f"{operator} got {what} with values of shapes {shapes}, expected a scalar (shape ()); sum or squeeze the "
            f"value, or {remedy}"
        )
