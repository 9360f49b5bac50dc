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


@pytest.mark.parametrize("precision", [None, "default"])
def test_what_a_jit_traces_multiplies_in_full_precision_as_well(precision):
    M = linops.Matrix(np.eye(3, dtype=np.float32))
    x = jnp.ones(3)

    def fit(A, v):
        return linops.optimize.levenberg_marquardt(lambda x: A.array @ x - v, v).x

    jitted = {
        "vector": lambda A, v: A @ v, "block": lambda A, v: A.T @ jnp.stack([v, v], axis=1), "tree": linops.Matrix.mv,
        "eigsh": lambda A, v: linops.linalg.eigsh(A, k=1, v0=v), "svds": lambda A, v: linops.linalg.svds(A, k=1, v0=v),
        "lsmr": lambda A, v: linops.linalg.lsmr(A, v)[0], "cg": lambda A, v: linops.linalg.cg(A, v)[0],
        "trace": lambda A, v: linops.estimate.trace(A, jax.random.key(0), num_matvecs=2).value, "fit": fit,
        "gradient": jax.grad(lambda A, v: jnp.sum(A @ v), argnums=1),
        "gradient of cg": jax.grad(lambda A, v: jnp.sum(linops.linalg.cg(A, v)[0])),
        "gradient of lsmr": jax.grad(lambda A, v: jnp.sum(linops.linalg.lsmr(A, v)[0])),
        "gradient of inverse": jax.grad(lambda A, v: jnp.sum(linops.inverse(A, method="gmres") @ v)),
        "gradient of eigsh": jax.grad(lambda A, v: linops.linalg.eigsh(A, k=1, return_eigenvectors=False)[0]),
        "gradient of trace": jax.grad(
            lambda A, v: linops.estimate.trace(A, jax.random.key(0), num_matvecs=2, method="hutchinson").value
        ),
        "expm_multiply": linops.linalg.expm_multiply,
    }  # fmt: skip
    for name, function in jitted.items():
        with jax.default_matmul_precision(precision):
            lines = jax.jit(function).lower(M, x).as_text().splitlines()
        dots = [line for line in lines if "dot_general" in line]
        assert dots, name
        assert all("HIGHEST" in line for line in dots) or precision == "default", (name, dots)
        assert precision is None or any("HIGHEST" not in line for line in dots), name
