"""What Lanczos sees of a spectrum: quadratic forms between brackets, log-determinants, densities."""

import functools
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from processes import in_subprocess
from scipy.stats import binomtest

import linops
from linops import estimate

N = 80
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(N, N)) + 1j * RNG.normal(size=(N, N)))[0]
VALUES = np.linspace(1.0, 100.0, N)
MATRIX = Q * VALUES @ Q.conj().T
DIRECTION = np.diag(np.linspace(1.0, 2.0, N)) + 0.1 * (Q @ Q.T + (Q @ Q.T).conj().T)
VECTOR = RNG.normal(size=N) + 1j * RNG.normal(size=N)


class Hermitian(linops.Operator):
    """A matrix that claims to be Hermitian."""

    array: jax.Array

    hermitian = True
    domain = codomain = property(lambda self: linops.Space.flat(self.array.shape[0], self.array.dtype))

    def _mv(self, v):
        return self.array @ v


def operator(matrix=MATRIX):
    return Hermitian(jnp.asarray(matrix, jnp.result_type(matrix)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("f", [jnp.log, jnp.exp], ids=lambda f: f.__name__)
def test_quadratic_forms_lie_in_their_brackets(f):
    """With true bounds rigorously; to the tolerance, with fewer products than columns; exact after enough."""
    matrix = MATRIX / 20 if f is jnp.exp else MATRIX
    values, vectors = np.linalg.eigh(matrix)
    true = np.sum(np.abs(vectors.conj().T @ VECTOR) ** 2 * f(values))
    found = estimate.quadratic_form(f, operator(matrix), VECTOR, bounds=(values[0], values[-1]), num_matvecs=7)
    assert found.lower <= true <= found.upper
    assert abs(found.value - true) <= found.standard_error
    assert int(found.matvecs) == 7
    for rtol in 1e-3, 1e-11:  # the same program
        found = estimate.quadratic_form(f, operator(matrix), VECTOR, rtol=rtol)
        assert int(found.matvecs) < (N / 2 if rtol > 1e-4 else N + 1)
        np.testing.assert_allclose(found.value, true, rtol=rtol)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_squares_beyond_the_range(scale):
    A, b = linops.Diagonal(np.float32(scale) * np.linspace(1, 13, 100, dtype=np.float32)), np.ones(100, np.float32)
    found = estimate.quadratic_form(jnp.reciprocal, A, b, num_matvecs=8)
    error = abs(found.value - np.sum(1 / np.asarray(A.entries, float)))
    assert 1e-7 / scale < found.standard_error < 1 / scale  # truncated, and said so
    assert error <= found.standard_error


@pytest.mark.usefixtures("x64")
def test_derivatives_of_quadratic_forms_and_determinants():
    """By the operator, the vector and what f closes over, within a jit, with a tolerance; of log det in expectation."""

    def form(t, s):
        A = operator(MATRIX + t * DIRECTION)
        return estimate.quadratic_form(lambda x: jnp.log(x + s), A, VECTOR + t, rtol=1e-12).value

    def dense(t, s):
        b = VECTOR + t
        values, vectors = np.linalg.eigh(MATRIX + t * DIRECTION)
        return np.sum(np.abs(vectors.conj().T @ b) ** 2 * np.log(values + s))

    h = 1e-5
    by_t, by_s = ((dense(*at) - dense(*to)) / (2 * h) for at, to in (((h, 1), (-h, 1)), ((0, 1 + h), (0, 1 - h))))
    np.testing.assert_allclose(jax.jit(jax.grad(form, (0, 1)))(0.0, 1.0), [by_t, by_s], rtol=1e-5)
    for twice in jax.grad(jax.grad(form)), jax.grad(jax.grad(form, 1)), jax.grad(jax.grad(form), 1):
        with pytest.raises(TypeError, match="was differentiated twice, where its Krylov space"):
            jax.eval_shape(twice, 0.0, 1.0)
    jax.eval_shape(jax.grad(jax.grad(form, 1), 1), 0.0, 1.0)  # by what f closes over

    def determinant(t, key):
        return estimate.logdet(operator(MATRIX + t * DIRECTION), key, steps=16, num_matvecs=16 * 4).value

    slopes = jax.jit(jax.vmap(jax.grad(determinant), (None, 0)))(0.0, jax.random.split(KEY, 100))
    true = np.trace(np.linalg.solve(MATRIX, DIRECTION)).real
    assert abs(np.mean(slopes) - true) < 5 * np.std(slopes) / 10


def determinants(A, count, **options):
    """Estimates by so many keys."""
    return jax.jit(jax.vmap(lambda key: estimate.logdet(A, key, **options)))(jax.random.split(KEY, count))


@pytest.mark.usefixtures("x64")
def test_log_determinants_cover_as_they_say():
    """Of 200 keys, by Ritz values, also where few steps truncate; exact where the products suffice."""
    A, true = operator(), np.sum(np.log(VALUES))
    for steps, bounds in (5, (None, None)), (16, (1.0, None)):
        options = {"steps": steps, "num_matvecs": 8 * steps if steps < 10 else 4 * steps, "bounds": bounds}
        found = determinants(A, 200, **options)
        error = np.abs(found.value - true)
        for times, level in (1, 0.6827), (2, 0.9545):
            inside = int(np.sum(error <= times * found.standard_error))
            assert binomtest(inside, 200, level, alternative="less").pvalue > 1e-3
    exact = estimate.logdet(A, KEY)
    np.testing.assert_allclose(exact.value, true)
    assert int(exact.matvecs) == N
    assert estimate.logdet(linops.Diagonal(np.zeros(0)), KEY).value == 0
    found = estimate.logdet(A, KEY, steps=8, rtol=0.05)
    assert found.standard_error <= 0.05 * found.value
    assert np.isnan(jax.jit(lambda A: estimate.logdet(A, KEY).value)(operator(-MATRIX)))
    for options in {}, {"steps": 8, "num_matvecs": 16}:
        seen = "has NaN or Inf, because A has a Ritz value of -.*, and so is not positive definite to the digits of .*"
        words = seen + r": expected .* A \+ c \* I has one"
        with pytest.raises(FloatingPointError, match=words):
            estimate.logdet(operator(-MATRIX), KEY, **options)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("f", [jnp.log, jnp.reciprocal, jnp.sqrt], ids=lambda f: f.__name__)
def test_brackets_without_bounds_hold_where_convergence_is_slow(f):
    """Of eigenvalues over six orders Ritz values know no end: from them alone 1/x was off by 6 brackets."""
    values = np.logspace(-6, 0, N)
    for steps in 8, 16, 32:
        found = estimate.quadratic_form(f, linops.Diagonal(values), np.ones(N), num_matvecs=steps)
        assert found.lower <= np.sum(f(values)) <= found.upper
    nothing = estimate.quadratic_form(f, linops.Diagonal(values), np.zeros(N), num_matvecs=16)
    assert nothing.lower == nothing.value == nothing.upper == 0
    found = estimate.quadratic_form(f, linops.Diagonal(values), np.ones(N), bounds=(1e-6, 1.0), num_matvecs=32)
    assert found.lower <= np.sum(f(values)) <= found.upper
    assert np.isfinite(found.standard_error)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ends", [(-1, 1), (-1, 3)])
def test_errors_cover_where_f_is_singular_within_the_spectrum(ends):
    """Of a symmetric spectrum every other rule has a node there, so that half the steps may change nothing."""
    values = np.linspace(*ends, N)
    A, true = linops.Diagonal(values), np.abs(values)
    absolute = jax.jit(jax.vmap(lambda b: estimate.quadratic_form(jnp.abs, A, b, num_matvecs=20)))
    vectors = np.random.default_rng(0).normal(size=(100, N))
    found = absolute(jnp.asarray(vectors))
    inside = int(np.sum(np.abs(found.value - vectors**2 @ true) <= found.standard_error))
    assert binomtest(inside, 100, 0.95, alternative="less").pvalue > 1e-3


@pytest.mark.usefixtures("x64")
def test_functions_are_what_they_read_now():
    """An array that is changed in place, attributes, by closures, methods, functions in others, and default values."""
    kept, A, b = np.ones(1), linops.Diagonal(np.array([1.0, 2.0])), np.array([1.0, 2.0])
    powers = type("Powers", (), {"number": 1.0})
    method = types.MethodType(lambda self, t: self.number * t, powers)
    inner = jax.vmap(lambda t: powers.number * t)

    def value(f, b=b):
        return estimate.quadratic_form(f, A, b).value

    for f in (
        (lambda t: kept[0] * t),
        method,
        (lambda t: inner(t.ravel()).reshape(t.shape)),
        (lambda t, c=kept: c[0] * t),
    ):
        for factor in 1.0, 3.0:
            kept[0] = powers.number = factor
            np.testing.assert_allclose(value(f), 9 * factor)
            if f is method:
                np.testing.assert_allclose(jax.jvp(functools.partial(value, f), (b,), (b,)), [9 * factor, 18 * factor])
    value(jnp.sin)
    large = [jnp.full(4321, 1.0 + i) for i in range(3)]
    alive = [*map(weakref.ref, large)]
    value(lambda t, c=large[0]: c[0] * t)
    with compilations() as count:
        value(jnp.sin)
        assert [float(value(lambda t, c=c: c[0] * t)) for c in large] == [9, 18, 27]
    assert count() == 0
    del large
    assert [array() for array in alive] == [None] * 3


@pytest.mark.usefixtures("x64")
def test_a_whole_space_is_exact_and_one_step_says_nothing():
    A, b = operator(np.array([[2.0, 1.0], [1.0, 3.0]])), np.array([1.0, 2.0])
    found = estimate.quadratic_form(jnp.exp, A, b)
    w, V = np.linalg.eigh(A.toarray())
    assert abs(found.value - (V.T @ b) ** 2 @ np.exp(w)) < 1e-11
    assert found.standard_error < 1e-10
    assert np.isinf(estimate.quadratic_form(jnp.exp, A, b, num_matvecs=1).standard_error)
    # Vectors of close eigenvalues turn into each other, across a jump with what is one and what is zero of f.
    for gap in 1e-12, 1e-9:
        values = np.r_[-gap, gap, np.linspace(-1, 1, 40)]
        step = estimate.quadratic_form(lambda t: jnp.where(t > 0, 1.0, 0.0), linops.Diagonal(values), np.arange(42.0))
        true = np.sum(np.arange(42.0)[values > 0] ** 2)
        assert abs(step.value - true) <= step.standard_error


@pytest.mark.usefixtures("x64")
def test_a_logarithm_of_eight_orders_covers_though_steps_are_few():
    """The rules of Gauss and Radau of 10 and of 20 steps are both off by more than they differ."""
    values = np.logspace(-8, 0, N)
    A, true = operator((Q * values) @ Q.conj().T), np.sum(np.log(values))
    for steps in 10, 20:
        found = determinants(A, 100, steps=steps, num_matvecs=3 * steps)
        inside = int(np.sum(np.abs(found.value - true) <= found.standard_error))
        assert binomtest(inside, 100, 0.6827, alternative="less").pvalue > 1e-3
    with pytest.raises(FloatingPointError, match="and so is not positive definite to the digits of"):
        estimate.logdet(operator((Q * (values > 1e-4)) @ Q.conj().T), KEY, steps=16, num_matvecs=32)


@pytest.mark.usefixtures("x64")
def test_what_is_claimed_falsely_is_no_number():
    """A matrix that is not Hermitian, all of it known or not, and bounds that a Ritz value disproves."""
    A, b = operator(MATRIX + 0.05 * np.triu(MATRIX)), VECTOR
    assert np.isnan(estimate.quadratic_form(jnp.log, A, b).value)
    for budget in {}, {"steps": 8, "num_matvecs": 24}:
        with pytest.raises(FloatingPointError, match=r"logdet of .* that is Hermitian, as linops.check"):
            estimate.logdet(A, KEY, **budget)
    for steps in 8, N:
        with pytest.raises(FloatingPointError, match=r"spectral_density of .* a Hermitian operator, as linops.check"):
            estimate.spectral_density(A, KEY, steps=steps, num_matvecs=2 * steps)
    for bounds in (VALUES[1], None), (None, VALUES[-2]):
        found = estimate.quadratic_form(jnp.log, operator(), b, bounds=bounds)
        assert np.isnan([found.standard_error, found.lower, found.upper]).all()
        with pytest.raises(FloatingPointError, match="with bounds, if any, that are true"):
            estimate.logdet(operator(), KEY, steps=20, num_matvecs=60, bounds=bounds)


def semicircle(n):
    W = np.random.default_rng(1).normal(size=(n, n)).astype(np.float32)
    return (W + W.T) / np.sqrt(8 * n)


@pytest.mark.parametrize("method", ["slq", "kpm"])
def test_densities(method):
    """Close to a known law, closer with more; of integral 1; zero eigenvalues by the thousand, and nothing else."""
    A = operator(semicircle(600))
    distances = []
    for steps, probes in (8, 2), (32, 16):
        found = estimate.spectral_density(A, KEY, method=method, steps=steps, num_matvecs=min(steps * probes, 599))
        law = 2 / np.pi * np.sqrt(np.maximum(1 - np.asarray(found.grid) ** 2, 0))
        distances.append(np.trapezoid(np.abs(found.density - law), found.grid))
        np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=0.01)
    assert distances[1] < min(0.08, distances[0] / 2)
    assert "spectral density at 512 points from -1." in repr(found)
    zeros = linops.Diagonal(jnp.where(jnp.arange(3000) < 5, jnp.arange(3000) - 2.0, 0.0))
    for A in zeros, linops.Diagonal(jnp.ones(3000)):
        found = estimate.spectral_density(A, KEY, method=method, num_matvecs=160, steps=16)
        peak = found.grid[jnp.argmax(found.density)]
        assert abs(float(peak) - (A is not zeros)) < 4 * float(found.width)
        np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=0.03)


