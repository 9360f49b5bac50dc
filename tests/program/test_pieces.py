"""Long functions are compiled in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops
from linops.program.pieces import in_pieces
from linops.program.program import program_of
from linops.program.staged import _compiled

X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


@pytest.mark.parametrize("step", [jnp.sin, jnp.tanh])
def test_long_chains_compiled_in_pieces_are_right(step):
    def f(x):
        y = x
        for _ in range(60):
            y = step(y) + 0.1 * y * x
        return y

    def looped(x):
        return jax.lax.fori_loop(0, 60, lambda _, y: step(y) + 0.1 * y * x, x)

    D = np.asarray(jax.jit(jax.jacfwd(looped))(X))
    for J in (linops.Jacobian(f, X), linops.Jacobian(f, X, linearize=False)):
        np.testing.assert_allclose(J @ V, D @ V, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(J.T @ V, D.T @ V, rtol=1e-4, atol=1e-5)
    H = linops.Hessian(lambda x: jnp.sum(f(x) ** 2), X)
    expected = jax.jit(jax.jacfwd(jax.jacfwd(lambda x: jnp.sum(looped(x) ** 2))))(X)
    np.testing.assert_allclose(H.toarray(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loop", ["scan", "cond"])
def test_a_piece_has_what_a_loop_in_it_closes_over(loop):
    W = jnp.eye(3) + 0.1
    times = jax.jit(lambda y: W @ y)  # which JAX leaves in the loop
    loops = {
        "scan": lambda y: jax.lax.scan(lambda y, _: (times(y), None), y, None, length=2)[0],
        "cond": lambda y: jax.lax.cond(y[0] > 0, times, lambda y: y, y),
    }

    def f(x):
        results = [x]
        for i in range(60):
            results.append((loops[loop] if i % 15 == 14 else jnp.sin)(results[-1]) + 0.1 * x)
        return results[1:]

    program, consts = program_of(jax.make_jaxpr(f)(X))
    assert any(equation.changed for equation in program.graph.equations)
    pieces = []
    run = in_pieces(program, tuple(range(60)), lambda *piece: pieces.append(piece) or _compiled(*piece))
    assert len(pieces) > 1
    np.testing.assert_allclose(run(*consts, X), jax.jit(f)(X), rtol=1e-5)
