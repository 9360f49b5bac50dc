"""Points: which are refused, with what to pass instead, and where their leaves lie in the vector."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse

import linops

X = np.arange(1, 4, dtype=np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """As flax has it: a count of steps beside the parameters, and the state of an optimizer."""

    step: object
    params: object
    opt_state: object = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """As equinox has it: the activation is a leaf."""

    weight: object
    activation: object

    def __call__(self, x):
        return self.activation(self.weight * x)


class Moments(NamedTuple):
    """The state of an optimizer."""

    count: object
    mu: object


class Unregistered:
    """A module that is no pytree."""


class RecordsGradients:
    """A tensor of torch that records a gradient."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


PARAMS = "pass its parameters, x.params, and let f put them in their place"
MODULE = r"pass the arrays of the model alone, .* eqx.partition\(model, eqx.is_inexact_array\)"
KEY = "pass a random key through args= or a closure"
SPARSE = "pass the numbers that it holds, its .data, and let f make a sparse array of them"
REFUSED = {  # a point, where in it, and the remedy
    "random key": (lambda: jax.random.key(0), "", KEY),
    "random keys": (lambda: {"w": X, "key": jax.random.split(jax.random.key(0), 3)}, "['key']", KEY),
    "random key of old": (lambda: {"w": X, "key": jax.random.PRNGKey(0)}, "['key']", "through args= or a closure"),
    "TrainState": (lambda: TrainState(0, {"w": X}), ".step", PARAMS),
    "TrainState on the device": (lambda: TrainState(jnp.int32(0), {"w": X}, Moments(jnp.int32(1), X)), ".step", PARAMS),
    "state of an optimizer": (lambda: TrainState(0.0, {"w": X}, Moments(np.int32(1), X)), ".opt_state.count", PARAMS),
    "equinox module": (lambda: Module(X, jax.nn.relu), ".activation", MODULE),
    "equinox module in a list": (lambda: [Module(X, jnp.tanh)], "[0].activation", MODULE),
    "text": (lambda: {"w": X, "name": "dense"}, "['name']", MODULE),
    "sparse matrix": (lambda: scipy.sparse.csr_matrix(np.eye(2)), "", SPARSE),
    "sparse array": (lambda: {"A": scipy.sparse.coo_array(np.eye(2))}, "['A']", SPARSE),
    "sparse array of JAX": (lambda: {"A": sparse.BCOO.fromdense(jnp.eye(2))}, "['A']", SPARSE),
    "sparse rows of JAX": (lambda: sparse.BCSR.fromdense(jnp.eye(2)), "", SPARSE),
    "mutable reference": (
        lambda: {"w": jax.new_ref(jnp.ones(2))},
        "['w']",
        r"pass the value of the reference, as in ref",
    ),
    "no pytree": (Unregistered, "", "expected an array or a number"),
    "tensor": (
        lambda: {"w": RecordsGradients()},
        "['w']",
        r"expected an array or a number; NumPy said: .*tensor.detach",
    ),
    "None": (
        lambda: {"a": None, "b": [None]},
        "",
        "holds no arrays: got .*, expected a pytree with at least one array",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("make", [linops.Jacobian, linops.Hessian, linops.GaussNewton, linops.JacobianGram])
def test_refused(name, make):
    point, where, remedy = REFUSED[name]
    with pytest.raises(TypeError, match=remedy) as error:
        make(lambda x: jax.tree.leaves(x)[0], point())
    assert str(error.value).startswith(f"x{where} ")
    assert "expected" in str(error.value)


def test_the_remedies():
    state = TrainState(3, {"w": X})
    J = linops.Jacobian(lambda params: dataclasses.replace(state, params=params).params["w"] ** 2, state.params)
    np.testing.assert_array_equal(J @ np.ones(3, np.float32), 2 * X)
    model = Module(X, jnp.tanh)
    J = linops.Jacobian(lambda weight: dataclasses.replace(model, weight=weight)(0.0), model.weight)
    assert not (J @ X).any()
    A = scipy.sparse.csr_array(np.diag(X))
    rows, columns = A.nonzero()
    f = lambda data: sparse.BCOO((data, np.stack([rows, columns], 1)), shape=(3, 3)) @ jnp.ones(3)  # noqa: E731
    np.testing.assert_array_equal(linops.Jacobian(f, A.data) @ X, X)
    np.testing.assert_array_equal(linops.Jacobian(lambda s: s.params, TrainState(0.5, X)).toarray()[:, 1:], np.eye(3))


# Where leaves lie.

TREES = {
    "dict": {"w": np.zeros((2, 3)), "b": np.zeros(2), "a": np.zeros(())},
    "layers": {
        "layers": [{"w": np.zeros((2, 3)), "b": np.zeros(2)}, {"w": np.zeros(4), "b": np.zeros(0)}],
        "z": np.zeros(1),
    },
    "haiku": {"linear/~/w": {"w": np.zeros(2), "b": np.zeros(1)}, "linear": {"w": np.zeros(3)}},
    "module": Module(np.zeros(2), (np.zeros(3), None)),
    "optimizer": [Moments(np.zeros(()), {"w": np.zeros(2)})],
    "array": np.zeros((2, 2)),
}


@pytest.mark.parametrize("name", TREES)
def test_slices(name):
    """The slice of each node takes from the vector what the vector of the node alone is."""
    tree = jax.tree.map(jnp.asarray, TREES[name])
    space = linops.Space.of(tree)
    numbered = space.unravel(np.arange(space.size, dtype=np.float32))
    vector, seen = np.asarray(space.ravel(numbered)), []
    for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        for k in range(len(keys) + 1):
            path = jax.tree_util.keystr(keys[:k], simple=True, separator="/")
            inside = [leaf for p, leaf in jax.tree_util.tree_flatten_with_path(numbered)[0] if p[:k] == keys[:k]]
            got = space.slice(path)
            seen.append(path)
            assert type(got) is slice
            np.testing.assert_array_equal(vector[got], np.concatenate([np.ravel(leaf) for leaf in inside]))
    assert space.slice("") == slice(0, space.size)
    for unknown in ("nowhere", seen[-1] + "/more", "/"):
        with pytest.raises(
            ValueError, match=r"got the path '.*', which 0 parts of the tree have; expected that of one"
        ) as e:
            space.slice(unknown)
        assert repr(seen[-1]) in str(e.value)


def test_slices_of_vectors_of_an_operator():
    J = linops.Jacobian(lambda p: p["w"] * 2 + p["b"], {"w": X, "b": np.float32(1)})
    D = J.toarray()
    np.testing.assert_array_equal(D[:, J.domain.slice("w")], 2 * np.eye(3))
    np.testing.assert_array_equal(D[:, J.domain.slice("b")], np.ones((3, 1)))
    ambiguous = linops.Space.of({"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(2)}})
    with pytest.raises(ValueError, match="which 2 parts of the tree have; expected that of one leaf"):
        ambiguous.slice("a/b")
    many = linops.Space.of({f"{i:02}": jnp.zeros(1) for i in range(30)})
    with pytest.raises(ValueError, match=r"'19', \.\.\.$"):
        many.slice("x")
