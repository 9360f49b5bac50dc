"""`linalg.eigsh` beside dense eigenvalues: on what restarted Lanczos codes fail on, and what else it says."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from processes import started

import linops
from linops import saving
from linops.linalg import NoConvergence, eigsh
from linops.saving import SavedRun

N = 200


def laplacian(n):
    return 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


def with_eigenvalues(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))[0]
    return (Q * values) @ Q.T


def with_first(*values):
    return with_eigenvalues(np.r_[np.random.default_rng(1).uniform(0, 1, N - len(values)), values])


MATRICES = {
    "two values": with_eigenvalues(np.repeat([1.0, 50.0], N // 2)),
    "zero": np.zeros((N, N)),
    "identity": np.eye(N),
    "rank below k": with_eigenvalues(np.r_[np.zeros(N - 3), -1, 2, 3]),
    "gaps of 1e-3": with_first(*(2 - 1e-3 * np.arange(8))),
    "gaps of 1e-5": with_first(*(2 - 1e-5 * np.arange(8))),
    "gaps of 1e-7": with_first(*(2 - 1e-7 * np.arange(8))),
    "copies": with_first(3, 2, 2, 2, 1.5, 1.5, -1, -2, -2, -2),
    "geometric": with_eigenvalues(0.99 ** np.arange(N)),
    "random": with_eigenvalues(np.random.default_rng(2).normal(size=N)),
    "Laplacian": laplacian(N),
    "Laplacian in 2-D": np.kron(laplacian(10), np.eye(20)) + np.kron(np.eye(10), laplacian(20)),
    "Wilkinson": np.diag(np.abs(np.arange(N) - 100.0)) + np.eye(N, k=1) + np.eye(N, k=-1),
    "large": 1e12 * laplacian(N),
    "small": 1e-30 * laplacian(N),
}


def chosen(values, k, which):
    """The eigenvalues that are asked for, of all, which ascend."""
    if which == "LM":
        return np.sort(values[np.argsort(-np.abs(values), kind="stable")[:k]])
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return np.r_[values[:low], values[len(values) - (k - low) :]]


@pytest.fixture(
    scope="module", params=["float32 11 BE", "float32 50 LM", "float32 1 SA", "float64 10 LA", "float64 100 SA"]
)
def sought(request):
    dtype, k, which = request.param.split()
    with jax.enable_x64(dtype == "float64"):
        yield np.dtype(dtype), int(k), which


@pytest.mark.parametrize("name", MATRICES)
def test_the_pairs_are_right(name, sought):
    dtype, k, which = sought
    A = MATRICES[name].astype(dtype)
    expected, eps = np.linalg.eigvalsh(A.astype(np.float64)), np.finfo(dtype).eps
    norm = np.abs(expected).max()
    w, v, record = eigsh(A, k=k, which=which, full_output=True)
    w, v = np.asarray(w, np.float64), np.asarray(v, np.float64)
    residuals = np.linalg.norm(A.astype(np.float64) @ v - w * v, axis=0)
    if which != "LM":  # of which a pair of opposite signs may be cut in two
        np.testing.assert_allclose(w, chosen(expected, k, which), rtol=0, atol=100 * eps * norm)
    assert np.all(np.min(np.abs(w[:, None] - expected), axis=1) <= residuals + 100 * eps * norm)
    assert np.all(np.diff(w) >= 0)
    assert np.abs(v.T @ v - np.eye(k)).max() < 100 * eps
    np.testing.assert_allclose(record.residual_norms, residuals, rtol=0.1, atol=20 * eps * norm)
    assert record.converged.all()
    assert record.reason == "converged"
    assert np.all(record.residual_norms <= record.tolerance)
    assert np.all(np.asarray(record.tolerance) <= 100 * eps * norm)


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_no_copy_is_missed_with_a_loose_tolerance(tol):
    with jax.enable_x64(True):
        for name in ("copies", "Laplacian in 2-D"):
            w, record = eigsh(MATRICES[name], k=10, which="LA", tol=tol, return_eigenvectors=False, full_output=True)
            expected = chosen(np.linalg.eigvalsh(MATRICES[name]), 10, "LA")
            assert np.all(np.abs(w - expected) <= tol * np.abs(expected))
            assert record.matvecs < N


def test_a_small_basis_is_enough():
    A = np.diag(np.arange(N, dtype=np.float32))
    w, record = eigsh(A, k=10, which="LA", ncv=13, tol=1e-5, return_eigenvectors=False, full_output=True)
    np.testing.assert_allclose(w, np.arange(190, 200), rtol=1e-5)
    assert record.iterations > 0


def test_a_larger_problem_in_single_precision():
    values = np.random.default_rng(0).normal(size=2000)
    w = eigsh(linops.Diagonal(values.astype(np.float32)), k=200, which="SA", return_eigenvectors=False)
    np.testing.assert_allclose(w, np.sort(values)[:200], rtol=0, atol=1e-5)


# Trees, complex numbers, blocks, what is known, other problems.


def energy(x):
    return jnp.sum(jnp.cos(x["a"]) * jnp.arange(1.0, 7.0)) + jnp.sum(x["b"] ** 4) + jnp.sum(x["a"][:4] * x["b"].ravel())


POINT = {"a": np.linspace(0, 1, 6, dtype=np.float32), "b": np.linspace(1, 2, 4, dtype=np.float32).reshape(2, 2)}


def test_vectors_are_trees():
    H = linops.Hessian(energy, POINT)
    values, vectors = np.linalg.eigh(H.toarray())
    w, v = eigsh(H, k=3, which="LA", v0=POINT, trees=True)
    flat = np.stack([H.domain.ravel(jax.tree.map(lambda leaf, i=i: leaf[i], v)) for i in range(3)])
    np.testing.assert_allclose(w, values[-3:], rtol=1e-5)
    np.testing.assert_allclose(np.abs(flat @ vectors[:, -3:]), np.eye(3), atol=1e-4)


def test_hermitian_matrices():
    rng = np.random.default_rng(0)
    B = rng.normal(size=(50, 50)) + 1j * rng.normal(size=(50, 50))
    A = (B + B.conj().T).astype(np.complex64)
    w, v = eigsh(A, k=6, which="BE")
    np.testing.assert_allclose(w, chosen(np.linalg.eigvalsh(A), 6, "BE"), rtol=1e-4)
    np.testing.assert_allclose(A @ v, w * v, atol=1e-3)


def test_a_block_of_known_vectors_takes_few_products():
    A = MATRICES["Laplacian in 2-D"].astype(np.float32)
    _, v, cold = eigsh(A, k=4, which="SA", full_output=True)
    moved = A + 1e-4 * np.diag(np.random.default_rng(0).normal(size=N)).astype(np.float32)
    again, _, warm = eigsh(moved, k=4, which="SA", v0=v, tol=1e-2, full_output=True)
    np.testing.assert_allclose(again, np.linalg.eigvalsh(moved)[:4], rtol=1e-3)
    assert warm.matvecs < cold.matvecs / 2
    start = v[:, 0].tolist()  # a list of numbers is a vector, as in SciPy
    _, _, one = eigsh(moved, k=1, which="SA", v0=start, tol=1e-2, full_output=True)
    assert one.matvecs <= 13  # ten of which look for what was missed


def test_what_is_locked_is_not_found_again():
    A = MATRICES["copies"].astype(np.float32)
    values, vectors = np.linalg.eigh(A)
    w, v = eigsh(A, k=3, which="LA", lock=vectors[:, -2:])
    np.testing.assert_allclose(w, values[-5:-2], rtol=1e-4)
    assert np.abs(v.T @ vectors[:, -2:]).max() < 1e-4


def test_generalized_and_shifted_problems():
    A, d = MATRICES["random"].astype(np.float32), np.linspace(1, 2, N, dtype=np.float32)
    expected = scipy.linalg.eigh(A.astype(np.float64), np.diag(d).astype(np.float64), eigvals_only=True)
    w, v = eigsh(A, k=4, M=linops.Diagonal(d), which="LA")
    np.testing.assert_allclose(w, expected[-4:], rtol=1e-4)
    np.testing.assert_allclose(v.T @ (d[:, None] * v), np.eye(4), atol=1e-4)
    below, record = eigsh(
        A, k=2, M=linops.Diagonal(d), which="LA", lock=v[:, 2:], return_eigenvectors=False, full_output=True
    )
    np.testing.assert_allclose(below, expected[-4:-2], rtol=1e-4)
    _, again = eigsh(
        A, k=1, M=linops.Diagonal(d), which="LA", v0=v[:, 3], tol=1e-2, return_eigenvectors=False, full_output=True
    )
    assert again.matvecs < record.matvecs / 2
    inverse = linops.Matrix(np.linalg.inv(A.astype(np.float64) - 0.3 * np.diag(d)).astype(np.float32))
    near = eigsh(A, k=4, M=linops.Diagonal(d), sigma=0.3, OPinv=inverse, return_eigenvectors=False)
    np.testing.assert_allclose(near, np.sort(expected[np.argsort(np.abs(expected - 0.3))[:4]]), atol=1e-3)
    with pytest.raises(ValueError, match="OPinv that is not the inverse"):
        eigsh(A, k=4, sigma=0.5, OPinv=inverse)


def test_solves_to_fewer_digits_than_the_dtype_has_are_enough_next_to_a_shift():
    """Of eigenvalues that the digits of the solves cannot tell apart one run finds some, and ends."""
    cluster = 1e-3 * (1 + 1e-7 * np.random.default_rng(3).normal(size=N // 2))
    with jax.enable_x64(True):
        A = linops.Matrix(with_eigenvalues(np.r_[cluster, np.linspace(0.5, 2, N // 2)]))
        w, record = eigsh(
            A, k=3, sigma=0, OPinv=linops.inverse(A, "minres"), return_eigenvectors=False, full_output=True
        )
    np.testing.assert_allclose(w, 1e-3, rtol=1e-6)
    assert record.matvecs < N
    single = linops.Matrix(A.toarray().astype(np.float32))
    with pytest.raises(FloatingPointError, match=r"a product with OPinv, .*solve did not converge.*float64"):
        eigsh(single, k=3, sigma=0, OPinv=linops.inverse(single, "minres", rtol=1e-7))


class Noisy(linops.Operator):
    """An operator whose products are known to fewer digits than it says."""

    matrix: jax.Array
    noise: jax.Array

    symmetric = True
    domain = codomain = property(lambda self: linops.Space.of(self.matrix[0]))

    def _mv(self, v):
        seed = jax.lax.bitcast_convert_type(jnp.sum(v), jnp.uint32)[0]
        noise = jax.random.normal(jax.random.key(seed), v.shape, v.dtype)
        product = self.matrix @ v
        return product + self.noise * jnp.linalg.norm(product) * noise


def test_noise_that_hides_what_is_left_ends_a_run():
    values = np.r_[1e-3 * (1 + 1e-7 * np.random.default_rng(3).normal(size=N // 2)), np.linspace(0.5, 2, N // 2)]
    words = r"as small as rounding lets them be, and above .* OPinv, are not known to more"
    with jax.enable_x64(True):
        A = with_eigenvalues(values)
        noisy = [Noisy(jnp.asarray(with_eigenvalues(1 / values)), jnp.asarray(noise)) for noise in (1e-9, 1e-4)]
        with pytest.raises(NoConvergence, match=words) as error:
            eigsh(A, k=3, sigma=0, OPinv=noisy[0])
        assert error.value.record.matvecs < 50 * N
        with pytest.raises(ValueError, match=r"eigsh got OPinv=.*, whose matrix is not Hermitian"):
            eigsh(A, k=3, sigma=0, OPinv=noisy[1])


def test_functions_and_eigenvalues_under_jit():
    space = linops.Space.flat(N, np.float32)
    A = jnp.asarray(MATRICES["copies"], jnp.float32)
    expected = np.linalg.eigvalsh(A)[-3:]
    w = eigsh(lambda v: A @ v, k=3, which="LA", space=space, return_eigenvectors=False)
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    w, _, record = jax.jit(lambda A: eigsh(A, k=3, which="LA", full_output=True))(linops.Matrix(A))
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    assert record.reason == "converged"
    w, _, record = jax.jit(lambda A: eigsh(A, k=3, ncv=4, maxiter=1, full_output=True))(linops.Matrix(A))
    assert np.isnan(w).any()
    assert "limit of iterations" in record.reason


def test_eigenvalues_have_derivatives():
    def f(x):
        return jnp.sum(jnp.sin(x) * jnp.arange(1.0, 21.0)) + jnp.prod(x[:3]) + jnp.sum(x[1:] ** 2 * x[:-1])

    def largest(x):
        return eigsh(linops.Hessian(f, x), k=2, which="LA", return_eigenvectors=False).sum()

    x = jnp.linspace(0.1, 1, 20)
    expected = jax.jit(jax.grad(lambda x: jnp.linalg.eigvalsh(jax.hessian(f)(x))[-2:].sum()))(x)
    np.testing.assert_allclose(jax.jit(jax.grad(largest))(x), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(TypeError, match="eigsh was differentiated with vectors"):
        jax.grad(lambda x: eigsh(linops.Hessian(f, x), k=2)[0].sum())(x)


# What stops a run, and what is known then.


SLOW = functools.partial(eigsh, np.diag(np.arange(N, dtype=np.float32) ** 1.5), k=4, which="SA", ncv=12)


def test_no_convergence_has_what_was_found():
    words = "(?s)eigenvalues of .* converged: the limit of iterations was reached; they are in .eigenvalues"
    with pytest.raises(NoConvergence, match=words) as error:
        SLOW(maxiter=60)
    found = error.value
    assert isinstance(found, scipy.sparse.linalg.ArpackNoConvergence)
    assert found.eigenvectors.shape == (N, len(found.eigenvalues))
    assert 0 < len(found.eigenvalues) == found.record.converged.sum() < 4


def test_looking_on_changes_no_number(tmp_path):
    alone, seen = SLOW(), []
    for watched in ({"callback": seen.append}, {"save": tmp_path / "run.npz"}, {"save": (tmp_path / "run.npz", 0)}):
        for ours, theirs in zip(alone, SLOW(**watched), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with jax.enable_x64(True):
        wide = linops.Diagonal(np.linspace(0, 1, N) ** 3)
    of_double = [eigsh(wide, k=3, return_eigenvectors=False, save=tmp_path / "wide.npz") for _ in range(3)]
    np.testing.assert_array_equal(of_double[0], of_double[2])
    assert len(seen) > 3
    assert all(np.diff([record.matvecs for record in seen]) > 0)


def test_a_run_that_reached_its_limit_goes_on_with_a_larger_one(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(NoConvergence, match="the limit of iterations was reached"):
        SLOW(maxiter=7, save=path)
    for ours, theirs in zip(SLOW(), SLOW(save=path), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_that_was_stopped_goes_on(tmp_path, caplog):
    path = tmp_path / "run.npz"
    with pytest.raises(NoConvergence, match="it was stopped"):
        SLOW(callback=lambda record: record.matvecs > 60, save=(path, 0))
    seen = []
    with caplog.at_level("INFO", "linops"):
        pairs = zip(SLOW(), SLOW(save=path, callback=seen.append), strict=True)
    assert "goes on from" in caplog.text
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)
    assert seen[0].matvecs > 60
    with pytest.raises(ValueError, match="is of another run: products with the operator"):
        eigsh(np.diag(np.arange(N, dtype=np.float32) ** 1.5 + 1), k=4, which="SA", ncv=12, save=path)
    with pytest.raises(ValueError, match="another run: products with the operator"):  # as after a step of training
        eigsh(np.diag(1.0001 * np.arange(N, dtype=np.float32) ** 1.5), k=4, which="SA", ncv=12, save=path)
    for changed, words in (
        ({"k": 3}, "its k is 4, expected 3; give another file"),
        ({"which": "LA"}, "its which is 'SA', expected 'LA'"),
        ({"tol": 0.5}, "its tol is 0, expected 0.5;"),
        ({"key": jax.random.key(1)}, "it began with another key"),
        ({"v0": np.ones(N, np.float32)}, "it began with another v0"),
    ):
        with pytest.raises(ValueError, match=f"is of another run: {words}"):
            SLOW(save=path, **changed)
    with jax.enable_x64(True), pytest.raises(ValueError, match="its dtype is 'float32', expected 'float64'"):
        eigsh(np.diag(np.arange(N) ** 1.5), k=4, which="SA", ncv=12, save=path)
    with pytest.raises(TypeError, match="eigsh got save= within jit, vmap or grad, expected none there"):
        jax.jit(lambda A: eigsh(A, k=2, save=path))(linops.Diagonal(np.ones(5, np.float32)))
    whole = path.read_bytes()
    for content in whole[:-100], b"junk" * 50:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no saved run, or is cut off; expected a file"):
            SLOW(save=path)


KILLED = """
import sys, time
import numpy as np
from linops.linalg import eigsh
A = np.diag(np.arange(200, dtype=np.float32) ** 1.5)
def look(record):
    print(record.matvecs, flush=True)
    time.sleep(0.02)
