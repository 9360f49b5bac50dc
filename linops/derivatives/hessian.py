"""The Hessian."""

import contextlib
import functools

import jax
import jax.numpy as jnp

from linops.arrays import as_key
from linops.derivatives import differences
from linops.derivatives.batches import read
from linops.derivatives.linearized import tangents
from linops.derivatives.map import Derived, Map
from linops.node import static
from linops.program.function import PART
from linops.program.holomorphy import has_complex_derivative
from linops.program.missing import MissingRule
from linops.program.staged import Flat
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
    x, args, wrt, data, batch_size, reduction, linearize, check_finite
        As for `Jacobian`.
    weights : pytree like f(x), optional
        The Hessian of the weighted sum `w . f(x)`, for a vector-valued f: the sum of w_i times the Hessian of f_i.
        For complex values of a function that is not holomorphic, that of its real part.
    products : {"exact", "difference"}
        Products by derivatives, or approximate ones by central differences of the gradient, for functions that have no
        second derivative: (g(x + h v) - g(x - h v)) / 2h, with h by the dtype and the sizes of the leaves of x.
        `product_error()` estimates how good they are. Nothing is linearized.

    Raises
    ------
    TypeError
        As `Jacobian` does, and where f is not scalar and no weights are given, or a holomorphic f is given for
        differences.
    ValueError
        Where the weights are not like f(x), `wrt` selects nothing, or `products` is none of these.

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
    products: str = static(default="exact")

    def __init__(
        self, f, x, *, args=(), wrt=None, data=None, batch_size=None, reduction="mean", weights=None,
        products="exact", linearize=None, check_finite=True,
    ):  # fmt: skip
        keep = _kept(products, "Hessian", linearize)
        if products == "difference" and linearize:
            raise ValueError(
                f"Hessian got products={products!r} and linearize={linearize}, expected linearize=None: differences of "
                "the gradient have no linearization"
            )
        traced = Map.trace(f, x, args, data=read(data, batch_size, reduction), wrt=wrt, operator="Hessian")
        vars(self).update(map=traced, weights=None, products=products, keep=keep, check_finite=check_finite)
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
        if self._approximate:
            if any_complex(self.domain):
                raise TypeError(
                    "Hessian got a holomorphic f for differences of the gradient, expected one with real values; take "
                    'its real part, or products="exact"'
                )
        elif not (is_known or has_complex_derivative(self._gradient, self.domain, self.domain, traced.function)):
            raise TypeError(
                "Hessian got f that is holomorphic by its first derivative and not by its second, expected both; look "
                "at its custom derivative rules"
            )

    @classmethod
    def _of_map(cls, traced, products, what, weights=None):
        """That of a function which is traced already, for the optimizer `what`."""
        keep = _kept(products, what)
        return cls._make(map=traced, weights=weights, products=products, keep=keep, check_finite=True)

    symmetric = True
    _approximate = property(lambda self: self.products == "difference")
    hermitian = property(lambda self: not any_complex(self.domain))
    codomain = property(lambda self: self.domain)

    def _gradient(self, x):
        return self.map.gradient(x, self.weights)

    def _mv(self, v):
        if self._approximate:
            return differences.product(self, v)
        if not self.function.has_forward_rules:
            return self._linearization()._mv(v)
        with self._remedy():
            return self.map.push(v, self._gradient)

    def _linearization(self):
        with self._remedy():
            return self.map.linearize(self._gradient, self.domain, self.domain, tangents(self.x))

    @contextlib.contextmanager
    def _remedy(self):
        """Say what there is where f has a gradient without a derivative."""
        try:
            yield
        except MissingRule as error:
            with contextlib.suppress(MissingRule):
                jax.eval_shape(self._gradient, self.x)
                error = MissingRule(
                    f"{error} f has a gradient: approximate products, by its differences, are those of "
                    'Hessian(f, x, products="difference"), and optimizers of scalar functions take products= as well'
                )
            raise error

    # By differences.

    def _difference(self, v):
        return differences.difference(self._gradient, self.domain, self.x, v)

    @functools.cached_property
    def _unit(self):
        return differences.unit(self.domain) if self._approximate else super()._unit

    def product_error(self, key=None):
        """How far off products are, relative to their norm, a float: 0 of exact ones, which only round.

        Of differences of the gradient it is estimated, from two random vectors, as the change when the step is doubled.
        """
        if not self._approximate:
            return 0.0
        key = jax.random.key(0) if key is None else as_key(key, "product_error")
        found = _error(self, key) if self._traced else Flat(self, self._scope).call(_error, key)
        return found if isinstance(found, jax.core.Tracer) else float(found)

    def __repr__(self):
        if not self._approximate:
            return super().__repr__()
        return super().__repr__().replace("Hessian", f"Hessian by differences, to about {self._unit:.0e},", 1)


def _kept(products, what, linearize=None):
    """Whether to keep a linearization, by how products are made: differences have none."""
    if products not in ("exact", "difference"):
        raise ValueError(f'{what} got products={products!r}, expected "exact" or "difference"')
    return linearize if products == "exact" else False


def _error(H, key):
    return differences.error(H._gradient, H.domain, H.x, key)


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
        remedy = PART if len(shapes) > 1 and shapes[0] == () else remedy
        raise TypeError(
            f"{operator} got {what} with values of shapes {shapes}, expected a scalar (shape ()); sum or squeeze the "
            f"value, or {remedy}"
        )