@pytest.mark.usefixtures("x64")
def test_the_density_of_all_eigenvalues():
    """Without a band; on a grid and of a width that are given; the same within a jit."""
    grid = np.linspace(0, 110, 50)
    found = estimate.spectral_density(operator(), KEY, grid=grid, width=2.0)
    true = np.mean(np.exp(-(((grid[:, None] - VALUES) / 2) ** 2) / 2), axis=1) / (2 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(found.density, true, atol=1e-12)
    assert int(found.matvecs) == N
    assert not np.any(found.band)
    options = {"steps": 8, "num_matvecs": 40}
    eager = estimate.spectral_density(operator(), KEY, **options)
    within = jax.jit(lambda A: estimate.spectral_density(A, KEY, **options))(operator())
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(within), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_what_is_refused():
    A, general = linops.Diagonal(jnp.arange(1.0, 41.0)), linops.Matrix(np.ones((3, 3), np.float32))
    b = jnp.ones(40)
    nan = linops.Diagonal(jnp.full(40, jnp.nan))
    half, empty = linops.Diagonal(jnp.ones(40, jnp.bfloat16)), linops.Diagonal(jnp.ones(0))
    elementwise = "; expected a function of real numbers in JAX, elementwise on an array of any shape"
    for call, error, words in (
        (
            lambda: estimate.spectral_density(nan, KEY),
            FloatingPointError,
            "has NaN or Inf: expected finite prod",
        ),
        (lambda: estimate.quadratic_form(jnp.log, general, b), ValueError, "does not claim to be Hermitian"),
        (lambda: estimate.logdet(general, KEY), ValueError, "does not claim to be Hermitian"),
        (lambda: estimate.quadratic_form(jnp.log, A, jnp.ones(3)), ValueError, "expected one like"),
        (lambda: estimate.quadratic_form(jnp.log, half, b), TypeError, "quadratic_form got an operator in bfloat16"),
        (lambda: estimate.quadratic_form(jnp.log, empty, b[:0]), ValueError, "which is empty, expected an operator"),
        (lambda: estimate.spectral_density(half, KEY), TypeError, "spectral_density got an operator in bfloat16"),
        (lambda: estimate.spectral_density(empty, KEY), ValueError, "which is empty, expected an operator of at"),
        (lambda: estimate.logdet(half, KEY), TypeError, "logdet got an operator in bfloat16, .* which LAPACK has"),
        (
            lambda: estimate.quadratic_form(jax.scipy.linalg.expm, A, b),
            TypeError,
            "which raises ValueError: .*" + elementwise,
        ),
        (
            lambda: estimate.quadratic_form(lambda t: jnp.arange(3.0) * t, A, b),
            TypeError,
            r"makes .*\[3\]'\] of float32\[1\].*" + elementwise,
        ),
        (lambda: estimate.quadratic_form(jnp.sum, A, b), TypeError, r"makes .*'float32\[\]'.* of fl.*" + elementwise),
        (lambda: estimate.quadratic_form(np.exp, A, b), TypeError, "raises TracerArrayConversion.*" + elementwise),
        (
            lambda: estimate.quadratic_form(jnp.log, A, b, rtol=0),
            ValueError,
            "expected the share of the value that its br",
        ),
        (
            lambda: estimate.quadratic_form(jnp.log, A, b, bounds=(2, 1)),
            ValueError,
            "expected the lower one first, each",
        ),
        (lambda: estimate.logdet(A, KEY, steps=0), ValueError, "logdet got steps=0, expected a whole number"),
        (
            lambda: estimate.spectral_density(A, KEY, method="fft"),
            ValueError,
            "spectral_density got method='fft', expec",
        ),
        (
            lambda: estimate.spectral_density(A, KEY, method="kpm", width=1.0),
            ValueError,
            "whose width follows from steps=",
        ),
        (
            lambda: estimate.spectral_density(A, KEY, steps=16, num_matvecs=20),
            ValueError,
            "expected those of two probes at least",
        ),
    ):
        with pytest.raises(error, match=words):
            call()


def test_sharded_vectors_stay_where_they_are():
    """Eight devices: the programs gather no leaf, and the numbers are those of one device."""
    in_subprocess(
        "-c",
        """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import linops
from linops import estimate

def f(x):
    return jnp.sum(jnp.cos(x["a"]) * jnp.sin(x["b"])) + jnp.sum(x["a"] ** 4) / 12

x = {"a": jnp.linspace(0, 1, 4096), "b": jnp.linspace(1, 2, 4096)}
mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
there = jax.device_put(x, NamedSharding(mesh, P("i")))
key = jax.random.key(0)
for function, options in (
    (estimate.trace, {"method": "xtrace", "num_matvecs": 16}),
    (estimate.spectral_density, {"steps": 8, "num_matvecs": 32}),
):
    def run(x):
        return function(linops.Hessian(f, x), key, **options)
    compiled = jax.jit(run).lower(there).compile()
    gathered = [int(n) for n in re.findall(r"all-gather[^=]*= \\w+\\[[\\d,]*?(\\d+)\\]", compiled.as_text())]
    assert not [n for n in gathered if n >= 4096], (function, gathered)
    for one, other in zip(jax.tree.leaves(run(x)), jax.tree.leaves(compiled(there)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )


def test_a_density_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("linops.estimate.densities.probes_at_once", lambda *_: 4)
    A, key, path = linops.Diagonal(np.linspace(-1, 1, 500, dtype=np.float32)), jax.random.key(0), tmp_path / "run.npz"
    density = functools.partial(linops.estimate.spectral_density, steps=16, num_matvecs=240)
    whole, monitored, seen = density(A, key), linops.monitor(A, progress=False), []
    partial = density(A, key, callback=lambda progress: progress.probes >= 8, save=(path, 0))
    assert int(partial.matvecs) < int(whole.matvecs) == 240
    for again in (density(A, key, callback=seen.append, save=path), density(monitored, key)):
        np.testing.assert_array_equal(again.density, whole.density)
    assert seen[-1].text == "15 of 15 probes"
    assert seen[0].matvecs > partial.matvecs
    assert monitored.matvecs == 240
    monkeypatch.setattr("linops.estimate.densities.probes_at_once", lambda *_: 1)
    with pytest.raises(ValueError, match="spectral_density was stopped after 1 probes"):
        density(A, key, callback=lambda progress: True)
