"""Products of Jacobians: the Gauss-Newton matrix, and the Gram matrix of the Jacobian's rows."""

import functools

from linops.algebra.operator import Conjugate, Gram, Product
from linops.derivatives.batches import read
from linops.derivatives.hessian import Hessian, require_scalar
from linops.derivatives.jacobian import Jacobian
from linops.derivatives.map import Derived, Map, apart
from linops.losses import Averaged, Loss
from linops.node import static
from linops.precision import is_complex
from linops.program.function import Function
from linops.program.over_data import OverData, over_data
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
    f, x, args, wrt, linearize, check_finite
        As for `Jacobian`.
    loss : callable, optional
        A scalar function of f(x). For a convex loss the operator is positive semidefinite. The Hessians of those in
        `linops.losses` are known in closed form, without targets, and take less memory.
    data, batch_size, reduction
        As for `Jacobian`, of pairs (inputs, targets): f is `f(x, inputs, *args)`, with a row of values for each
        example, and the loss `loss(outputs, targets)`, whose reduction it is. Without a loss data are inputs alone, and
        the operator the sum over examples of their Jᵀ J, or its mean.

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

    loss: Function | OverData | None
    known: Loss | None = static()  # one whose Hessian is known
    is_mean: bool = static()  # over the rows of a batch, which no loss reduces

    def __init__(
        self, f, x, loss=None, *, args=(), wrt=None, data=None, batch_size=None, reduction="mean", linearize=None,
        check_finite=True,
    ):  # fmt: skip
        data = read(data, batch_size, reduction)
        of_model, of_loss = (data, None) if data is None or loss is None else data.parts("GaussNewton with a loss")
        of_model = of_model and of_model.of_examples(loss is None)
        traced = Map.trace(f, x, args, realify=loss is not None, data=of_model, wrt=wrt, operator=type(self).__name__)
        known = loss if isinstance(loss, Loss) else None
        if known is not None and data is not None:
            known.require_reduction(data.source.is_mean)
        is_traced = loss is not None and (known is None or of_loss is not None)
        vars(self).update(map=traced, known=known, loss=_traced_losses(loss, traced, of_loss) if is_traced else None)
        vars(self).update(keep=linearize, check_finite=check_finite)
        vars(self).update(is_mean=data is not None and loss is None and data.source.is_mean)

    symmetric = property(lambda self: not is_complex(self.dtype))
    hermitian = True
    positive_semidefinite = property(lambda self: self.loss is None or self.known is not None)
    domain = functools.cached_property(lambda self: self._jacobian(self.map).domain)
    codomain = property(lambda self: self.domain)

    def _mv(self, v):
        return over_data(_product, self, v) if self._source is not None else _product(self, v)

    def _expand(self):
        gram = Gram.of(self._jacobian(self.map), self._weight(), conjugate=True)
        return Averaged(gram, self.examples) if self.is_mean else gram

    @property
    def examples(self):
        """How many there are in the batch that it is of."""
        return self.function.batch[0].shape[0]

    def _weight(self):
        """The Hessian of the loss at f(x)."""
        if self.known is not None:
            return self.known.hessian(self.function(self.x))
        if self.loss is None:
            return None
        at = Map._make(function=self.loss, x=self.function(self.x), realified=self.map.values.paired)
        return Hessian._make(map=at, weights=None, keep=self.keep, check_finite=self.check_finite)


def _product(A, v):
    return A._expand()._mv(v)


def _traced_losses(loss, traced, data):
    """The loss of the values of a function, over data of which each batch has a part for the function and for it."""
    if data is None:
        return _traced_loss(loss, traced.values)
    data = data.like(traced.function.source)
    values = [part.codomain for part in traced.function.parts]
    losses = [_traced_loss(loss, v, batch) for v, batch in zip(values, data.batches, strict=True)]
    return data.over(losses, is_loss=True)


def _traced_loss(loss, values, batch=None):
    """A real and scalar function of values, which are pairs where they are complex."""
    through = OnPairs(values.paired, values=False) if values.paired else None
    function = Function.trace(loss, values, what="loss", through=through, batch=batch)
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
    f, args, wrt, data, batch_size, reduction, linearize, check_finite
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
    rest: tuple  # of x2, what is held fixed

    def __init__(
        self, f, x1, x2=None, *, args=(), wrt=None, data=None, batch_size=None, reduction="mean", linearize=None,
        check_finite=True,
    ):  # fmt: skip
        traced = Map.trace(f, x1, args, data=read(data, batch_size, reduction), wrt=wrt, operator="JacobianGram")
        vars(self).update(map=traced, **_second_point(traced, x2))
        vars(self).update(keep=linearize, check_finite=check_finite)

    _second = property(lambda self: self.map.moved(self.x2, self.rest))
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
        return self._replace(map=at, **_second_point(at, x2))

    def _points(self):
        second = () if self.x2 is None else (self.map.given(self.x2), *self.rest)
        return [(self.map.given(self.x), *self.map.rest, *second)]

    def adjoint(self):
        """Aᴴ, the operator with its points exchanged."""
        return self if self.x2 is None else self._replace(map=self._second, x2=self.x, rest=self.map.rest)

    def _transposed(self):
        return Conjugate.of(self.adjoint())

    H = property(adjoint)
    _adjoint = adjoint

    def _kept(self):
        return self._linearization()  # of Jacobians, each over all data

    def _expand(self):
        J = self._jacobian(self.map)
        return Gram.of(J.H, conjugate=True) if self.x2 is None else Product.of(J, self._jacobian(self._second).H)


def _second_point(traced, x2):
    """The fields of a second point, in arrays of its own."""
    if x2 is None:
        return {"x2": None, "rest": ()}
    at = traced.at(x2)
    return {"x2": apart(at.x, traced), "rest": apart(at.rest, traced)}
