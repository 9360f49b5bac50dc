"""The mixed second derivative of a function of two arguments."""

import dataclasses
from collections.abc import Callable

import jax

from linops.derivatives.jacobian import Jacobian
from linops.realify import any_complex


class MixedDerivative(Jacobian):
    """The mixed second derivative d²f / dx dy of a scalar function at (x, y), an operator of shape (n_x, n_y).

    It maps v to the slope of the gradient in x, d/dt grad_x f(x, y + t v) at t = 0.

    Parameters
    ----------
    f : callable
        `f(x, y, *args)`, a JAX function of two pytrees of real numbers to a scalar.
    x, y : pytree
        The point.
    args, data, batch_size, reduction, linearize, check_finite
        As for `Jacobian`; over data f is `f(x, y, batch, *args)`.

    Raises
    ------
    TypeError
        As `Jacobian` does, and where f is complex or not scalar.

    Examples
    --------
    >>> B = MixedDerivative(lambda x, y: x @ x * y[0] + x[0] * y[1], jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    >>> B.toarray().tolist()
    [[2.0, 1.0], [4.0, 0.0]]
    """

    def __init__(
        self, f, x, y, *, args=(), data=None, batch_size=None, reduction="mean", linearize=None, check_finite=True
    ):
        super().__init__(
            GradientInFirst(f, data is not None), y, args=(x, *args), data=data, batch_size=batch_size,
            reduction=reduction, linearize=linearize, check_finite=check_finite,
        )  # fmt: skip
        if any_complex(self.domain) or any_complex(self.codomain):
            raise TypeError("MixedDerivative got complex x or y, expected real ones: pass real and imaginary parts")

    def at(self, x, y, args=()):
        """The same operator at another point, of pytrees like x and y; nothing is traced or compiled.

        `args` are those of f, like the ones before.
        """
        return super().at(y, args=(x, *(args if isinstance(args, tuple) else (args,))))


@dataclasses.dataclass(frozen=True)
class GradientInFirst:
    """The gradient of a function in its first argument, as a function of the second one first."""

    f: Callable
    over_data: bool = False

    def __call__(self, y, *args):
        batch, (x, *args) = (args[:1], args[1:]) if self.over_data else ((), args)
        return jax.grad(self.f)(x, y, *batch, *args)
