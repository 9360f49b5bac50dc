"""An estimate: a value, its standard error, and what it took."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from linops.products import is_traced

# Of k samples with an estimated variance, Student's t has to be widened to, so that two standard errors cover as two of
# the normal distribution do; one covers a little more than it has to then. From 30 on it makes no difference.
LEVEL = 0.977249868  # the normal distribution below two
FEW = 30
WIDENED = (float("inf"),) * 2 + tuple(float(stdtrit(k - 1, LEVEL)) / 2 for k in range(2, FEW)) + (1.0,)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("value", "standard_error", "matvecs"), meta_fields=())
@dataclasses.dataclass(frozen=True, repr=False)
class Estimate:
    """A random estimate: `value`, its `standard_error`, and `matvecs`, the number of products that it took.

    It is a pytree, so that a jitted function may return it. A standard error of 0 says that the value is computed, not
    estimated. One of `k` samples has Student's t in it, where k is below 30: the value is within one standard error
    with a probability of .68 at least, within two with .95, as far as the samples look normal. Derivatives go through
    `value` only.

    >>> estimate = linops.estimate.trace(linops.Identity(5), jax.random.key(0))
    >>> float(estimate.value), float(estimate.standard_error), int(estimate.matvecs)
    (5.0, 0.0, 5)
    >>> estimate
    <estimate 5, standard error 0, of 5 products>
    """

    value: jax.Array
    standard_error: jax.Array
    matvecs: jax.Array

    def __repr__(self):
        if is_traced(self) or not all(hasattr(leaf, "__array__") for leaf in jax.tree.leaves(self)):
            return f"{type(self).__name__}(value={self.value!r}, ...)"
        of = f"of {int(np.sum(self.matvecs))} products"
        if np.ndim(self.value):
            error = np.max(self.standard_error, initial=0)
            return f"<estimates, {np.shape(self.value)}, standard errors {error:.2g} at most, {of}>"
        return f"<estimate {self.value.item():.6g}, standard error {float(self.standard_error):.2g}, {of}>"


def standard_error(squares, count):
    """That of a mean of `count` samples, of the sum of the squares of their deviations."""
    variance = jax.lax.stop_gradient(squares) / jnp.maximum(count - 1, 1)
    widened = jnp.asarray(WIDENED, variance.dtype)[jnp.minimum(count, FEW)]
    # Infinite, and not NaN, where there is one sample only.
    return jnp.where(count < 2, jnp.inf, jnp.sqrt(variance / jnp.maximum(count, 1)) * jnp.where(count < 2, 1, widened))


def with_rounding(A, error, size):
    """A standard error, of numbers of a size whose sums are rounded, as products with A are."""
    return jnp.hypot(error, ROUNDINGS * A._unit * jax.lax.stop_gradient(size))


ROUNDINGS = 4


def mean_of(samples, widening=1.0):
    """The mean along the first axis and its standard error, times a factor that was measured."""
    count, mean = len(samples), jnp.mean(samples, axis=0)
    squares = jnp.sum(jnp.abs(samples - mean) ** 2, axis=0)
    return mean, widening * standard_error(squares, count)


def jackknife(samples_without, count):
    """The standard error of a mean of samples that depend on each other, each on all probes.

    `samples_without(j)` are those that probe j has no part in, beside one of its own, which is left out. By Efron and
    Stein (1981) the squares of what the mean changes by make in expectation at least its variance, of one probe less.
    Of few probes it is widened as that of independent samples is: counted, one and two cover .68 and .95 then.
    """

    def mean_without(j):
        samples = jax.lax.stop_gradient(samples_without(j))
        return jnp.sum(jnp.where(jnp.arange(count) == j, 0, samples)) / (count - 1)

    means = jax.lax.map(mean_without, jnp.arange(count))
    return WIDENED[min(count, FEW)] * jnp.linalg.norm(means - jnp.mean(means))
