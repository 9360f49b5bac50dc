"""The Fisher information matrix."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import as_key, brief
from linops.derivatives.batches import is_of_arrays, read
from linops.derivatives.gauss_newton import GaussNewton
from linops.losses import Loss, Semidefinite
from linops.node import static
from linops.program.function import Function
from linops.program.over_data import OverData
from linops.realify import any_complex
from linops.space import Space

KINDS = "exact", "sampled", "empirical"


class Fisher(GaussNewton):
    """The Fisher information of the parameters of a model, a symmetric positive semidefinite operator of shape (n, n).

    It is the mean, or sum, over examples of E[g gᵀ], g the gradient of the negative log-likelihood of an example:

    - "exact": the expectation over targets that the model gives. For losses of `linops.losses`, likelihoods of
      exponential families in natural parameters, it is the Gauss-Newton matrix.
    - "sampled": the mean over some targets drawn from the model, an unbiased estimate of it.
    - "empirical": of the targets in the data, which is no estimate of it, unless the model fits the data.

    Where an example has several rows, as the tokens of a sequence for `linops.losses.CrossEntropy`, its likelihood is
    that of all of them, and a mean is over rows, as in the loss.

    Parameters
    ----------
    f : callable
        `f(x, inputs, *args)`, the outputs of the model, with a row for each example.
    x, args, wrt, batch_size, linearize, check_finite
        As for `Jacobian`.
    loss : callable
        `loss(outputs, targets)`, the mean or sum over examples of negative log-likelihoods. "exact" needs one of
        `linops.losses`, "sampled" one with a method `sample(key, outputs)`, as these have.
    data : pytree of arrays, or batches
        Pairs (inputs, targets), as for `GaussNewton`.
    reduction : {"mean", "sum"}
        Over examples, as in the loss.
    kind : {"exact", "sampled", "empirical"}
    key : jax.Array
        Of `jax.random`, for "sampled". An example has the same draws in each product, however data come in batches.
    num_samples : int
        How many targets are drawn for each example.

    Raises
    ------
    TypeError, ValueError
        As `GaussNewton` does, and where the loss has not what the kind needs, or there is no key.

    Notes
    -----
    Source: Kunstner, Hennig, Balles, Limitations of the empirical Fisher approximation, NeurIPS (2019).

    Examples
    --------
    >>> X, y = np.array([[1.0], [2.0]], np.float32), np.array([[0.0], [5.0]], np.float32)
    >>> model = lambda w, X: X * w
    >>> w = np.ones(1, np.float32)
    >>> F = Fisher(model, w, linops.losses.SquaredError(), data=(X, y))
    >>> F.toarray().tolist()
    [[2.5]]
    >>> Fisher(model, w, linops.losses.SquaredError(), data=(X, y), kind="empirical").toarray().tolist()
    [[18.5]]
    """

    scores: Function | OverData | None
    is_sum: bool = static()  # over examples, in place of their mean
    likelihood: Loss | None = static()  # one whose rows are known

    def __init__(
        self, f, x, loss, *, data, args=(), wrt=None, batch_size=None, reduction="mean", kind="exact", key=None,
        num_samples=1, linearize=None, check_finite=True,
    ):  # fmt: skip
        _require_kind(kind, loss, key, num_samples)
        if data is None:
            raise TypeError("Fisher got data=None, expected pairs, (inputs, targets), or batches of them")
        options = {"args": args, "wrt": wrt, "linearize": linearize, "check_finite": check_finite}
        if kind == "exact":
            super().__init__(f, x, loss, data=data, batch_size=batch_size, reduction=reduction, **options)
            vars(self).update(scores=None, is_sum=reduction == "sum", likelihood=None)
            return
        is_sampled = kind == "sampled"
        data = read(_numbered(data) if is_sampled else data, batch_size, reduction)
        of_model, of_scores = data.parts("Fisher")
        super().__init__(f, x, data=of_model, reduction=reduction, **options)
        if any_complex(self.function.codomain):
            raise TypeError("Fisher got f with complex values, expected real ones: the parameters of likelihoods")
        of_scores = of_scores.like(self.function.source)
        if isinstance(loss, Loss):
            loss.require_reduction(data.source.is_mean)
            loss = dataclasses.replace(loss, reduction="sum")  # one likelihood of all rows of an example
        scores = Scores(loss, int(num_samples) if is_sampled else None)
        keys = (jax.random.key_data(as_key(key, "Fisher")),) if is_sampled else ()
        traced = [
            Function.trace(scores, part.codomain, keys, "loss", batch=batch)
            for part, batch in zip(self.function.parts, of_scores.batches, strict=True)
        ]
        vars(self).update(scores=of_scores.over(traced, is_loss=True), is_mean=False, is_sum=reduction == "sum")
        vars(self).update(likelihood=loss if isinstance(loss, Loss) else None)

    positive_semidefinite = True

    def _weight(self):
        if self.scores is None:
            return super()._weight()
        outputs = self.function(self.x)
        scores = self.scores(outputs)
        samples, examples = jax.tree.leaves(scores)[0].shape[:2]
        rows = examples if self.likelihood is None else self.likelihood.rows(outputs)
        return Outer(scores, jnp.asarray(1 / (samples * (1 if self.is_sum else rows))))


def _require_kind(kind, loss, key, num_samples):
    if kind not in KINDS:
        raise ValueError(f"Fisher got kind={kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "exact" and not isinstance(loss, Loss):
        raise TypeError(
            f"Fisher got loss={brief(loss)}, whose likelihood is not known; expected one of linops.losses, or "
            'kind="sampled" with a loss that has sample(key, outputs), or kind="empirical"'
        )
    if kind == "sampled" and not hasattr(loss, "sample"):
        raise TypeError(
            f"Fisher got loss={brief(loss)} without a method sample(key, outputs), expected one that draws targets, as "
            "those of linops.losses do"
        )
    if (key is None) == (kind == "sampled"):
        raise ValueError(
            f"Fisher got key={brief(key)} with kind={kind!r}, expected a key where, and only where, targets are drawn: "
            'kind="sampled"'
        )
    if not (isinstance(num_samples, numbers.Integral) and num_samples >= 1):
        raise ValueError(f"Fisher got num_samples={num_samples!r}, expected a number >= 1")


@dataclasses.dataclass(frozen=True)
class Scores:
    """The gradients of the loss of each example with respect to its outputs, at each of some targets."""

    loss: Callable
    samples: int | None  # how many targets are drawn, or None for those in the data

    def __call__(self, outputs, batch, *keys):
        if self.samples is None:
            return jax.tree.map(lambda leaf: leaf[None], jax.vmap(self.score)(outputs, batch))
        _, numbers = batch
        key = jax.random.wrap_key_data(*keys)

        def drawn(outputs, number):
            def of_draw(key):
                rows = jax.tree.map(lambda leaf: leaf[None], outputs)
                targets = jax.lax.stop_gradient(self.loss.sample(key, rows))
                return self.score(outputs, jax.tree.map(lambda leaf: leaf[0], targets))

            return jax.vmap(of_draw)(jax.random.split(jax.random.fold_in(key, number), self.samples))

        return jax.vmap(drawn, out_axes=1)(outputs, numbers)

    def score(self, outputs, targets):
        """That of one example."""

        def of_one(outputs):
            rows = jax.tree.map(lambda leaf: leaf[None], (outputs, targets))
            return self.loss(*rows)

        return jax.grad(of_one)(outputs)


class Outer(Semidefinite):
    """The block diagonal matrix with the blocks c sum over s of g_s g_sᵀ, of rows g_s of trees for each example."""

    rows: Any
    factor: jax.Array

    @property
    def domain(self):
        return Space.of(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.rows))

    codomain = domain

    def _mv(self, v):
        # Matrix products: XLA on CPUs (JAX 0.10) gives wrong numbers for sums of products of many columns at once.
        leaves = [*zip(map(_flat, jax.tree.leaves(self.rows)), jax.tree.leaves(v), strict=True)]
        inner = sum(jnp.einsum("sef,ef->se", rows, leaf.reshape(rows.shape[1:])) for rows, leaf in leaves)
        products = [self.factor * jnp.einsum("se,sef->ef", inner, rows).reshape(leaf.shape) for rows, leaf in leaves]
        return self.domain.treedef.unflatten(products)


def _flat(rows):
    """Rows of examples as vectors."""
    return rows.reshape(*rows.shape[:2], math.prod(rows.shape[2:]))


def _numbered(data):
    """Pairs (inputs, (targets, numbers)), with a number for each example."""
    is_pair = isinstance(data, tuple) and len(data) == 2
    is_stream = not (isinstance(data, Iterator) or is_of_arrays(data)) and (hasattr(data, "__iter__") or callable(data))
    if not (is_pair or is_stream):
        return data  # which is refused
    if is_pair:
        inputs, targets = data
        count = np.shape(jax.tree.leaves(data)[0])[0]
        return inputs, (targets, np.arange(count, dtype=np.int32))
    return NumberedBatches(data)


@dataclasses.dataclass(frozen=True)
class NumberedBatches:
    """The same of batches of the host."""

    batches: Any

    def __iter__(self):
        start = 0
        for batch in self.batches if hasattr(self.batches, "__iter__") else self.batches():
            if not (isinstance(batch, tuple | list) and len(batch) == 2):
                yield batch  # which is refused
                continue
            inputs, targets = batch
            count = np.shape(jax.tree.leaves(inputs)[0])[0]
            yield inputs, (targets, np.arange(start, start + count, dtype=np.int32))
            start += count
