"""First products: two programs, the linearization and the product, for whatever is multiplied."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from counting import compilations, forget

import linops
from linops.products import array_product


def test_constants_are_not_compiled_one_by_one():
    """Two programs for the first product: the linearization and the product."""
    x = np.ones(13, np.float32)
    with compilations() as count:
        linops.Hessian(lambda x: jnp.mean(jnp.tanh(x) ** 2) / 3 - jnp.sum(jnp.zeros(3)), x) @ x
        assert count() == 2


def test_composite_is_one_program():
    """J.T @ J + lam I: one linearization, then one compiled call for each product."""
    J = linops.Jacobian(lambda x: jnp.sin(x)[1:] * x[:-1], problems.normal(40, np.float32))
    A = J.T @ J + 0.1 * linops.Identity(40)
    with compilations() as count:
        A @ np.ones(40, np.float32)
        assert count() == 2
    product = A._door._flat.stage(array_product, jax.ShapeDtypeStruct((40,), np.float32))
    assert len(A._door._flat.leaves) == len(jax.tree.leaves(J.linearize())) + 1  # residuals once, and the scalar
    assert product.graph.outputs[0].aval.dtype == np.float32


@pytest.mark.parametrize(
    "product",
    [
        lambda J, v: J @ v,
        lambda J, v: J.T @ v,
        lambda J, v: J.rmatvec(v),
        lambda J, v: J @ np.stack([v, v], axis=1),
        lambda J, v: J.T @ np.stack([v, v], axis=1),
        lambda J, v: J.mv(v),
        lambda J, v: J.diagonal(),
        lambda J, v: (J.T @ J + linops.Identity(5)) @ v,
    ],
    ids=["v", "transposed", "rmatvec", "block", "transposed block", "tree", "diagonal", "normal equations"],
)
@pytest.mark.parametrize(
    "context", [contextlib.nullcontext, lambda: jax.enable_x64(True), lambda: jax.default_matmul_precision("highest")]
)
def test_a_first_product_compiles_two_programs(product, context):
    """The linearization and the product, the second while the first is, in whatever context."""
    v = np.ones(5, np.float32)
    J = linops.Jacobian(lambda x: jnp.sin(x) * x[::-1], v)
    forget()
    with context(), compilations() as count:
        product(J, v)
        assert count() == 2


def test_an_operator_that_is_in_another_twice_is_compiled_once():
    v = np.ones(5, np.float32)
    J = linops.Jacobian(lambda x: jnp.cos(x) * x[::-1], v)
    forget()
    with compilations() as count:
        (J @ J) @ v
        assert count() == 2


def test_code_of_a_user_is_asked_for_numbers_only():
    """Where ours would be asked for the types of what a linearization gives, while that is computed."""

    class Inverse(linops.Operator):
        array: jax.Array
        domain = codomain = property(lambda self: linops.Space.flat(3, np.float32))

        def _mv(self, v):
            return jnp.linalg.solve(self.array, v)

        def _residual_form(self):
            return linops.Matrix(np.linalg.inv(self.array))

    v, D = np.ones(3, np.float32), np.float32([[1, 1, 0], [0, 2, 1], [1, 0, 4]])
    A, M = Inverse(D), np.linalg.inv(D)
    for B, expected in ((A, M), (A.T, M.T), (2 * A, 2 * M), (A.T @ A + linops.Identity(3), M.T @ M + np.eye(3))):
        np.testing.assert_allclose(B @ v, expected @ v, rtol=1e-4)
