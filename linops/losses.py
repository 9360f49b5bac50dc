"""Losses that are negative log-likelihoods of exponential families, in their natural parameters.

Each is a function `loss(outputs, targets)` of the outputs of a model, with rows of examples, for `linops.GaussNewton`,
`linops.Fisher` and everything else. What linops knows of them beside their values: their Hessians in closed form, which
need one array like the outputs where differentiation keeps several, and how to draw targets.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from linops.algebra.operator import Operator
from linops.arrays import brief
from linops.node import static
from linops.space import Space

REDUCTIONS = "mean", "sum"


@dataclasses.dataclass(frozen=True)
class Loss:
    """A function of outputs and targets, the mean or sum over all of their rows.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        What is done over rows: over all axes of outputs but the last for `CrossEntropy`, over the leading axis for all
        others, whose other axes are summed over.
    """

    reduction: str = "mean"

    is_of_each = True  # output there is a target

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"{type(self).__name__} got reduction={self.reduction!r}, expected 'mean' or 'sum'")

    def __call__(self, outputs, targets):
        """The mean or sum of the negative log-likelihoods, up to what does not depend on the outputs."""
        self._require_array(outputs)
        if self.is_of_each and jnp.shape(targets) != outputs.shape:
            raise TypeError(
                f"{type(self).__name__} got targets of shape {jnp.shape(targets)} for outputs of shape {outputs.shape}"
                ", expected the same, a target for each output: reshape one of them"
            )
        return self._factor(outputs) * jnp.sum(self.each(outputs, targets))

    def require_reduction(self, is_mean):
        """Refuse another one over data than that of the loss: batches of other sizes would make another matrix."""
        if (self.reduction == "mean") != is_mean:
            other = "mean" if is_mean else "sum"
            raise ValueError(
                f"got {self} over data with reduction={other!r}, expected one for both: pass {type(self).__name__}"
                f"({other!r}), or reduction={self.reduction!r}"
            )

    def hessian(self, outputs):
        """The Hessian at outputs, an operator on arrays like them; targets do not enter it."""
        self._require_array(outputs)
        curvature = self.curvature(outputs)
        return Averaged(curvature, self.rows(outputs)) if self.reduction == "mean" else curvature

    def rows(self, outputs):
        """How many likelihoods there are."""
        return outputs.shape[0]

    def _factor(self, outputs):
        return 1 / self.rows(outputs) if self.reduction == "mean" else 1.0

    def _require_array(self, outputs):
        if not isinstance(outputs, jax.Array) or outputs.ndim == 0 or jnp.iscomplexobj(outputs):
            raise TypeError(
                f"{type(self).__name__} got outputs {brief(jax.tree.map(jnp.shape, outputs))}, expected one real array "
                "with a row for each example: for one example add an axis, outputs[None], to its targets too"
            )


class SquaredError(Loss):
    """Half of the squares of outputs minus targets: a normal distribution with variance 1.

    >>> float(SquaredError()(jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [1.0]])))
    1.0
    """

    def each(self, outputs, targets):
        return jnp.square(outputs - targets) / 2

    def curvature(self, outputs):
        return Weights(jnp.ones_like(outputs))

    def sample(self, key, outputs):
        return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


class CrossEntropy(Loss):
    """Softmax cross-entropy of logits, along the last axis, with integer labels: a categorical distribution.

    A label that is none of the classes makes NaN of the value and of its derivatives.

    >>> round(float(CrossEntropy()(jnp.zeros((2, 4)), jnp.array([0, 3]))) / math.log(4), 5)
    1.0
    """

    is_of_each = False

    def rows(self, outputs):
        return math.prod(outputs.shape[:-1])

    def each(self, outputs, targets):
        if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != outputs.shape[:-1]:
            raise TypeError(
                f"CrossEntropy got targets of type {targets.dtype}{list(targets.shape)} for outputs of shape "
                f"{list(outputs.shape)}, expected integer labels of shape {list(outputs.shape[:-1])}"
            )
        picked = jnp.take_along_axis(outputs, targets[..., None], axis=-1)[..., 0]
        return _where((targets >= 0) & (targets < outputs.shape[-1]), jax.nn.logsumexp(outputs, axis=-1) - picked)

    def curvature(self, outputs):
        return SoftmaxHessian(jax.nn.softmax(outputs, axis=-1))

    def sample(self, key, outputs):
        return jax.random.categorical(key, outputs, axis=-1)


class BinaryCrossEntropy(Loss):
    """The cross-entropy of logits with targets between 0 and 1: a Bernoulli distribution for each output.

    A target beyond these makes NaN of the value and of its derivatives: in place of labels -1 and 1 pass
    (labels + 1) / 2.

    >>> round(float(BinaryCrossEntropy()(jnp.zeros((2, 1)), jnp.array([[0.0], [1.0]]))) / math.log(2), 5)
    1.0
    """

    def each(self, outputs, targets):
        return _where((targets >= 0) & (targets <= 1), jnp.logaddexp(0, outputs) - targets * outputs)

    def curvature(self, outputs):
        return Weights(jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs))

    def sample(self, key, outputs):
        return jax.random.bernoulli(key, jax.nn.sigmoid(outputs)).astype(outputs.dtype)


class Poisson(Loss):
    """exp(z) - t z of outputs z, the logarithms of rates, and counts t: a Poisson distribution for each output.

    A count below zero makes NaN of the value and of its derivatives.

    >>> float(Poisson()(jnp.zeros((1, 1)), jnp.array([[3.0]])))
    1.0
    """

    def each(self, outputs, targets):
        return _where(targets >= 0, jnp.exp(outputs) - targets * outputs)

    def curvature(self, outputs):
        return Weights(jnp.exp(outputs))

    def sample(self, key, outputs):
        return jax.random.poisson(key, jnp.exp(outputs)).astype(outputs.dtype)


def _where(is_target, values):
    """The values, and their derivatives, where a target is one that the distribution has, else NaN."""
    return jnp.where(is_target, 1, jnp.nan) * values


class Averaged(Operator):
    """A / count, for a positive number that is code: what A claims stays true, whatever its arrays are."""

    operator: Operator
    count: int = static()

    domain = property(lambda self: self.operator.domain)
    codomain = property(lambda self: self.operator.codomain)
    symmetric = property(lambda self: self.operator._equals_transpose)
    hermitian = property(lambda self: self.operator._equals_adjoint)
    positive_semidefinite = property(lambda self: self.operator.positive_semidefinite)

    def _mv(self, v):
        return jax.tree.map(lambda leaf: leaf / self.count, self.operator._mv(v))

    def _transposed(self):
        return self._replace(operator=self.operator.T)


class Semidefinite(Operator):
    """What is symmetric positive semidefinite whatever its arrays are."""

    symmetric = True
    hermitian = True
    positive_semidefinite = True


class SoftmaxHessian(Semidefinite):
    """diag(p) - p pᵀ for each row p of probabilities, along the last axis."""

    probabilities: jax.Array

    domain = codomain = property(lambda self: Space.of(self.probabilities))

    def _mv(self, v):
        weighted = self.probabilities * v
        return weighted - self.probabilities * jnp.sum(weighted, axis=-1, keepdims=True)


class Weights(Semidefinite):
    """A diagonal matrix of numbers that are not negative, of an array that is multiplied elementwise."""

    weights: jax.Array

    domain = codomain = property(lambda self: Space.of(self.weights))

    def _mv(self, v):
        return self.weights * v
