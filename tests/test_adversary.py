"""Found by trying: to be moved."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations

import linops


def _near(x, other):
    return jnp.sum(jnp.cos(x)) + jnp.sum((x - other) ** 4)


COINCIDING = {
    "closed over": lambda x: linops.Hessian(lambda y: _near(y, x), x),
    "args": lambda x: linops.Hessian(_near, x, args=(x,)),
    "two points": lambda x: linops.JacobianGram(lambda y: jnp.sin(y) * y, x, x),
    "operator": lambda x: _multiplied(linops.Jacobian(jnp.sin, x), x),
}


def _multiplied(J, x):
    return linops.Jacobian(lambda y: J.mv(y) * y, x)


@pytest.mark.parametrize("make", COINCIDING.values(), ids=COINCIDING)
def test_another_point_compiles_nothing_where_the_first_is_data_too(make):
    x, v = jnp.linspace(0.5, 1, 5), np.ones(5, np.float32)
    A = make(x)
    points = (2 * x, 3 * x) if isinstance(A, linops.JacobianGram) else (2 * x,)
    A @ v
    with compilations() as count:
        A.at(*points) @ v
    assert count() == 0


def test_args_that_are_equal_and_of_another_type_are_others():
    def f(x, n):
        return x**2 if n is True else x

    J = linops.Jacobian(f, np.ones(2, np.float32), args=(1,))
    with pytest.raises(ValueError, match="expected args like those that f was traced"):
        J.at(np.ones(2, np.float32), args=(True,))


def test_a_hessian_of_a_rule_with_optimized_rematerialization():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, w: (w * c,), optimize_remat=True)
    x = np.linspace(0, 1, 3, dtype=np.float32)
    H = linops.Hessian(lambda x: jnp.sum(sine(x) ** 2), x)
    np.testing.assert_allclose(H.toarray(), np.diag(2 * np.cos(2 * x)), rtol=1e-5, atol=1e-6)


def test_a_reference_inside_of_f_that_starts_from_constants():
    def f(x):
        r = jax.new_ref(jnp.zeros_like(x))
        r[...] = jnp.sin(x)
        r[1] = x[0] * x[2]
        return r[...]

    x = np.array([1, 2, 3], np.float32)
    J = linops.Jacobian(f, x)
    expected = np.array([[np.cos(1), 0, 0], [3, 0, 1], [0, 0, np.cos(3)]])
    np.testing.assert_allclose(J.toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(J.T @ np.ones(3, np.float32), expected.sum(0), rtol=1e-5)


_MISSING = object()


@jax.tree_util.register_pytree_node_class
class Module:
    """Like those of equinox: attributes that are not there are known by an object that does not survive a pickle."""

    names = "w", "b", "absent"

    def tree_flatten(self):
        there = [name for name in self.names if hasattr(self, name)]
        leaves = [getattr(self, name) for name in there]
        return leaves, tuple(name if name in there else _MISSING for name in self.names)

    @classmethod
    def tree_unflatten(cls, names, leaves):
        self, leaves = cls(), iter(leaves)
        for name in names:
            if name is not _MISSING:
                setattr(self, name, next(leaves))
        return self


def affine(module, other):
    return other.w @ jnp.tanh(module.w) + module.b


def test_pickles_of_modules_whose_structure_does_not_pickle():
    module, other = Module(), Module()
    module.w, module.b = jnp.linspace(0, 1, 3), jnp.ones(2)
    other.w = jnp.ones((2, 3))
    J = linops.Jacobian(affine, module, args=(other,))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(J)).toarray(), J.toarray())


MANY = {
    "matrix": lambda s: linops.Matrix(s * jnp.eye(5)),
    "Jacobian": lambda s: linops.Jacobian(jnp.sin, jnp.full(5, s)),
    "Hessian": lambda s: linops.Hessian(lambda x: jnp.sum(x) ** 3, jnp.full(5, s)),
    "GaussNewton": lambda s: linops.GaussNewton(jnp.sin, jnp.full(5, s)),
    "sum": lambda s: s * linops.Identity(5) + linops.Diagonal(jnp.ones(5)),
}


@pytest.mark.parametrize("make", MANY.values(), ids=MANY)
def test_what_vmap_returns_is_multiplied_inside_of_vmap(make):
    many = jax.vmap(make)(jnp.arange(5.0))
    with pytest.raises(ValueError, match="is many operators, to be multiplied inside of"):
        many @ np.ones(many.shape[1], np.float32)
    products = jax.vmap(lambda A: A @ jnp.ones(5))(many)
    np.testing.assert_allclose(products[3], make(3.0) @ np.ones(5, np.float32), rtol=1e-5)


class Untrue(linops.Operator):
    """Its products are not where it says."""

    domain = codomain = linops.Space.flat(3, np.float32)

    def _mv(self, v):
        return v[:2]


def test_a_product_is_of_the_codomain():
    with pytest.raises(ValueError, match="expected an element of its codomain"):
        Untrue() @ np.ones(3, np.float32)


def _scaled(x, a, *_):
    return a * x**2


@pytest.mark.parametrize("given", [0.2, np.float32(0.2), np.array(0.2, np.float32), jnp.float32(0.2), 2])
@pytest.mark.parametrize("first", [0.1, np.float32(0.1), jnp.float32(0.1)])
def test_a_number_for_a_number_in_args(first, given):
    x, v = np.ones(3, np.float32), np.ones(3, np.float32)
    J = linops.Jacobian(_scaled, x, args=(first,))
    J @ v
    at = J.at(x, args=(given,))
    with compilations() as count:
        np.testing.assert_allclose(at @ v, 2 * float(given) * v, rtol=1e-6)
    assert count() == 0


def test_weakly_typed_arrays_in_args():
    x = np.ones(3, np.float32)
    J = linops.Jacobian(_scaled, x, args=(jnp.ones(3),))
    np.testing.assert_array_equal(J.at(x, args=(jnp.full(3, 2.0),)) @ x, 4 * x)
    J = linops.Jacobian(_scaled, x, args=(jnp.full(3, 2.0),))
    np.testing.assert_array_equal(J.at(x, args=(jnp.ones(3),)) @ x, 2 * x)


@pytest.mark.parametrize("make", [lambda: slice(0, 2), lambda: range(2), lambda: frozenset("ab"), lambda: np.str_("q")])
def test_equal_code_in_args(make):
    x = np.ones(3, np.float32)
    J = linops.Jacobian(_scaled, x, args=(1.0, make()))
    assert J.at(x, args=(2.0, make())) @ x is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((np.ones(3, np.float32),), r"at got args\[0\] of type float32\[3\] for float32\[\]"),
        ((1.0, 2), "at got args of structure"),
        (("q",), r"at got args\[0\] = 'q', expected"),
    ],
)
def test_what_differs_in_args_is_named(given, words):
    J = linops.Jacobian(_scaled, np.ones(3, np.float32), args=(1.0,))
    with pytest.raises(ValueError, match=words):
        J.at(np.ones(3, np.float32), args=given)


def test_a_numpy_point_goes_where_the_committed_one_lay():
    device = jax.devices()[0]
    x, v = np.ones(3, np.float32), np.ones(3, np.float32)
    J = linops.Jacobian(jnp.sin, jax.device_put(x, device))
    J @ v
    with compilations() as count:
        np.testing.assert_allclose(J.at(2 * x) @ v, np.cos(2 * x), rtol=1e-6)
    assert count() == 0
