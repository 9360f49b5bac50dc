"""`linops.spectrum`: its numbers against NumPy's, from all columns and from probes; what it says is not known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops
from linops import analysis
from linops.report import Report, SpectrumInterrupted

KEY = jax.random.key(0)
N = 700
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(N, N)))[0]
VALUES = np.sort(np.r_[RNG.normal(size=N // 2 - 3), np.zeros(N - N // 2), 9.0, 8.0, -7.0])


@pytest.fixture(scope="module")
def sampled():
    """The report of a matrix with outliers and many zeros, from probes, and the records that a callback saw."""
    M = (Q * VALUES) @ Q.T
    records = []
    A = linops.monitor(linops.Matrix(np.float32(M + M.T) / 2), progress=False)
    return linops.spectrum(A, 3, key=KEY, callback=records.append), records, A


def test_ends(sampled):
    report, _, A = sampled
    assert report.converged
    np.testing.assert_allclose(report.eigenvalues, np.r_[VALUES[:3], VALUES[-3:]], atol=1e-4)
    np.testing.assert_array_equal(report.largest, report.eigenvalues[::-1][:3])
    np.testing.assert_array_equal(report.smallest, report.eigenvalues[:3])
    for end in ("largest", "smallest"):
        V, values = np.asarray(getattr(report, f"{end}_vectors")), getattr(report, end)
        residuals = np.linalg.norm(V @ A.operator.array.T - values[:, None] * V, axis=1)
        np.testing.assert_allclose(getattr(report, f"{end}_residuals"), residuals, rtol=0.1, atol=1e-5)
        assert np.all(residuals <= 1.1e-4 * abs(values))


def test_estimates(sampled):
    """Within three standard errors, which are those of a matrix without the outliers."""
    report, _, _ = sampled
    bulk = VALUES[3:-3]
    ramp = VALUES / report.resolution
    for found, true in (
        (report.trace, np.sum(VALUES)),
        (report.frobenius_norm, np.linalg.norm(VALUES)),
        (report.negative, np.mean(np.clip(-ramp, 0, 1))),
        (report.zero, np.mean(np.clip(1 - abs(ramp), 0, 1))),
    ):
        assert 0 < abs(found.value - true) < 3 * found.standard_error
    assert report.trace.standard_error < 2 * np.sqrt(2 / report.probes) * np.linalg.norm(bulk)
    assert report.frobenius_norm.standard_error < 1
    assert report.negative.standard_error < 0.02


def test_density(sampled):
    """Of integral 1, at known eigenvalues exactly that of one, and in its band elsewhere."""
    measured = sampled[0].density
    assert abs(np.trapezoid(measured.density, measured.grid) - 1) < 1e-3
    bells = np.exp(-(((measured.grid[:, None] - VALUES) / measured.width) ** 2) / 2)
    true = np.mean(bells, axis=1) / (measured.width * np.sqrt(2 * np.pi))
    apart = abs(measured.density - true)
    assert np.mean(apart <= 2 * measured.band + 1e-6) > 0.85
    assert np.all(apart <= 5 * measured.band + 0.01 * np.max(true))
    at_outlier = np.argmin(abs(measured.grid - 9))
    np.testing.assert_allclose(measured.density[at_outlier], 1 / (N * measured.width * np.sqrt(2 * np.pi)), rtol=1e-3)
    assert measured.band[at_outlier] < 1e-9


def test_products_are_counted(sampled):
    """All of them, by the one who monitors the operator too; no number is changed by looking."""
    report, records, A = sampled
    assert report.matvecs == A.matvecs
    assert report.trace.matvecs == report.matvecs
    assert report.probes == 12
    assert [int(record.matvecs) for record in records][-1] == 12 * 32
    alone = linops.spectrum(A.operator, 3, key=KEY)
    np.testing.assert_array_equal(alone.eigenvalues, report.eigenvalues)
    np.testing.assert_array_equal(alone.density.density, report.density.density)


def test_text_and_json(sampled):
    report, _, _ = sampled
    text = str(report)
    assert text.startswith("Spectrum of <700x700 Monitored Matrix with dtype=float32>")
    for part in (
        f"{report.matvecs} products, of 12 random",
        f"{report.largest[0]:.6g}   ",
        "trace",
        "sign not told, ±0",
        " ± ",
    ):
        assert part in text
    found = json.loads(report.to_json())
    assert found["largest"][0] == {"eigenvalue": report.largest[0], "residual": report.largest_residuals[0]}
    assert found["trace"] == {"value": report.trace.value, "standard_error": report.trace.standard_error}
    assert found["density"]["grid"] == report.density.grid.tolist()
    assert found["matvecs"] == report.matvecs
    assert repr(report).startswith("<Report on <700x700 Monitored Matrix")


def test_signs_of_what_was_found_are_told():
    """However far the probes resolve: of 700 eigenvalues 40 are negative, 10 of them found."""
    values = np.r_[np.linspace(-0.02, -0.01, 40), np.zeros(600), np.linspace(1, 2, 60)]
    report = linops.spectrum(linops.Diagonal(jnp.float32(values)), 10, key=KEY)
    assert report.resolution > 0.05
    assert report.negative.value >= 10 / 700
    assert report.negative.value + report.zero.value < 640.1 / 700


LINE = linops.Diagonal(jnp.append(jnp.linspace(-1.0, 1.0, N - 2), jnp.float32([8, 9])))
FEW = {"maxiter": 1, "ncv": 20, "tol": 1e-6}  # by which the largest two converge


def test_what_did_not_converge(tmp_path):
    """It is marked, with its residual, and all the rest is known."""
    report = linops.spectrum(LINE, 2, **FEW)
    assert not report.converged
    np.testing.assert_allclose(report.largest, [9, 8], rtol=1e-6)
    assert np.all(np.isnan(report.smallest))
    assert np.all(report.smallest_residuals > 1e-3)
    assert report.largest_vectors.shape == (2, N)
    assert report.smallest_vectors.shape == (0, N)
    assert "2 of 4 eigenvalues are known: the limit of iterations was reached" in str(report)
    assert "not converged" in str(report)
    assert abs(report.trace.value - 17) < 3 * report.trace.standard_error
    found = json.loads(report.to_json(tmp_path / "report.json"))
    assert (tmp_path / "report.json").read_text() == report.to_json()
    assert found["smallest"][0]["eigenvalue"] is None


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_whole(dtype):
    """A small operator, on a tree: from its columns all is computed."""
    M = RNG.normal(size=(30, 30)) + (1j * RNG.normal(size=(30, 30)) if dtype == np.complex64 else 0)
    M = ((M + M.conj().T) / 2).astype(dtype)
    expected = np.linalg.eigvalsh(np.complex128(M))
    report = linops.spectrum(M, 4)
    assert report.matvecs == 38
    np.testing.assert_allclose(report.largest, expected[::-1][:4], rtol=1e-5)
    np.testing.assert_allclose(report.smallest, expected[:4], rtol=1e-5)
    assert np.all(report.residuals < 1e-4)
    V = np.asarray(report.largest_vectors)
    np.testing.assert_allclose(V @ M.T, report.largest[:, None] * V, atol=1e-4)
    known = {"trace": np.sum(expected), "frobenius_norm": np.linalg.norm(expected), "negative": np.mean(expected < 0)}
    for name, value in {**known, "zero": 0.0}.items():
        estimate = getattr(report, name)
        np.testing.assert_allclose(estimate.value, value, rtol=1e-5, atol=1e-12)
        assert estimate.standard_error == 0
    assert abs(np.trapezoid(report.density.density, report.density.grid) - 1) < 1e-3
    assert not np.any(report.density.band)


def test_each_of_few_is_at_one_end():
    H = linops.Hessian(lambda x: jnp.sum(x["a"] ** 4), {"a": np.float32([1, 2, 3])})
    report = linops.spectrum(H, 5)
    np.testing.assert_allclose(report.largest, [108, 48])
    np.testing.assert_allclose(report.smallest, [12])
    assert report.largest_vectors["a"].shape == (2, 3)
    assert "k = 5 at each end is more than there are: each of the 3 is shown once" in str(report)
    assert report.negative.value == 0


def interrupted(record):
    if is_of_probes(record):
        raise KeyboardInterrupt


def is_of_probes(record):
    return hasattr(record, "probes")


def compiling(*args, **kwargs):
    raise KeyboardInterrupt


def test_stopped_and_interrupted(monkeypatch):
    """Between chunks of steps; what is known is in the report."""
    report = linops.spectrum(LINE, 2, callback=lambda record: True, **FEW)
    assert isinstance(report, Report)
    assert (report.reason, report.trace, report.density) == ("it was stopped", None, None)
    assert "0 of 4 eigenvalues are known: it was stopped" in str(report)
    assert json.loads(report.to_json())["trace"] is None
    reason = "the limit of iterations was reached; then it was stopped"
    report = linops.spectrum(LINE, 2, callback=is_of_probes, **FEW)
    assert np.sum(report.is_found) == 2
    assert (report.reason, report.trace, report.density) == (reason, None, None)
    with pytest.raises(SpectrumInterrupted, match=r"what is known is in \.report") as caught:
        linops.spectrum(LINE, 2, callback=interrupted, **FEW)
    assert np.sum(caught.value.report.is_found) == 2
    assert linops.spectrum(linops.monitor(LINE, progress=False, max_matvecs=90), 2, **FEW).reason == reason
    monkeypatch.setattr(analysis, "watched", compiling)
    with pytest.raises(SpectrumInterrupted, match="4 of 4 eigenvalues are known: it was stopped"):
        linops.spectrum(linops.Diagonal(jnp.arange(N, dtype=np.float32)), 2, ncv=20, tol=0.1)
    monkeypatch.setattr(analysis, "eigsh", compiling)
    with pytest.raises(SpectrumInterrupted, match="0 of 4 eigenvalues are known"):
        linops.spectrum(LINE, 2, **FEW)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    """At the ends, and at the probes."""
    undisturbed, save = linops.spectrum(LINE, 2, **FEW), (tmp_path / "run.npz", 0)
    for stop in (lambda record: record.matvecs > 20, is_of_probes):
        report = linops.spectrum(LINE, 2, callback=stop, save=save, **FEW)
        assert not report.converged
    seen = []
    report = linops.spectrum(LINE, 2, callback=seen.append, save=save, **FEW)
    assert all(map(is_of_probes, seen[1:]))
    assert report.to_json() == undisturbed.to_json()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.npz", "run.probes.npz"]


class Unchecked(linops.Operator):
    domain = codomain = linops.Space.flat(5, np.float32)
    check_finite = False

    def _mv(self, v):
        return v * jnp.nan


@pytest.mark.parametrize(
    ("A", "options", "error", "message"),
    [
        (
            np.triu(np.ones((5, 5), np.float32)),
            {},
            ValueError,
            "got <5x5 Monitored Matrix .*is not Hermitian; expected a Hermitian",
        ),
        (Unchecked(), {}, FloatingPointError, "has NaN or infinite entries, expected finite"),
        (np.triu(np.full((5, 5), 1e-25, np.float32)), {}, ValueError, "whose matrix is not Hermitian"),
        (lambda v: v, {}, TypeError, "spectrum got <function .* expected a linops operator"),
        (np.ones((5, 4), np.float32), {}, ValueError, "expected a square operator"),
        (jnp.eye(5, dtype=jnp.bfloat16), {}, TypeError, "spectrum got an operator in bfloat16, .* which LAPACK has"),
        (np.zeros((0, 0), np.float32), {}, ValueError, "which is empty, expected an operator of at least one row"),
        (np.eye(5, dtype=np.float32), {"probes": 1}, ValueError, "expected at least 2, of which a standard error"),
        (np.eye(5, dtype=np.float32), {"width": -1}, ValueError, "expected a standard deviation above 0"),
        (np.eye(5, dtype=np.float32), {"k": 0}, ValueError, "spectrum got k=0, expected a whole number, at least 1"),
    ],
)
def test_errors(A, options, error, message):
    with pytest.raises(error, match=message):
        linops.spectrum(A, **options)


def test_not_finite_beside_the_ends(monkeypatch):
    """NaN that only probes meet."""

    def eigsh(A, k, **options):
        return linops.linalg.eigsh(LINE, k, **{**options, "which": "LA", "tol": 0.5})

    monkeypatch.setattr(analysis, "eigsh", eigsh)
    A = linops.Diagonal(LINE.entries.at[5].set(jnp.nan))
    with pytest.raises(FloatingPointError, match="was NaN or infinite in spectrum, expected finite numbers"):
        linops.spectrum(A, 1, maxiter=1, ncv=20)


def test_within_jit():
    with pytest.raises(TypeError, match="which belongs to a jit, vmap or grad in progress; expected arrays, since a"):
        jax.jit(linops.spectrum)(linops.Diagonal(jnp.ones(5)))
