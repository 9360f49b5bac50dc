"""Singular values and vectors against dense NumPy: tables over matrices on which restarted codes fail."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import POINT, jacobian, values

import linops
from linops import krylov
from linops.linalg import NoConvergence, svds

RNG = np.random.default_rng(0)


def with_values(s, m=60, n=50):
    """A matrix of given singular values."""
    U, V = (np.linalg.qr(RNG.normal(size=(size, len(s))))[0] for size in (m, n))
    return U * s @ V.T


MATRICES = {
    "random": RNG.normal(size=(60, 50)),
    "decay": with_values(0.9 ** np.arange(50)),
    "two values": with_values(np.repeat([1.0, 50.0], [40, 10])),
    "doubles": with_values(np.repeat(0.8 ** np.arange(25), 2)),
    "triples": with_values(np.repeat(0.7 ** np.arange(16), 3)),
    "cluster": with_values(1 + 1e-5 * np.arange(50)),
    "identity": np.eye(60, 50),
    "rank 2": with_values(np.array([3.0, 2.0])),
    "zero": np.zeros((60, 50)),
}


def agrees(A, dense, k, u, s, vh, record, atol=0.0):
    """Whether triplets are those of a matrix: values, residuals as reported, orthonormal vectors."""
    u, s, vh = (np.asarray(a) for a in (u, s, vh))
    wide = dense.astype(np.result_type(dense, np.float64))
    exact = np.linalg.svd(wide, compute_uv=False)[:k][::-1]
    eps, norm = np.finfo(s.dtype).eps, exact[-1]
    assert (u.shape, s.shape, vh.shape) == ((A.shape[0], k), (k,), (k, A.shape[1]))
    assert u.dtype == vh.dtype == A.dtype
    np.testing.assert_allclose(s, exact, rtol=0, atol=12 * eps * norm + atol)
    forward = np.linalg.norm(wide @ vh.conj().T - u * s, axis=0)
    backward = np.linalg.norm(wide.conj().T @ u - vh.conj().T * s, axis=0)
    assert np.all(np.maximum(forward, backward) <= record.residual_norms + 12 * eps * norm)
    assert np.all(np.asarray(record.residual_norms) <= record.tolerance)
    np.testing.assert_allclose(u.conj().T @ u, np.eye(k), atol=20 * eps)
    np.testing.assert_allclose(vh @ vh.conj().T, np.eye(k), atol=20 * eps)


@pytest.mark.covering("dtype")
@pytest.mark.filterwarnings("ignore:.*are so small that rounding")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", MATRICES)
def test_values_and_vectors(name, dtype, x64):
    dense = MATRICES[name].astype(dtype)
    A = linops.Matrix(dense)
    *triplets, record = svds(A, k=6, ncv=20, full_output=True)
    agrees(A, dense, 6, *triplets, record)


@pytest.mark.parametrize("kind", ["tall", "wide", "all", "restarts", "real tolerance"])
def test_complex_and_other_shapes(kind):
    z = (RNG.normal(size=(60, 40)) + 1j * RNG.normal(size=(60, 40))).astype(np.complex64)
    dense, k, options = {
        "tall": (z, 4, {}),
        "wide": (z.T.copy(), 4, {}),
        "all": (z[:12, :9], 9, {}),
        "restarts": (z, 4, {"ncv": 8}),
        "real tolerance": (z.real.copy(), 4, {"tol": 1e-3, "v0": np.ones(40, np.float32), "ncv": 12}),
    }[kind]
    A = linops.Matrix(dense)
    *triplets, record = svds(A, k=k, full_output=True, **options)
    agrees(A, dense, k, *triplets, record, atol=options.get("tol", 0) * 20)
    assert int(record.matvecs) >= 4 * k


def test_trees_of_a_jacobian():
    J = linops.Jacobian(values, POINT)
    dense = jacobian(values, POINT).astype(np.float32)
    assert J.shape[0] < J.shape[1]
    u, s, v, record = svds(J, k=3, trees=True, full_output=True, v0=J.codomain.unravel(np.ones(7, np.float32)))
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    agrees(J, dense, 3, flat(u).T, s, flat(v), record)
    assert v["w"].shape == (3, 3, 3)


def test_which_vectors_as_scipy_has_it():
    wide = linops.Matrix(MATRICES["random"].T[:9].astype(np.float32))
    for A, which, missing in [(wide, "u", 2), (wide, "vh", None), (wide.T, "vh", 0), (wide.T, "u", None)]:
        assert [a is None for a in svds(A, 2, return_singular_vectors=which)] == [i == missing for i in range(3)]


def test_the_smallest():
    dense = MATRICES["random"].astype(np.float32)
    s = svds(linops.Matrix(dense), k=3, which="SM", return_singular_vectors=False)
    np.testing.assert_allclose(s, np.linalg.svd(dense, compute_uv=False)[:-4:-1], rtol=1e-5)


def test_values_that_rounding_made_are_said():
    A = linops.Matrix(with_values(np.array([3.0, 2.0])).astype(np.float32))
    with pytest.warns(linops.PrecisionWarning, match="so small that rounding in float32"):
        s = svds(A, k=3, return_singular_vectors=False)
    assert s[0] < 1e-5
    for scale in (1e30, 1e-30):  # whose squares float32 does not hold
        dense = np.float32(scale) * A.toarray()
        s = svds(dense, k=2, return_singular_vectors=False)
        np.testing.assert_allclose(s, [scale * 2, scale * 3], rtol=1e-5)


def test_what_did_not_converge():
    dense = MATRICES["decay"].astype(np.float32)
    A = linops.Matrix(dense)
    with pytest.raises(NoConvergence, match=r"singular values of <60x50 Matrix.*the limit of iterations") as caught:
        svds(A, k=8, ncv=12, maxiter=1)
    error = caught.value
    u, vh = error.eigenvectors
    known = np.asarray(error.record.converged)
    assert u.shape[1] == vh.shape[0] == len(error.eigenvalues) == known.sum() < 8

    s, record = jax.jit(lambda A: svds(A, k=8, ncv=12, maxiter=1, return_singular_vectors=False, full_output=True))(A)
    np.testing.assert_array_equal(np.isnan(s), ~np.asarray(record.converged))
    assert int(record.code) == int(error.record.code)


def test_who_looks_on_changes_no_number(tmp_path):
    A, path, seen = linops.Matrix(MATRICES["decay"].astype(np.float32)), tmp_path / "run.npz", []
    monitored = linops.monitor(A, progress=False)
    run = functools.partial(svds, k=4, ncv=12)
    with pytest.raises(NoConvergence, match="it was stopped"):
        run(A, callback=lambda record: True, save=path)
    alone, again, watched = run(A), run(A, save=path), run(monitored, callback=seen.append, full_output=True)
    for ours, *others in zip(alone, again, watched, strict=False):
        for theirs in others:
            np.testing.assert_array_equal(ours, theirs)
    assert [int(r.matvecs) for r in seen] == sorted({int(r.matvecs) for r in seen})
    assert 2 * monitored.matvecs == 2 * monitored.rmatvecs == watched[-1].matvecs

    def interrupt(record):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="it was stopped"):
        run(A, callback=interrupt)


def test_arrays_and_functions():
    M = MATRICES["decay"].astype(np.float32)
    of_array = svds(M, k=4, ncv=12, return_singular_vectors=False)
    of_function = svds(
        lambda v: M @ v, k=4, ncv=12, return_singular_vectors=False, space=linops.Space.flat(50, np.float32)
    )
    np.testing.assert_allclose(of_function, of_array, rtol=1e-5)


@pytest.mark.parametrize("wide", [False, True])
def test_values_are_differentiable_and_vectors_are_not(wide):
    dense = MATRICES["random"][:12, :9].astype(np.float32)
    dense = dense.T.copy() if wide else dense

    def total(M, **options):
        return jnp.sum(jnp.sin(svds(linops.Matrix(M), k=3, **options)))

    def expected(M):
        return jnp.sum(jnp.sin(jnp.linalg.svd(M, compute_uv=False)[:3]))

    gradient = jax.jit(jax.grad(functools.partial(total, return_singular_vectors=False)))(dense)
    np.testing.assert_allclose(gradient, jax.grad(expected)(dense), atol=1e-5)
    with pytest.raises(TypeError, match="expected return_singular_vectors=False"):
        jax.grad(lambda M: svds(linops.Matrix(M), k=3)[1].sum())(dense)


def test_the_derivative_goes_through_the_point_of_a_jacobian():
    def largest(x):
        return svds(linops.Jacobian(values, x), k=1, return_singular_vectors=False)[0]

    x = jax.tree.map(jnp.asarray, POINT)
    change = jax.jvp(largest, (x,), (x,))[1]
    h = 1e-2
    scaled = (jax.tree.map(functools.partial(jnp.multiply, c), x) for c in (1 - h, 1 + h))
    low, high = (np.linalg.norm(jacobian(values, point), 2) for point in scaled)
    np.testing.assert_allclose(change, (high - low) / (2 * h), rtol=1e-2)


def refused():
    A = linops.Matrix(np.eye(6, 5, dtype=np.float32))
    half = linops.Matrix(np.eye(3, dtype=np.float16))
    yield TypeError, "expected an operator of linops", lambda: svds("A")
    yield TypeError, "svds got an operator in float16", lambda: svds(half, 1)
    yield ValueError, "'LM', the largest singular values", lambda: svds(A, 1, which="LA")
    yield ValueError, "expected True, False, 'u' or 'vh'", lambda: svds(A, 1, return_singular_vectors="v")
    yield TypeError, "expected integers, static in jit", lambda: svds(A, 1.5)
    yield ValueError, "expected 1 <= k <= min", lambda: svds(A, 6)
    yield ValueError, "svds got ncv=2 with k=2", lambda: svds(A, 2, ncv=2)
    yield ValueError, "relative to each singular value", lambda: svds(A, 2, tol=-1)
    yield ValueError, "how often the basis is filled", lambda: svds(A, 2, maxiter=0)
    nan = linops.Matrix(np.full((6, 5), np.nan, np.float32))
    yield FloatingPointError, "was NaN or infinite in svds", lambda: svds(nan, 2)


@pytest.mark.parametrize(("error", "match", "call"), list(refused()))
def test_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_smallest_values_that_memory_does_not_hold(monkeypatch):
    monkeypatch.setattr("linops.linalg.operands.memory_budget", lambda share: 200)
    A = linops.Matrix(np.eye(6, 5, dtype=np.float32))
    with pytest.raises(ValueError, match="whose smallest singular values take all 5 steps"):
        svds(A, 2, which="SM")


def test_golub_kahan_spaces_are_what_they_say_after_restarts():
    M = (RNG.normal(size=(30, 20)) + 1j * RNG.normal(size=(30, 20))).astype(np.complex64)
    A = linops.Matrix(M)
    expand = jax.jit(functools.partial(krylov.expand_golub_kahan, A._mv, A.H._mv, A.domain, A.codomain))
    key = jax.random.key(0)
    spaces = krylov.begin_golub_kahan(A._mv, A.domain, A.codomain, 8, A.domain.draw(key), krylov.seed_of(key))
    shrink = jax.jit(krylov.shrink_golub_kahan)
    for _ in range(3):
        while spaces.size < 8:
            spaces = expand(spaces)
        X, s, Y = jax.jit(krylov.singular_vectors)(spaces)
        V, U, B = np.asarray(spaces.right).T, np.asarray(spaces.left).T, np.asarray(spaces.matrix)
        np.testing.assert_allclose(np.linalg.svd(B, compute_uv=False), s, rtol=1e-5)
        np.testing.assert_allclose(M @ V[:, :8], U @ B, atol=1e-4)
        ahead = np.outer(V[:, 8], np.eye(8)[7]) * spaces.residual
        np.testing.assert_allclose(M.conj().T @ U, V[:, :8] @ B.conj().T + ahead, atol=1e-4)
        residuals = np.linalg.norm(M.conj().T @ U @ X - V[:, :8] @ Y * s, axis=0)
        np.testing.assert_allclose(residuals, krylov.couplings_golub_kahan(spaces, X), atol=1e-4)
        kept = np.arange(8) < 5
        spaces = shrink(spaces, X * kept, Y * kept, jnp.int32(5))
