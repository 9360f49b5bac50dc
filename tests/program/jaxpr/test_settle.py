"""What depends on no argument: computed at once where it repeats itself, else compiled with the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from counting import compilations

import linops


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside of jit"])
def test_what_repeats_itself_and_depends_on_no_argument_is_computed_at_once(inside):
    """A table filled by scatters: compiled once for all of them, and not again for other numbers."""
    v = np.ones(2, np.float32)

    def product(numbers, v):
        def f(x):
            table = jnp.zeros(10)
            for i, number in enumerate(numbers):
                table = table.at[jnp.array([i % 10, (i + 1) % 10, (i + 2) % 10])].set(number)
            return jnp.sin(x[0] * table)

        J = linops.Jacobian(f, jnp.ones(2))
        assert not any(equation.name == "scatter" for equation in J.function.program.graph.walk())
        return J @ v, jax.jvp(f, (jnp.ones(2),), (v,))[1]

    wrap = jax.jit if inside else lambda f: f
    for seed in (0, 1):
        numbers = list(jnp.asarray(problems.normal(20, np.float32, seed)))
        with compilations() as count:
            found, expected = wrap(lambda v, numbers=numbers: product(numbers, v))(v)
            assert count() == 0 or inside or seed == 0
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_does_not_repeat_itself_is_compiled_with_the_rest():
    """Nine operations, each once; a large table; a table that nothing uses."""
    table, large = jnp.linspace(0.1, 0.9, 5), jnp.ones((1000, 1000))

    def once(x):
        t = jnp.log(jnp.tanh(jnp.exp(jnp.cos(jnp.sin(table)))))
        return x * jnp.expm1(jnp.log1p(jax.lax.logistic(t)))

    def of_large(x):
        return x * sum(jnp.sum(jnp.sin(large + i)) for i in range(10))

    def unused(x):
        [jnp.linalg.cholesky(jnp.eye(3) + table[i] * jnp.eye(3)) for i in range(10)]
        return 2 * x

    x = jnp.ones(5)
    for f in (once, of_large, unused):
        with compilations() as count:
            linops.Jacobian(f, x)
            assert count() == 0


def test_what_is_not_pure_is_computed_in_each_product():
    """A host function without arguments that counts how often it was called."""
    calls = []
    struct = jax.ShapeDtypeStruct((), np.float32)

    def count():
        calls.append(1)
        return np.float32(len(calls))

    def f(x):
        return x * sum(jax.experimental.io_callback(count, struct) for _ in range(20))

    J = linops.Jacobian(f, jnp.ones(2), linearize=False)
    assert not calls
    first, second = (J @ np.ones(2, np.float32) for _ in range(2))
    assert len(calls) == 40
    assert first[0] == sum(range(1, 21))
    assert second[0] == sum(range(21, 41))