eigsh(A, k=4, which="SA", ncv=12, save=(sys.argv[1], 0), callback=look)
"""


def test_a_run_that_was_killed_goes_on(tmp_path):
    """In a process of its own, which is not asked to end."""
    path, seen = tmp_path / "run.npz", []
    with started("-c", KILLED, str(path)) as process:
        made = [int(process.stdout.readline()) for _ in range(6)]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    for ours, theirs in zip(SLOW(), SLOW(save=path, callback=seen.append), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert made[-2] < seen[0].matvecs < seen[-1].matvecs


def test_ctrl_c_hands_back_what_is_known():
    def interrupt(record):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as error:
        SLOW(callback=interrupt)
    assert isinstance(error.value, NoConvergence)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    try:
        ignored, _ = SLOW(callback=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_array_equal(ignored, SLOW()[0])


def test_monitors_see_the_products():
    M = linops.monitor(linops.Matrix(MATRICES["copies"].astype(np.float32)), progress=False)
    _, _, record = eigsh(M, k=3, full_output=True)
    assert M.matvecs == record.matvecs
    limited = linops.monitor(
        linops.Matrix(np.diag(np.arange(N, dtype=np.float32) ** 1.5)), progress=False, max_matvecs=50
    )
    with pytest.raises(NoConvergence, match="it was stopped"):
        eigsh(limited, k=4, which="SA", ncv=12)


def test_files_that_are_not_read(tmp_path, monkeypatch):
    state = {"basis": jnp.arange(3.0), "key": jax.random.key(1)}
    run = SavedRun(tmp_path / "run.npz", {"of": "a test"}, state)
    assert run.read(state) is None
    run.write(state)
    found = run.read(state)
    np.testing.assert_array_equal(found["basis"], state["basis"])
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(state["key"]))
    with pytest.raises(ValueError, match="its numbers are not those that were written"):
        run.read({"basis": jnp.arange(4.0), "key": jax.random.key(1)})
    now = saving.VERSION
    monkeypatch.setattr(saving, "VERSION", now + 1)
    with pytest.raises(ValueError, match=f"is of version {now} of saved runs, expected {now + 1}"):
        run.read(state)
    with pytest.raises(OSError, match=r"which cannot be written .No such file .*; expected a file in a folder that is"):
        SLOW(save=tmp_path / "nowhere" / "run.npz")
    with pytest.raises(TypeError, match="expected a path, or a pair of one and the seconds between two files"):
        SLOW(save=5)
    for seconds in -1, np.nan, np.inf:
        with pytest.raises(ValueError, match="expected seconds between two files that are finite and not negative"):
            SLOW(save=(tmp_path / "run.npz", seconds))


def test_numbers_that_differ_are_told_in_few_digits():
    few, more = (saving._difference("tol", np.float32(1e-3).item(), tol) for tol in (np.float32(1e-5).item(), 1e-3))
    assert few == "its tol is 0.001, expected 1e-05"
    assert more == "its tol is 0.00100000005, expected 0.001"


REFUSED = {
    "which='SM'": ({"which": "SM"}, "Lanczos finds the ends of a spectrum"),
    "which": ({"which": "XX"}, "eigsh got which='XX', expected 'LM', 'LA', 'SA' or 'BE'"),
    "k": ({"k": 201}, "expected 1 <= k <= min.* = 200"),
    "not an integer": ({"k": 2.5}, "expected integers, static in jit"),
    "ncv": ({"ncv": 3}, "eigsh got ncv=3 with k=6"),
    "maxiter": ({"maxiter": 0}, "eigsh got maxiter=0, expected at least 1"),
    "tol of NumPy": ({"tol": np.float32(2)}, "eigsh got tol=2.0, expected 0 <= tol < 1"),
    "key": ({"key": 0}, "eigsh got the key 0, expected one of JAX"),
    "tol": ({"tol": -1.0}, "expected 0 <= tol < 1, relative to each eigenvalue"),
    "mode": ({"mode": "buckling"}, "expected the mode 'normal' without Minv"),
    "sigma": ({"sigma": 0.0}, "expected both or none of them: OPinv is"),
    "M": ({"M": linops.Matrix(np.eye(N, dtype=np.float32))}, "expected a linops.Diagonal of its size"),
    "M not positive": ({"M": linops.Diagonal(np.zeros(N, np.float32))}, "got an M with entries that are not positive"),
    "v0": ({"v0": np.zeros((3, 2))}, "or with one more leading axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    options, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words):
        eigsh(np.eye(N, dtype=np.float32), **options)


def test_operators_that_are_refused():
    with pytest.raises(ValueError, match="whose matrix is not Hermitian"):
        eigsh(np.triu(np.ones((N, N), np.float32)))
    nearly = np.float32(MATRICES["random"])
    nearly[0, 1] += 0.3
    with pytest.raises(ValueError, match="whose matrix is not Hermitian"):
        eigsh(nearly)
    with pytest.raises(TypeError, match="which LAPACK has: convert its point"):
        eigsh(linops.Diagonal(jnp.ones(N, jnp.bfloat16)))
    with pytest.raises(ValueError, match="vectors to lock for"):
        eigsh(np.eye(N, dtype=np.float32), k=3, lock=np.eye(N, dtype=np.float32)[:, 2:])
    with pytest.raises(ValueError, match="expected a square one"):
        eigsh(np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match="expected an operator of linops, an array of shape"):
        eigsh(scipy.sparse.linalg.aslinearoperator(np.eye(3)))
    with pytest.raises(FloatingPointError, match="was NaN or infinite in eigsh"):
        eigsh(np.full((N, N), np.nan, np.float32))
