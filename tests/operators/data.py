"""Operators over data in chunks, with a ragged end; batches of the host are in `derivatives/test_data.py`."""

import jax.numpy as jnp
from problems import hess, jac

import linops
from operators.entries import entry, moved, normal

EXAMPLES, FEATURES = 7, 3


def energy(x, batch):
    """The mean over examples of a function of the point and an example."""
    rows = jnp.tanh(batch @ x["w"] + x["b"])
    return jnp.mean(rows**2 + 0.5 * rows * batch[:, 0])


def moments(x, batch):
    """Means of several functions."""
    rows = jnp.sin(batch @ x["w"])
    return {"first": jnp.mean(rows), "second": jnp.mean(batch * (rows * x["b"])[:, None], axis=0)}


def features(x, batch):
    """A row for each example."""
    return jnp.stack([jnp.tanh(batch @ x["w"]), batch[:, 0] * x["b"] ** 2], axis=1)


def misfit(outputs, targets):
    """The sum over examples of a function of the outputs and a target."""
    return jnp.sum(jnp.cosh(outputs - targets))


def point(w, b):
    return {"w": w, "b": b}


def at(A, w, b, *data):
    """Another point; the data stay."""
    return moved(A, point(w, b))


ARGUMENTS = normal((FEATURES,), (), (EXAMPLES, FEATURES), (EXAMPLES, 2))

entry(
    "hessian_over_data",
    lambda w, b, X, Y: linops.Hessian(energy, point(w, b), data=X, batch_size=3),
    lambda w, b, X, Y: hess(lambda x: energy(x, X), point(w, b)),
    ARGUMENTS,
    claims="sh",
)
entry(
    "jacobian_over_data",
    lambda w, b, X, Y: linops.Jacobian(moments, point(w, b), data=X, batch_size=4),
    lambda w, b, X, Y: jac(lambda x: moments(x, X), point(w, b)),
    ARGUMENTS,
    square=True,
)
entry(
    "gauss_newton_over_data",
    lambda w, b, X, Y: linops.GaussNewton(
        features, point(w, b), misfit, data=(X, Y), batch_size=5, reduction="sum", linearize=False
    ),
    lambda w, b, X, Y: _gauss_newton(point(w, b), X, Y),
    ARGUMENTS,
    claims="sh",
)
entry(
    "composite_over_data",
    lambda w, b, X, Y: _composite(linops.Jacobian(moments, point(w, b), data=X, batch_size=3)),
    lambda w, b, X, Y: _dense_composite(jac(lambda x: moments(x, X), point(w, b))),
    ARGUMENTS,
    claims="sh",
)


def _gauss_newton(x, X, Y):
    J = jac(lambda x: features(x, X), x)
    return J.T @ hess(lambda outputs: misfit(outputs, Y), features(x, X)) @ J


def _composite(J):
    return J.T @ J + 0.5 * linops.Identity(J.shape[1])


def _dense_composite(J):
    return J.T @ J + 0.5 * jnp.eye(J.shape[1])


entry(
    "fisher_over_data",
    lambda w, b, X, Y: linops.Fisher(
        features, point(w, b), linops.losses.Poisson("sum"), data=(X, Y), batch_size=3, reduction="sum"
    ),
    lambda w, b, X, Y: _fisher(point(w, b), X),
    ARGUMENTS,
    claims="shp",
)


def _fisher(x, X):
    J = jac(lambda x: features(x, X), x)
    return J.T @ (jnp.exp(features(x, X)).ravel()[:, None] * J)
