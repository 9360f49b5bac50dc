"""Composites at another point: all parts that have one are moved, or it is said why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations

import linops

X, Y = (np.linspace(low, low + 1, 4).astype(np.float32) for low in (0.2, 1.1))
V = np.arange(1.0, 5, dtype=np.float32)


def wave(x):
    return jnp.sin(x) * x[::-1]


def energy(x):
    return jnp.sum(jnp.cosh(x) * x[0])


MATRIX = linops.Matrix(np.arange(16.0, dtype=np.float32).reshape(4, 4))
COMPOSITES = {
    "transpose": lambda J, H: J.T,
    "sum": lambda J, H: H + J - 2 * linops.Identity(4),
    "products": lambda J, H: (MATRIX @ J) @ (H / 3),
    "power": lambda J, H: J**3,
    "weighted": lambda J, H: J.T @ (H @ J) + MATRIX,
    "complex": lambda J, H: ((1 + 2j) * (J.T @ J) + H).H,
    "outputs": lambda J, H: linops.JacobianGram(wave, J.x) + H,
    "monitored": lambda J, H: 2 * linops.monitor(J),
}


def composite(name, x):
    return COMPOSITES[name](linops.Jacobian(wave, x), linops.Hessian(energy, x))


@pytest.mark.parametrize("name", COMPOSITES)
def test_every_part_is_moved_and_nothing_compiled(name):
    A, there = composite(name, X), composite(name, Y) @ V
    A @ V, A.at(V) @ V
    with compilations() as count:
        B = A.at(Y)
        product = B @ V
    assert count() == 0
    np.testing.assert_allclose(product, there, rtol=1e-5, atol=1e-5)
    assert type(B) is type(A)
    assert (B.symmetric, B.hermitian) == (A.symmetric, A.hermitian)
    np.testing.assert_allclose(jax.jit(lambda x: A.at(x) @ V)(Y), there, rtol=1e-4, atol=1e-4)


def test_args_go_to_every_part():
    A, B = (
        linops.GaussNewton(lambda x, c: c * wave(x), x, args=(c,)) + linops.Identity(4)
        for x, c in ((X, np.float32(1)), (Y, np.float32(3)))
    )
    np.testing.assert_allclose(A.at(Y, args=(np.float32(3),)) @ V, B @ V, rtol=1e-5)


def test_parts_at_other_points_are_refused():
    J, H = linops.Jacobian(wave, X), linops.Hessian(energy, Y)
    of_two = linops.JacobianGram(wave, X, Y)
    for A in (J + H, linops.Jacobian(wave, wave(X)) @ J, of_two + J, linops.inverse(of_two + H, "gmres")):
        with pytest.raises(ValueError, match="its parts are at different points, expected all of them at one"):
            A.at(Y)
    np.testing.assert_allclose((2 * of_two).at(Y, X) @ V, 2 * linops.JacobianGram(wave, Y, X).toarray() @ V, rtol=1e-5)


def test_blocks_and_parts_of_a_point():
    x, y = ({"a": point[:2], "b": point[2:]} for point in (X, Y))

    def coupled(x):
        return jnp.sum(jnp.cosh(x["a"])) * jnp.sum(x["b"] ** 3)

    def block(x):
        return linops.Hessian(coupled, x, wrt="a") + 2 * linops.Identity(2)

    np.testing.assert_allclose(block(x).at(y) @ V[:2], block(y) @ V[:2], rtol=1e-5)  # with what is held fixed
    blocks = linops.BlockDiagonal({"a": block(x), "b": linops.Identity(2)})
    whole = linops.Hessian(coupled, x)
    with pytest.raises(ValueError, match="its parts are at different points"):
        (blocks + whole).at(y)


def test_an_operator_without_a_point_says_so():
    for A in (MATRIX, 2 * MATRIX + linops.Identity(4), linops.inverse(MATRIX + 20 * linops.Identity(4))):
        with pytest.raises(TypeError, match="has no point to be moved from, nor has any part of it"):
            A.at(X)
