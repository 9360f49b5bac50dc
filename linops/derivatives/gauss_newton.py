"""Products of Jacobians: the Gauss-Newton matrix, and the Gram matrix of the Jacobian's rows."""

import functools

from linops.algebra.operator import Conjugate, Gram, Product
from linops.derivatives.hessian import Hessian, require_scalar
from linops.derivatives.jacobian import Jacobian
from linops.derivatives.map import Derived, Map, apart
from linops.precision import is_complex
from linops.program.function import Function
from linops.realify import OnPairs, any_complex


class Expanded(Derived):
    """An operator that is made of others: a subclass adds `_expand`, which makes it in traceable JAX."""

    @functools.cached_property
    def _dtype(self):
        return self._jacobian(self.map).dtype

    def _mv(self, v):
        return self._expand()._mv(v)

    def _linearization(self):
        return self._expand().linearize()

    def _jacobian(self, at):
        return Jacobian._make(map=at, extended=at.is_extended, keep=self.keep, check_finite=self.check_finite)


class GaussNewton(Expanded):
    """The Gauss-Newton matrix Jᵀ (∇² loss) J of loss(f(x)), a symmetric operator of shape (n, n); Jᵀ J without a loss.

    For complex J it is the Hermitian Jᴴ J without a loss. With a loss, which is real, complex numbers are realified:
    the operator is real, on [Re x, Im x] for complex x.

    Parameters
    ----------
    f, x, args, linearize, check_finite
        As for `Jacobian`.
    loss : callable, optional
        A scalar function of f(x). For a convex loss the operator is positive semidefinite.

    Raises
    ------
    TypeError
        As `Jacobian` does, and where the loss is not scalar.

    Notes
    -----
    Source: Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural Computation
    14 (2002).

    Examples
    --------
    >>> G = GaussNewton(lambda x: x**2, np.array([1.0, 2.0], np.float32))
    >>> G.toarray().tolist()
    [[4.0, 0.0], [0.0, 16.0]]
    """

    loss: Function | None

    def __init__(self, f, x, loss=None, *, args=(), linearize=None, check_finite=True):
        traced = Map.trace(f, x, args, realify=loss is not None)
        vars(self).update(map=traced, loss=loss and _traced_loss(loss, traced.values))
        vars(self).update(keep=linearize, check_finite=check_finite)

    symmetric = property(lambda self: not is_complex(self.dtype))
    hermitian = True
    positive_semidefinite = property(lambda self: self.loss is None)
    domain = functools.cached_property(lambda self: self._jacobian(self.map).domain)
    codomain = property(lambda self: self.domain)

    def _expand(self):
        return Gram.of(self._jacobian(self.map), self.loss and self._loss_hessian(), conjugate=True)

    def _loss_hessian(self):
        """The Hessian of the loss at f(x)."""
        at = Map._make(function=self.loss, x=self.function(self.x), realified=self.map.values.paired)
        return Hessian._make(map=at, weights=None, keep=self.keep, check_finite=self.check_finite)


def _traced_loss(loss, values):
    """A real and scalar function of values, which are pairs where they are complex."""
    through = OnPairs(values.paired, values=False) if values.paired else None
    function = Function.trace(loss, values, what="loss", through=through)
    require_scalar(function, "a loss", "GaussNewton", "weight its values")
    if any_complex(function.codomain):
        raise TypeError(
            "GaussNewton got a loss with complex values, expected real ones; take the real part or the absolute value"
        )
    return function


class JacobianGram(Expanded):
    """J(x1) J(x2)ᵀ, an operator of shape (m, m); without x2, J Jᵀ, symmetric positive semidefinite; Jᴴ for complex J.

    It is the Gauss-Newton matrix in the space of outputs; for a network, the empirical neural tangent kernel.

    Parameters
    ----------
    f, args, linearize, check_finite
        As for `Jacobian`.
    x1, x2 : pytrees of arrays
        Points of the same structure and shapes.

    Raises
    ------
    TypeError, ValueError
        As `Jacobian` does, and where x2 is not like x1.

    Notes
    -----
    Source: Jacot, Gabriel, Hongler, Neural tangent kernel, NeurIPS (2018).

    Examples
    --------
    >>> K = JacobianGram(lambda x: jnp.stack([x[0] * x[1], x[1]]), np.array([1.0, 2.0], np.float32))
    >>> K.toarray().tolist()
    [[5.0, 1.0], [1.0, 1.0]]
    """

    x2: object

    def __init__(self, f, x1, x2=None, *, args=(), linearize=None, check_finite=True):
        traced = Map.trace(f, x1, args)
        vars(self).update(map=traced, x2=None if x2 is None else apart(traced.points.point(x2), traced))
        vars(self).update(keep=linearize, check_finite=check_finite)

    _second = property(lambda self: self.map._replace(x=self.x2))
    hermitian = property(lambda self: self.x2 is None)
    positive_semidefinite = hermitian
    symmetric = property(lambda self: self.hermitian and not is_complex(self.dtype))
    codomain = functools.cached_property(lambda self: self._jacobian(self.map).codomain)
    domain = property(lambda self: self.codomain)

    def at(self, x1, x2=None, args=None):
        """The same operator at other points of the same structure and shapes; nothing is traced or compiled.

        Without x2 it is J(x1) J(x1)ᵀ, also where the operator was made at two points. `args` are as for `Jacobian.at`.
        """
        at = self.map.at(x1, args)
        return self._replace(map=at, x2=None if x2 is None else apart(at.point(x2), at))

    def adjoint(self):
        """Aᴴ, the operator with its points exchanged."""
        return self if self.x2 is None else self._replace(map=self._second, x2=self.x)

    def _transposed(self):
        return Conjugate.of(self.adjoint())

    H = property(adjoint)
    _adjoint = adjoint

    def _expand(self):
        J = self._jacobian(self.map)
        return Gram.of(J.H, conjugate=True) if self.x2 is None else Product.of(J, self._jacobian(self._second).H)
