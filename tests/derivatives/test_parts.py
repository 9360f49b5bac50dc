"""Parts of the point: what selects them, what is held fixed, other points, what they cost, and blocks between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from jax.flatten_util import ravel_pytree
from problems import normal

import linops

KEY = jax.random.key(1)


def network(p, scale=1.0):
    """With an integer, a key, and code in its point."""
    h = p["inputs"]
    for layer in p["layers"]:
        h = getattr(jnp, p["act"])(layer["w"] @ h + layer["b"])
    return {"h": scale * h, "noise": h[:1] * p["count"] * jax.random.normal(p["key"])}


def loss(p, scale=1.0):
    return sum(jnp.sum(jnp.cos(leaf) + leaf**2) for leaf in jax.tree.leaves(network(p, scale)))


def point(seed=0, **other):
    layers = [{"w": normal((4, 4), np.float32, seed + i), "b": np.zeros(4, np.float32)} for i in range(3)]
    return {"act": "tanh", "count": np.int32(3), "inputs": normal(4, np.float32, seed), "key": KEY, "layers": layers,
            **other}  # fmt: skip


def by_hand(derivative, f, p, layer=1):
    """A derivative of f with respect to one layer."""
    v, unravel = ravel_pytree(p["layers"][layer])

    def of_layer(v):
        layers = [unravel(v) if i == layer else held for i, held in enumerate(p["layers"])]
        return ravel_pytree(f({**p, "layers": layers}))[0]

    return np.asarray(derivative(of_layer)(v))


OPERATORS = {
    "jacobian": (lambda p, **o: linops.Jacobian(network, p, **o), lambda p: by_hand(jax.jacobian, network, p)),
    "hessian": (lambda p, **o: linops.Hessian(loss, p, **o), lambda p: by_hand(jax.hessian, loss, p)[0]),
    "gram": (
        lambda p, **o: linops.JacobianGram(network, p, point(5), **o),
        lambda p: by_hand(jax.jacobian, network, p) @ by_hand(jax.jacobian, network, point(5)).T,
    ),
    "gauss_newton": (
        lambda p, **o: linops.GaussNewton(network, p, lambda y: jnp.sum(y["h"] ** 2) + jnp.sum(y["noise"] ** 2), **o),
        lambda p: 2 * by_hand(jax.jacobian, network, p).T @ by_hand(jax.jacobian, network, p),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_layer(name):
    """By path or predicate, at the first point, at others with all that is held fixed moved, and as data in a jit."""
    make, dense = OPERATORS[name]
    p, q = point(), point(9, count=np.int32(7), key=jax.random.key(2))
    A = make(p, wrt="layers/1")
    assert A.domain.size == 20 or name == "gram"
    v = np.ones(A.shape[1], np.float32)
    np.testing.assert_allclose(A.toarray(), dense(p), rtol=1e-4, atol=2e-5)
    same = make(p, wrt=lambda path, leaf: path.startswith("layers/1/") and leaf.ndim > 0)
    np.testing.assert_array_equal(same @ v, A @ v)
    moved = [q, point(5)] if name == "gram" else [q]
    A.at(*moved) @ v
    with compilations() as count:
        product = A.at(*moved) @ v
    assert count() == 0
    np.testing.assert_allclose(product, dense(q) @ v, rtol=1e-4, atol=2e-5)
    numbers = {name: leaf for name, leaf in q.items() if name != "act"}
    product = jax.jit(lambda q, v: make({**q, "act": "tanh"}, wrt="layers/1") @ v)(numbers, v)
    np.testing.assert_allclose(product, dense(q) @ v, rtol=1e-4, atol=2e-5)


def test_points_of_a_part_leave_the_rest():
    p, q = point(), point(4)
    H, v = linops.Hessian(loss, p, args=2.0, wrt="layers/1"), np.ones(20, np.float32)
    expected = linops.Hessian(loss, {**p, "layers": [p["layers"][0], q["layers"][1], p["layers"][2]]}, args=0.5,
                              wrt="layers/1") @ v  # fmt: skip
    part = jax.tree.map(lambda leaf: leaf, H.at(q).x)  # a tree with None for the rest
    vector = np.concatenate([q["layers"][1]["b"], q["layers"][1]["w"].ravel()])
    for given in (part, vector):
        np.testing.assert_allclose(H.at(given, args=0.5) @ v, expected, rtol=1e-5, atol=1e-5)
    assert H.domain.slice("layers/1/w") == slice(4, 20)


def test_trees_of_a_part():
    """With None for the rest, however deep it is, or with the rest, as `jax.grad` gives them."""
    x = {"a": {"b": jnp.ones(1), "w": jnp.arange(2.0)}, "c": {"w": jnp.ones(3)}}
    H = linops.Hessian(lambda x: jnp.sum(x["a"]["w"] ** 3) * jnp.sum(x["c"]["w"]) + x["a"]["b"][0] ** 4, x, wrt="a")
    for tree in (x, {"a": x["a"], "c": None}, {"a": x["a"], "c": {"w": None}}, {"a": x["a"]}):
        assert np.allclose(H.domain.ravel(H.mv(tree)), H @ H.domain.ravel(H.domain.within(x)))
    with pytest.raises(ValueError, match="expected one like the point's"):
        H.mv({"c": x["c"]})


def test_it_costs_what_the_layer_by_hand_costs():
    """The last of three layers: nothing of those before is differentiated."""
    p = point()
    for operator in (linops.Hessian, linops.GaussNewton):
        f = loss if operator is linops.Hessian else network
        whole, part = operator(f, p, wrt=_all_numbers), operator(f, p, wrt="layers/2")
        hand = operator(lambda layer, f=f: f({**p, "layers": [*p["layers"][:2], layer]}), p["layers"][2])
        assert part.cost().flops <= 1.02 * hand.cost().flops < 0.6 * whole.cost().flops
        assert part.cost().bytes_residuals <= hand.cost().bytes_residuals + 64  # no more, but for alignment


def _all_numbers(path, leaf):
    return path.startswith("layers")


def test_blocks_between_parts_make_the_whole():
    p = point()
    H = linops.Hessian(loss, p, wrt="layers").toarray()
    names = [f"layers/{i}" for i in range(3)]
    blocks = [[linops.MixedDerivative(loss, p, wrt=(row, column)) for column in names] for row in names]
    np.testing.assert_allclose(np.block([[B.toarray() for B in row] for row in blocks]), H, rtol=1e-4, atol=1e-5)
    diagonal = linops.BlockDiagonal([linops.Hessian(loss, p, wrt=name) for name in names])
    np.testing.assert_allclose(diagonal.toarray()[20:40, 20:40], H[20:40, 20:40], rtol=1e-4, atol=1e-5)
    assert not diagonal.toarray()[20:40, :20].any()
    rows = linops.MixedDerivative(loss, p, wrt=("layers", "layers/1"))  # parts may overlap
    np.testing.assert_allclose(rows.toarray(), H[:, 20:40], rtol=1e-4, atol=1e-5)
    q = point(3)
    np.testing.assert_allclose(
        rows.at(q).toarray(), linops.Hessian(loss, q, wrt="layers").toarray()[:, 20:40], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_a_part_of_the_fisher_information(kind):
    data = normal((7, 4), np.float32), normal((7, 4), np.float32, 1)
    x = {"a": normal((4, 3), np.float32, 2), "b": normal((3, 4), np.float32, 3)}
    options = {"data": data, "batch_size": 3, "kind": kind, "key": KEY if kind == "sampled" else None}

    def fisher(x, **wrt):
        model = lambda x, inputs: jnp.tanh(inputs @ x["a"]) @ x["b"]  # noqa: E731
        return linops.Fisher(model, x, linops.losses.SquaredError(), **options, **wrt)

    F = fisher(x, wrt="b")
    np.testing.assert_allclose(F.toarray(), fisher(x).toarray()[12:, 12:], rtol=1e-4, atol=1e-5)
    moved = {"a": x["a"] / 2, "b": x["b"]}
    np.testing.assert_allclose(F.at(moved).toarray(), fisher(moved).toarray()[12:, 12:], rtol=1e-4, atol=1e-5)


def test_check_takes_the_function_of_the_whole():
    H = linops.Hessian(loss, point(), wrt="layers/1")
    assert linops.check(H, f=loss)
    assert "or f= is another function" in str(linops.check(H, f=lambda p: 2 * loss(p)))


HELD = "at got {}, expected what is held fixed of x like what f was traced with: arrays of the same shapes"


def test_errors():
    p = point()
    for wrt in ("layer", lambda path, leaf: False):
        with pytest.raises(
            ValueError, match=r"Hessian got wrt=.*, which selects nothing of x; .* x has 'act', 'count'"
        ):
            linops.Hessian(loss, p, wrt=wrt)
    with pytest.raises(ValueError, match="x is one array, which has no parts"):
        linops.Hessian(jnp.sum, np.ones(3, np.float32), wrt="a")
    for wrt in (3, ("layers/0", "layers/1")):
        with pytest.raises(TypeError, match=r"Jacobian got wrt=.*, expected a path of keys such as .layers/0., or a c"):
            linops.Jacobian(network, p, wrt=wrt)
    with pytest.raises(TypeError, match=r"x\['count'\] has dtype int32, expected floating point"):
        linops.Jacobian(network, p, wrt="count")
    for options in ({}, {"y": 1.0, "wrt": ("layers/0", "layers/1")}, {"wrt": "layers/0"}):
        with pytest.raises(TypeError, match=r"MixedDerivative got .*, expected y, or in its place wrt=\(rows, columns"):
            linops.MixedDerivative(loss, p, **options)
    H = linops.Hessian(loss, p, wrt="layers/0")
    for other, words in {
        "count": (np.float32(1), r"x\['count'\] of type float32\[\] for int32\[\]"),
        "act": ("sin", r"x\['act'\] = 'sin'"),
        "inputs": (normal(3, np.float32), r"x\['inputs'\] of type float32\[3\] for float32\[4\]"),
    }.items():
        with pytest.raises(ValueError, match=HELD.format(words[1])):
            H.at({**p, other: words[0]})
    with pytest.raises(ValueError, match="expected one like the point's"):
        H.at({"layers": p["layers"]})
