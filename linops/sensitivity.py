"""How a solution moves with parameters: the implicit function theorem as an operator."""

import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from linops.algebra.operator import Operator
from linops.derivatives.hessian import Hessian
from linops.derivatives.jacobian import Jacobian
from linops.derivatives.mixed import MixedDerivative
from linops.iterate import differentiated
from linops.linalg.inverses import inverse
from linops.linalg.operands import once, with_nan
from linops.products import is_traced
from linops.space import Space


class Sensitivity(Operator):
    """The derivative dx/dp of the solution x(p) of F(x, p) = 0, of shape (n_x, n_p): -F_x^-1 F_p.

    With `minimizer`, F is scalar, x(p) minimizes it, and dx/dp is -F_xx^-1 F_xp.

    Parameters
    ----------
    F : callable
        `F(x, p, *args)`, a JAX function of two pytrees of real numbers, with as many values as x has entries; or to a
        scalar.
    x, p : pytree
        A solution, which is not checked to be one, and the parameters.
    args : tuple
        Further arguments of F.
    minimizer : bool
        Whether x minimizes F.
    options
        Of `linops.inverse`, which solves with F_x in each product.

    Raises
    ------
    TypeError, ValueError
        As `Jacobian` and `inverse` do; where F has not as many values as x has entries.
    NoConvergence
        From a product whose system was not solved. Within `jit` it is NaN.

    Examples
    --------
    >>> S = linops.Sensitivity(lambda x, p: x**2 - p, jnp.array([2.0, 4.0]), jnp.array([4.0, 16.0]))
    >>> (S.toarray() + 0).tolist()
    [[0.25, 0.0], [0.0, 0.125]]
    """

    inverse: Operator
    partial: Operator  # F_p
    x: object
    p: object

    def __init__(self, F, x, p, *, args=(), minimizer=False, **options):
        args = args if isinstance(args, tuple) else (args,)
        if minimizer:
            in_x, in_p = Hessian(F, x, args=(p, *args)), MixedDerivative(F, x, p, args=args)
        else:
            in_x, in_p = _jacobians(F, x, p, args)
        if in_x.shape[0] != in_x.shape[1]:
            raise ValueError(
                f"Sensitivity got F with {in_x.shape[0]} values for x with {in_x.shape[1]} entries, expected as many; "
                "with minimizer=True F is a scalar that x minimizes"
            )
        if in_x.codomain.layout != in_x.domain.layout:
            in_x, in_p = _jacobians(_Shaped(F, in_x.codomain, in_x.domain), x, p, args)
        vars(self).update(inverse=inverse(in_x, **options), partial=in_p, x=in_x.x, p=in_p.x)

    domain = property(lambda self: self.partial.domain)
    codomain = property(lambda self: self.inverse.codomain)

    def at(self, x, p, args=()):
        """The same at another solution x, of parameters p, trees like those before or their vectors; args are of F."""
        x, p = self.codomain.point(x, "x"), self.domain.point(p, "p")
        args = args if isinstance(args, tuple) else (args,)
        in_x, partial = self.inverse.at(x, args=(p, *args)), self.partial
        is_mixed = isinstance(partial, MixedDerivative)
        in_p = partial.at(x, p, args) if is_mixed else partial.at(p, args=(x, *args))
        return self._replace(inverse=in_x, partial=in_p, x=in_x._points()[0][0], p=in_p.x)

    def _points(self):
        return [(self.x, self.p)]

    def _mv(self, v):
        return jax.tree.map(jnp.negative, self.inverse._mv(self.partial._mv(v)))

    def _mv_transposed(self, w):
        return jax.tree.map(jnp.negative, self.partial._mv_transposed(self.inverse._mv_transposed(w)))

    def solution(self, p):
        """The solution x as a function of p, whose derivative this is: for `jax.grad` and `jax.jvp` at this p.

        At another p it is a `ValueError`, and NaN in a jit or grad. A second derivative is refused: the solver has it.

        >>> def loss(p):
        ...     x = jnp.sqrt(jax.lax.stop_gradient(p))  # by any solver
        ...     S = linops.Sensitivity(lambda x, p: x**2 - p, x, jax.lax.stop_gradient(p))
        ...     return jnp.sum(S.solution(p))
        >>> np.allclose(jax.grad(loss)(jnp.array([4.0, 16.0])), [0.25, 0.125])
        True
        """
        p = self.domain.point(p, "p")
        same = [jnp.all(one == other) for one, other in zip(*map(jax.tree.leaves, (p, self.p)), strict=True)]
        is_here = functools.reduce(operator.and_, same)
        if not is_traced(is_here) and not is_here:
            raise ValueError("Sensitivity.solution got another p than its own, expected that, or S.at(x, p) there")
        return with_nan(_solution(self, p), is_here)


def _jacobians(F, x, p, args):
    """The derivatives of F by x, and by p."""
    return Jacobian(F, x, args=(p, *args)), Jacobian(lambda p, x, *args: F(x, p, *args), p, args=(x, *args))


@dataclasses.dataclass(frozen=True)
class _Shaped:
    """A function whose values are handed on as elements like x."""

    F: Callable
    values: Space
    domain: Space

    def __call__(self, x, p, *args):
        return self.domain.unravel(self.values.ravel(self.F(x, p, *args)))


@jax.custom_jvp
def _solution(S, p):
    """The solution of p, whose tangent is a product with S."""
    return S.x


@_solution.defjvp
def _(primals, tangents):
    (S, p), (_, v) = primals, tangents
    change = differentiated(_change, None, S, v)
    mark = once(_ONCE, p)
    return S.x, jax.tree.map(lambda leaf: jnp.asarray(mark, leaf.dtype) * leaf, change)


def _change(_, S, v):
    """S v by the rules of solvers, which transpose."""
    return jax.jvp(S._mv, (jax.tree.map(jnp.zeros_like, v),), (v,))[1]


_ONCE = (
    "Sensitivity.solution was differentiated twice, where S would be held fixed; expected one derivative: "
    "differentiate the solver for a second one"
)
