"""The mixed second derivative of a function of two arguments."""

import dataclasses

import jax
import jax.numpy as jnp

from linops.derivatives import parts
from linops.derivatives.batches import read
from linops.derivatives.jacobian import Jacobian
from linops.derivatives.map import Map
from linops.precision import is_complex
from linops.program.arguments import as_tuple
from linops.realify import any_complex


class MixedDerivative(Jacobian):
    """The mixed second derivative d²f / dx dy of a scalar function at (x, y), an operator of shape (n_x, n_y).

    It maps v to the slope of the gradient in x, d/dt grad_x f(x, y + t v) at t = 0. With `wrt` it is a block of the
    Hessian of a function of x alone, between two parts of x.

    Parameters
    ----------
    f : callable
        `f(x, y, *args)`, a JAX function of two pytrees of real numbers to a scalar; with `wrt`, `f(x, *args)`.
    x, y : pytree
        The point.
    wrt : pair (rows, columns), optional
        In place of y: the parts of x of the block, each as `wrt` of `Jacobian`.
    args, data, batch_size, reduction, linearize, check_finite
        As for `Jacobian`; over data f is `f(x, y, batch, *args)`, or `f(x, batch, *args)`.

    Raises
    ------
    TypeError
        As `Jacobian` does, and where f is complex or not scalar, or there are both of y and `wrt`, or none.
    ValueError
        Where one of `wrt` selects nothing.

    Examples
    --------
    >>> B = MixedDerivative(lambda x, y: x @ x * y[0] + x[0] * y[1], jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    >>> B.toarray().tolist()
    [[2.0, 1.0], [4.0, 0.0]]
    >>> x = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    >>> MixedDerivative(lambda x: x["a"][0] ** 2 * x["b"][0], x, wrt=("a", "b")).toarray().tolist()
    [[2.0], [0.0]]
    """

    def __init__(
        self, f, x, y=None, *, args=(), wrt=None, data=None, batch_size=None, reduction="mean", linearize=None,
        check_finite=True,
    ):  # fmt: skip
        if (y is None) == (wrt is None) or not (wrt is None or (isinstance(wrt, tuple) and len(wrt) == 2)):
            raise TypeError(
                f"MixedDerivative got {'no y' if y is None else 'y'} and wrt={wrt!r}, expected y, or in its place "
                "wrt=(rows, columns), two parts of x; for parts of x and y, make them one: f(x) of x = (x, y)"
            )
        data = read(data, batch_size, reduction)
        if wrt is None:
            traced = Map.trace(f, y, (x, *as_tuple(args)), data=data, through=GradientInFirst(data is not None))
        else:
            rows, columns = wrt
            through = parts.GradientOfPart(parts.selected(x, rows, "MixedDerivative"))
            traced = Map.trace(f, x, args, data=data, wrt=columns, through=through, operator="MixedDerivative")
        vars(self).update(map=traced, extended=traced.is_extended, keep=linearize, check_finite=check_finite)
        if any_complex(self.domain) or any_complex(self.codomain):
            raise TypeError("MixedDerivative got complex x or y, expected real ones: pass real and imaginary parts")

    def at(self, x, y=None, args=None):
        """The same operator at another point, of pytrees like x and y, or their vectors; nothing is traced or compiled.

        `args` are those of f, like the ones before; with y they are to be given where f has any.
        """
        if self.map.has_rest:
            return super().at(x, args)
        return super().at(y, args=(self.codomain.point(x, "x"), *as_tuple(() if args is None else args)))

    def _points(self):
        if self.map.has_rest:
            return super()._points()
        x = self.codomain.treedef.unflatten(self.function.args[: len(self.codomain.shapes)])
        return [(x, self.x)]


@dataclasses.dataclass(frozen=True)
class GradientInFirst:
    """The gradient of functions in their first argument, as functions of the second one first."""

    over_data: bool

    def __call__(self, f):
        def gradient(y, *args):
            batch, (x, *args) = (args[:1], args[1:]) if self.over_data else ((), args)
            return jax.grad(_real(f))(x, y, *batch, *args)

        return gradient


def _real(f):
    """The same function, refused where its values are complex."""

    def checked(*args):
        value = f(*args)
        if any(is_complex(jnp.result_type(leaf)) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                "MixedDerivative got f with complex values, expected a real scalar: take the real part, or the "
                "absolute value"
            )
        return value

    return checked
