"""Which settings of JAX a program is made under: those of the construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import text
from custom_rules import RULES

import linops


@pytest.mark.parametrize("kind", [*RULES, "plain"])
def test_rules_are_traced_under_the_settings_of_the_construction(kind):
    W = jnp.ones((7, 7))
    f = {"custom_jvp": jax.custom_jvp, "custom_vjp": jax.custom_vjp, "plain": lambda f: f}[kind](lambda x: W @ x)
    if kind == "custom_jvp":
        f.defjvp(lambda p, t: (f(*p), W @ t[0]))
    if kind == "custom_vjp":
        f.defvjp(lambda x: (f(x), None), lambda _, w: (W.T @ w,))
    for precision in ("highest", None, "default", None):  # whatever the caches have seen before
        with jax.default_matmul_precision(precision):
            J = linops.Jacobian(f, np.ones(7, np.float32))
        for A in (J, J.T, J.linearize()):
            dots = [line for line in text(A).splitlines() if "dot_general" in line]
            assert dots
            assert all(("HIGHEST" in line) == (precision != "default") for line in dots), (precision, dots)


def test_matmul_precision_is_part_of_the_key():
    M = np.ones((3, 3), np.float32)
    x = np.ones(3, np.float32)
    found = []
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            A = linops.Matrix(M)
            A @ x, A @ jnp.asarray(x), A @ np.eye(3, dtype=np.float32)
            found.append(text(A))
            (dot,) = (equation for equation in A._door.staged.graph.walk() if equation.name == "dot_general")
            assert str(dot.params["precision"][0]) == precision.upper()
    assert "HIGHEST" in found[0]
    assert "HIGHEST" not in found[1]
