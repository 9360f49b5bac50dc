"""Data on eight devices: the numbers of one, one sum over devices for each product, and no leaf is gathered."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from processes import in_subprocess

import linops
from linops.linalg import cg, eigsh
from linops.optimize import newton_cg

EXAMPLES, INPUTS, OUTPUTS = 88, 3, 4
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(EXAMPLES, size)).astype(np.float32) for size in (INPUTS, OUTPUTS))
POINT = {"b": np.ones(OUTPUTS, np.float32), "w": RNG.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)}
BLOCK = RNG.normal(size=(OUTPUTS + INPUTS * OUTPUTS, 2)).astype(np.float32)
LAYOUTS = {"replicated": {"b": P(), "w": P()}, "sharded": {"b": P("m"), "w": P(None, "m")}}


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_eight_devices(kind):
    in_subprocess(__file__, kind, XLA_FLAGS="--xla_force_host_platform_device_count=8")


def features(x, inputs):
    return jnp.tanh(inputs @ x["w"] + x["b"])


def reduced(rows, reduction):
    return jnp.mean(rows, axis=0) if reduction == "mean" else jnp.sum(rows, axis=0)


def energy(x, batch, reduction):
    return reduced(jnp.sum(jnp.cosh(features(x, batch[0]) - batch[1]), axis=1), reduction)


def moments(x, batch, reduction):
    rows = features(x, batch[0])
    return {"first": reduced(rows, reduction), "second": reduced(rows**2 * batch[1], reduction)}


OPERATORS = {
    "hessian": lambda x, data, r="mean", **o: linops.Hessian(lambda x, b: energy(x, b, r), x, data=data, **o),
    "jacobian": lambda x, data, r, **o: linops.Jacobian(lambda x, b: moments(x, b, r), x, data=data, **o),
    "gauss_newton": lambda x, data, r, **o: linops.GaussNewton(
        features, x, lambda z, t: reduced(jnp.sum(jnp.cosh(z - t), axis=1), r), data=data, **o
    ),
    "least_squares": lambda x, data, r, **o: linops.GaussNewton(features, x, data=data[0], **o),
}
# Residuals; none; chunks of 24, three of each part and then two examples; of 3, fewer than devices: one of each part.
WALKS = [{"linearize": True}, {"linearize": False}, {"linearize": False, "batch_size": 24}, {"batch_size": 3}]
TABLE = [
    ("hessian", "replicated", "mean", WALKS[2]),
    ("hessian", "replicated", "sum", WALKS[2]),
    ("hessian", "sharded", "mean", WALKS[2]),
    ("hessian", "sharded", "mean", WALKS[3]),
    ("jacobian", "replicated", "mean", WALKS[2]),
    ("gauss_newton", "sharded", "mean", WALKS[0]),
    ("gauss_newton", "sharded", "sum", WALKS[2]),
    ("least_squares", "replicated", "mean", WALKS[2]),
]


@functools.cache
def dense(name):
    """The matrix on one device, of a mean."""
    return OPERATORS[name](POINT, (X, Y), "mean").toarray()


def main(kind):
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType[kind],) * 2)

    def put(array, spec):
        return jax.device_put(array, NamedSharding(mesh, spec))

    data = tuple(put(array, P("d", None)) for array in (X, Y))
    for label in TABLE:
        name, layout, reduction, options = label
        specs, make = LAYOUTS[layout], functools.partial(OPERATORS[name], r=reduction, reduction=reduction)
        x, D = jax.tree.map(put, POINT, specs), dense(name) * (EXAMPLES if reduction == "sum" else 1)
        A = make(x, data, **options)
        v = jax.tree.map(put, jax.tree.map(np.asarray, A.domain.unravel(BLOCK[:, 0])), specs)
        product = jax.jit(lambda A, v: A.mv(v)).lower(A.linearize(), v).compile()
        w = product(A.linearize(), v)
        right(A.codomain.ravel(w), D @ BLOCK[:, 0], label)
        assert name == "jacobian" or all(jax.tree.leaves(jax.tree.map(lies_as, w, x))), label
        by_device = "batch_size" not in options or kind == "Auto" or layout == "replicated"
        require_words(product.as_text(), label, one=by_device)
        if label in TABLE[:1]:
            right(A @ BLOCK, D @ BLOCK, label)
        if name == "jacobian":
            right(A.T @ (A @ BLOCK[:, 0]), D.T @ (D @ BLOCK[:, 0]), label)
    if kind == "Auto":
        algorithms(jax.tree.map(put, POINT, LAYOUTS["sharded"]), data)


def algorithms(x, data):
    """What runs on devices runs there with leaves where they lie."""
    H = OPERATORS["hessian"](x, data, "mean", batch_size=24, linearize=False)
    D = dense("hessian")
    w, v = eigsh(H, k=2, which="LA", trees=True)
    right(w, np.linalg.eigvalsh(D)[-2:], "eigsh")
    A = H + 2 * linops.Identity(16)
    y, _ = cg(A, jax.tree.map(jnp.ones_like, x))
    right(A.domain.ravel(y), np.linalg.solve(D + 2 * np.eye(16), np.ones(16)), "cg")
    right(linops.estimate.trace(H, jax.random.key(0), num_matvecs=16).value, np.trace(D), "trace")
    found = newton_cg(functools.partial(energy, reduction="mean"), x, data=data, batch_size=24)
    slope = jax.grad(energy)(jax.tree.map(np.asarray, found.x), (X, Y), "mean")
    assert found.success
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(slope)) < 1e-4
    for tree in y, found.x:
        assert all(jax.tree.leaves(jax.tree.map(lies_as, tree, x)))
    assert v["w"].sharding.spec == P(None, None, "m")


def right(found, expected, label):
    assert np.linalg.norm(found - expected) <= 2e-6 * np.linalg.norm(expected), (label, found - expected)


def lies_as(a, b):
    return a.sharding.is_equivalent_to(b.sharding, a.ndim)


def require_words(text, label, one):
    """Sums over devices and no other word from one to another; one, not one for each chunk, where examples allow it."""
    words = re.findall(r" (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?:-start)?\(", text)
    assert {*words} == {"all-reduce"}, (label, words)
    if one:
        assert len(words) == 1, (label, words)
        assert " all-reduce(" in text[text.index("ENTRY") :], label


if __name__ == "__main__":
    main(sys.argv[1])
