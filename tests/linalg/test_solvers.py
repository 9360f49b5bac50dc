"""`cg`, `minres`, `gmres` and `lsmr` beside dense solutions: what converges, what does not and says so, derivatives."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from counting import compilations

import linops
from linops.linalg import cg, eigsh, expm_multiply, gmres, lsmr, minres

N = 30
DTYPES = {  # by what is taken, and by precision
    "real": {"single": np.float32, "double": np.float64},
    "complex": {"single": np.complex64, "double": np.complex128},
}
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-10, np.complex64: 1e-4, np.complex128: 1e-10}


def orthogonal(rng, dtype, m=N, n=N):
    real = rng.normal(size=(m, n))
    return np.linalg.qr(real + 1j * rng.normal(size=(m, n)) if np.issubdtype(dtype, np.complexfloating) else real)[0]


def with_eigenvalues(values, dtype=np.float64, seed=0):
    Q = orthogonal(np.random.default_rng(seed), dtype)
    A = (Q * values) @ Q.conj().T
    return ((A + A.conj().T) / 2).astype(dtype)


def with_singular_values(values, m=N, n=N, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    U, V = orthogonal(rng, dtype, m, len(values)), orthogonal(rng, dtype, n, len(values))
    return ((U * values) @ V.conj().T).astype(dtype)


SIGNS = (-1.0) ** np.arange(N)
SPREAD = np.geomspace(0.1, 1, N)
MATRICES = {  # what each solver is for
    cg: lambda dtype: with_eigenvalues(SPREAD, dtype),
    minres: lambda dtype: with_eigenvalues(SPREAD * SIGNS, dtype),
    gmres: lambda dtype: with_singular_values(SPREAD, dtype=dtype) + 2 * np.eye(N, dtype=dtype),
    lsmr: lambda dtype: with_singular_values(SPREAD, N + 10, dtype=dtype),
}
SOLVERS = list(MATRICES)
SQUARE = SOLVERS[:3]


def name(value):
    return getattr(value, "__name__", None)


def right_sides(A, count=3):
    """One that is any, one in the range, and zero."""
    rng = np.random.default_rng(1)
    any_b = rng.normal(size=A.shape[0]) + (1j * rng.normal(size=A.shape[0]) if np.iscomplexobj(A) else 0)
    return np.stack([any_b, A @ np.ones(A.shape[1]), np.zeros(A.shape[0])], axis=1)[:, :count].astype(A.dtype)


def run(solver, A, b, tol=1e-5, **options):
    """x, info and the record; of lsmr info is istop."""
    A = linops.Matrix(A) if isinstance(A, np.ndarray) else A
    if solver is lsmr:
        x, info, *_, record = lsmr(A, b, atol=tol, btol=tol, full_output=True, **options)
        return x, info, record
    return solver(A, b, rtol=tol, full_output=True, **options)


def misses(A, b, x, tol, least=False):
    """By how many times of the tolerance, computed in double precision."""
    A, b, x = (np.asarray(a, np.result_type(np.asarray(a), np.float64)) for a in (A, b, x))
    r = b - A @ x
    missed = np.linalg.norm(r) / (tol * (np.linalg.norm(b) or 1))
    if not least:
        return missed
    gradient = np.linalg.norm(A.conj().T @ r)
    return min(missed / 2, gradient / (tol * np.linalg.norm(A) * np.linalg.norm(r)) if gradient else 0)


# What converges.


@pytest.mark.covering("precision")
@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize("numbers", DTYPES)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_blocks(solver, numbers, precision, x64):
    dtype = DTYPES[numbers][precision]
    A, tol = MATRICES[solver](dtype), TOLERANCE[dtype]
    B = right_sides(A)
    watched = linops.monitor(linops.Matrix(A), progress=False)
    X, info, record = run(solver, watched, B, tol, maxiter=500)
    assert X.dtype == dtype
    np.testing.assert_array_equal(info, [2, 1, 0] if solver is lsmr else 0)
    np.testing.assert_allclose(X, np.linalg.pinv(A) @ B, atol=100 * tol)
    assert all(misses(A, b, x, tol, solver is lsmr) <= 1 for x, b in zip(X.T, B.T, strict=True))
    assert np.all(record.residual_norms <= record.tolerance)
    assert record.converged.all()
    assert record.reason == "converged"
    assert watched.matvecs + watched.rmatvecs == record.matvecs
    assert record.iterations[2] == 0 < record.iterations[0] < record.matvecs


@pytest.mark.parametrize("solver", SQUARE, ids=name)
def test_trees_guesses_preconditioners_and_callbacks(solver):
    signs = -1 if solver is minres else 1
    d = {"a": jnp.geomspace(1, 50, 6), "b": signs * jnp.geomspace(3, 900, 8).reshape(2, 4)}
    D, b = linops.Diagonal(d), jax.tree.map(jnp.ones_like, d)
    expected = jax.tree.map(lambda leaf: 1 / leaf, d)
    seen = []
    x, info, record = run(
        solver, D, b, 1e-4, callback=seen.append, **({"callback_type": "x"} if solver is gmres else {})
    )
    assert info == 0
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), x, expected)
    jax.tree.map(np.testing.assert_array_equal, seen[-1], x)
    assert len(seen) == (1 if solver is gmres else record.iterations)

    M = linops.Diagonal(jax.tree.map(lambda leaf: 1.1 / abs(leaf), d))
    preconditioned, info, faster = run(solver, D, b, M=M)
    assert info == 0
    assert faster.iterations <= (2 if solver is minres else 1) < record.iterations
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3), preconditioned, expected)

    _, info, at_once = run(solver, D, b, x0=preconditioned)
    assert (info, at_once.iterations, at_once.matvecs) == (0, 0, 1)

    block = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), b)
    X, info, _ = run(solver, D, block, M=M)
    assert info.tolist() == [0, 0]
    jax.tree.map(lambda leaf, x: np.testing.assert_allclose(leaf, np.stack([x, 2 * x]), rtol=1e-3), X, expected)
    array, _, _ = run(solver, D, D.domain.ravel(b), M=M)
    np.testing.assert_allclose(array, D.domain.ravel(expected), rtol=1e-3)


def test_lsmr_between_trees():
    point = {"a": jnp.arange(1.0, 4.0), "b": jnp.ones(2)}
    J = linops.Jacobian(lambda p: {"u": p["a"] * p["b"].sum(), "v": p["b"] ** 2, "w": p["a"]}, point)
    b = jax.tree.map(jnp.ones_like, J.codomain.struct)
    x, istop, *_ = lsmr(J, b, 0.1)
    dense = np.vstack([J.toarray(), 0.1 * np.eye(5)])
    assert istop == 2
    np.testing.assert_allclose(J.domain.ravel(x), np.linalg.lstsq(dense, np.r_[np.ones(8), np.zeros(5)])[0], atol=1e-5)


def test_what_gmres_tells():
    A, b = MATRICES[gmres](np.float32), right_sides(MATRICES[gmres](np.float32), 1)[:, 0]
    norms, legacy, points = [], [], []
    _, info, record = run(gmres, A, b, restart=5, callback=norms.append, callback_type="pr_norm")
    assert info == 0
    assert len(norms) == record.iterations > 5
    assert norms[-1] <= 1e-5 < norms[-2] < norms[0] < 1
    run(gmres, A, b, restart=5, callback=legacy.append)
    assert len(legacy) == len(norms)
    run(gmres, A, b, restart=5, callback=points.append, callback_type="x")
    assert all(misses(A, b, x, 1, False) < misses(A, b, y, 1, False) for y, x in itertools.pairwise(points))


def test_many_shifts_and_damps_from_one_space(x64):
    A, shifts = MATRICES[cg](np.float64), np.geomspace(1e-3, 10, 10)
    b = right_sides(A, 1)[:, 0]
    x, info, record = run(cg, A, b, 1e-9, shifts=shifts)
    expected = [np.linalg.solve(A + s * np.eye(N), b) for s in shifts]
    np.testing.assert_array_equal(info, 0)
    np.testing.assert_allclose(x.T, expected, atol=1e-7)
    assert record.matvecs <= 1.5 * run(cg, A, b, 1e-9)[2].matvecs

    A = MATRICES[lsmr](np.float64)
    b = right_sides(A, 1)[:, 0]
    alone = run(lsmr, A, b, 1e-9, maxiter=200, damp=shifts[0])[2]
    for window in (0, 5):
        x, istop, *_, record = lsmr(
            linops.Matrix(A), b, shifts, 1e-9, 1e-9, maxiter=200, window=window, full_output=True
        )
        expected = [np.linalg.solve(A.T @ A + s**2 * np.eye(N), A.T @ b) for s in shifts]
        np.testing.assert_array_equal(istop, 2)
        np.testing.assert_allclose(x.T, expected, atol=1e-7)
        assert record.matvecs <= 1.5 * alone.matvecs


def test_a_window_of_all_vectors_takes_as_many_steps_as_in_exact_arithmetic(x64):
    A = with_singular_values(np.geomspace(1e-4, 1, N), N + 10)
    b = A @ np.ones(N)
    without, _, _ = (run(lsmr, A, b, 1e-12, maxiter=2000, window=window)[2] for window in (0, 5, N))
    x, istop, record = run(lsmr, A, b, 1e-12, maxiter=2000, window=N)
    assert istop in (1, 4)
    assert record.iterations <= N + 1 < without.iterations / 2
    np.testing.assert_allclose(x, np.ones(N), atol=1e-8)


def test_what_lsmr_returns(x64):
    A = MATRICES[lsmr](np.float64)
    b, x0 = right_sides(A, 1)[:, 0], np.ones(N)
    x, istop, itn, normr, normar, norma, conda, normx = lsmr(linops.Matrix(A), b, 0.1, x0=x0, maxiter=200)
    step, rest = x - x0, b - A @ x
    np.testing.assert_allclose(normr, np.hypot(np.linalg.norm(rest), 0.1 * np.linalg.norm(step)))
    np.testing.assert_allclose(normar, np.linalg.norm(A.T @ rest - 0.01 * step), rtol=1e-6)
    np.testing.assert_allclose(normx, np.linalg.norm(x))
    assert normar <= 1e-6 * norma * normr
    assert 1 <= conda <= 10.1
    assert 1 <= norma <= 10
    assert (type(istop), type(itn), type(normr), istop) == (int, int, float, 2)
    expected = x0 + np.linalg.solve(A.T @ A + 0.01 * np.eye(N), A.T @ (b - A @ x0))
    np.testing.assert_allclose(x, expected, atol=1e-4)


def test_a_matrix_of_any_scale():
    """The product of two numbers of its size leaves the range of float32."""
    for solver, A in MATRICES.items():
        b = right_sides(A(np.float32), 1)[:, 0]
        expected = np.linalg.lstsq(A(np.float64), b)[0]
        for scale in 1e-20, 1e20:
            x, info = solver(np.float32(scale) * A(np.float32), b, maxiter=200)[:2]
            assert info == (2 if solver is lsmr else 0)
            np.testing.assert_allclose(scale * np.float64(x), expected, atol=1e-3 * np.abs(expected).max())


def test_cg_of_a_graded_matrix_whose_preconditioner_knows_it():
    """Its residuals grow by the root of the condition number of the matrix, 1e9, which is beyond 1 / eps."""
    d = np.array([1, 1, 1, 1e9, 1e9, 1e9])
    B = np.eye(6) + 0.03 * np.ones((6, 6))
    A, b = (d[:, None] * B * d).astype(np.float32), np.array([1, 2, 3, 0, 0, 0], np.float32)
    x, info = cg(A, b, M=linops.Diagonal((1 / d**2).astype(np.float32)))
    assert info != -1
    np.testing.assert_allclose(d * x, np.linalg.solve(B, b / d), rtol=1e-4)


# Singular systems.


@pytest.mark.parametrize("dtype", [np.float32, np.complex128], ids=name)
def test_minres_of_singular_systems(dtype, x64):
    A = with_eigenvalues(np.where(np.arange(N) < 10, 0, 1 + np.arange(N) / N) * SIGNS, dtype)
    B = right_sides(A)
    X, info, record = run(minres, A, B)
    shortest = np.linalg.pinv(A, rcond=1e-5, hermitian=True) @ B
    assert info.tolist() == [-5, 0, 0]
    assert "right-hand side not in its range" in record.reason
    np.testing.assert_allclose(X, shortest, atol=1e-3 if np.finfo(dtype).eps > 1e-10 else 1e-4)
    np.testing.assert_allclose(record.residual_norms[0], np.linalg.norm(B[:, 0] - A @ shortest[:, 0]), rtol=1e-4)


@pytest.mark.parametrize("shape", [(N + 10, N), (N, N + 10), (N, N)])
def test_lsmr_gives_the_shortest_of_all_solutions(shape, x64):
    A = with_singular_values(np.linspace(1, 3, 12), *shape)
    B = right_sides(A, 2)
    X, istop, _ = run(lsmr, A, B, 1e-10)
    assert istop.tolist() == [2, 1]
    np.testing.assert_allclose(X, np.linalg.pinv(A, rcond=1e-8) @ B, atol=1e-8)


# What does not converge.


def failing():
    definite, b = MATRICES[cg](np.float32), np.ones(N, np.float32)
    nilpotent = np.diag(np.ones(N - 1, np.float32), 1)
    indefinite = linops.Diagonal(np.where(np.arange(N) < 2, -10, 1).astype(np.float32))  # of which a step shows it
    for solver in SOLVERS:
        A = MATRICES[solver](np.float32)
        limit = {"restart": 2, "maxiter": 1} if solver is gmres else {"maxiter": 2}
        any_b, in_range = np.ones(A.shape[0], np.float32), A @ np.ones(A.shape[1], np.float32)
        yield "limit", solver, A, any_b, limit, 7 if solver is lsmr else 2, "the limit of iterations"
        most = {"maxiter": 500} if solver is not gmres else {"maxiter": 500, "restart": N}
        info = 500 * N + 1 if solver is gmres else 501
        if solver is not lsmr:  # which takes what rounding leaves for a solution, as SciPy's does, with istop 4
            yield "rounding", solver, A, in_range, {"tol": 1e-12, **most}, info, "as rounding lets"
    yield "curvature", cg, -definite, b, {}, -1, "the matrix is not positive definite"
    yield "indefinite", cg, MATRICES[minres](np.float32), b, {}, -1, "the matrix is not positive definite"
    singular = np.diag(np.arange(N, dtype=np.float32))  # where it has next to no curvature steps do not end
    yield "singular", cg, singular, b, {}, -1, "the matrix is not positive definite"
    for solver in (cg, minres):
        yield "preconditioner", solver, definite, b, {"M": indefinite}, -2, "the preconditioner is not"
    yield "boundary", cg, definite, b, {"radius": 0.1}, -4, "the boundary of the trust region"
    yield "not symmetric", minres, MATRICES[gmres](np.float32), b, {}, -6, "the matrix is not Hermitian"
    permutation, first = np.roll(np.eye(N, dtype=np.float32), 1, 0), np.eye(N, dtype=np.float32)[0]
    far = np.float32(sum(np.eye(N, k=k) for k in (-1, 0, 1)) + 5 * np.outer(np.eye(N)[-1], np.eye(N)[-4]))
    yield "not symmetric far off", minres, far, first, {}, -6, "the matrix is not Hermitian"
    yield "stands", gmres, nilpotent, first, {"restart": 2}, -7, "no progress any more"
    yield "permuted", gmres, permutation, first, {"restart": 2}, -7, "no progress any more"
    ill = with_singular_values(np.geomspace(1e-6, 1, N), N + 10, dtype=np.float32)
    yield "conlim", lsmr, ill, np.ones(N + 10, "f"), {"conlim": 2.0}, 3, "condition number is beyond conlim"


@pytest.mark.parametrize(
    ("solver", "A", "b", "options", "info", "words"),
    [pytest.param(*case, id=f"{label} {case[0].__name__}") for label, *case in failing()],
)
def test_what_does_not_converge_says_so(solver, A, b, options, info, words):
    x, found, record = run(solver, A, b, **options)
    assert found == info
    assert words in record.reason
    assert not record.converged
    if solver is not lsmr:
        np.testing.assert_allclose(record.residual_norms, np.linalg.norm(b - A @ x), rtol=1e-3, atol=1e-6)
    if solver is cg and "M" in options:
        assert record.residual_norms <= (1 + 1e-6) * np.linalg.norm(b)  # no worse than zero, where it began


def test_derivatives_of_what_did_not_converge_are_nan():
    """And not zero, which a choice between a solution and NaN would make of them."""
    A = linops.Matrix(MATRICES[cg](np.float32))
    b = jnp.ones(A.shape[0])
    few = {"maxiter": 1}
    for solve in (
        lambda b: cg(A, b, **few)[0], lambda b: minres(A, b, **few)[0], lambda b: lsmr(A, b, **few)[0],
        lambda b: gmres(A, b, restart=2, **few)[0], lambda b: linops.inverse(A, "cg", **few) @ b,
    ):  # fmt: skip
        assert np.isnan(jax.jit(jax.grad(lambda b, solve=solve: jnp.sum(solve(b))))(b)).all()


def test_a_direction_of_negative_curvature_is_handed_back():
    A, B = MATRICES[minres](np.float32), right_sides(MATRICES[minres](np.float32), 2)
    space = linops.Space.of({"a": np.zeros((2, 5), "f"), "b": np.zeros(N - 10, "f")})
    on_tree = linops.Matrix(A) @ linops.Identity(space)
    for options in ({}, {"radius": 10.0}):
        D = run(cg, A, B, **options)[2].direction
        tree = run(cg, on_tree, space.unravel(B[:, 0]), **options)[2].direction
        np.testing.assert_allclose(np.linalg.norm(D, axis=0), 1, rtol=1e-6)
        assert (np.sum(D * (A @ D), axis=0) < 0).all()
        np.testing.assert_allclose(space.ravel(tree), D[:, 0], atol=1e-5)
    direction = jax.jit(lambda A, b: cg(A, b, full_output=True)[2].direction)
    assert not direction(linops.Matrix(MATRICES[cg](np.float32)), B[:, 0]).any()
    np.testing.assert_allclose(direction(linops.Matrix(A), B[:, 0]), run(cg, A, B)[2].direction[:, 0], atol=1e-5)


def test_a_monitor_stops_a_solver():
    for solver in SOLVERS:
        A = MATRICES[solver](np.float32)
        b = np.ones(A.shape[0], np.float32)
        M = linops.monitor(linops.Matrix(A), progress=False, max_matvecs=6)
        _, info, record = run(solver, M, b, 1e-6)
        assert info != 0
        assert "it was stopped" in record.reason
        assert not record.converged


def test_the_trust_region():
    A = with_eigenvalues(np.linspace(1, 3, N) * np.where(np.arange(N) == 3, -1, 1), np.float32)
    b = np.ones(N, np.float32)
    x, info, record = run(cg, A, b, radius=2e4)
    assert info == -1
    np.testing.assert_allclose(np.linalg.norm(x), 2e4, rtol=1e-5)
    assert x @ A @ x / 2 - b @ x < 0
    assert "not positive definite" in record.reason
    definite = with_eigenvalues(np.linspace(1, 3, N), np.float32)
    radius = 0.99 * np.linalg.norm(np.linalg.solve(definite, b))
    x, _, record = run(cg, definite, b, radius=radius)
    np.testing.assert_allclose(np.linalg.norm(x), radius, rtol=1e-5)
    assert record.iterations > 1
    assert "boundary of the trust region" in record.reason


# Never a false success.


def hard():
    """Systems by name, as rows of solvers that take them, A and b."""
    rng = np.random.default_rng(5)
    any_b = rng.normal(size=N)
    for condition in (1e3, 1e6, 1e12):
        values = np.geomspace(1 / condition, 1, N)
        A, B = with_eigenvalues(values), with_eigenvalues(values * SIGNS)
        yield f"definite {condition:.0e}", SOLVERS, A, any_b
        yield f"definite, in the range {condition:.0e}", SOLVERS, A, A @ any_b
        yield f"indefinite {condition:.0e}", SOLVERS, B, any_b
        yield f"general {condition:.0e}", [gmres, lsmr], with_singular_values(values), any_b
    yield "Hilbert", SOLVERS, scipy.linalg.hilbert(N), np.ones(N)
    yield "Poisson", SOLVERS, 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1), np.ones(N)
    scales = 10.0 ** rng.uniform(-6, 6, N)
    yield "scaled", SOLVERS, scales[:, None] * with_eigenvalues(np.linspace(1, 3, N)) * scales, any_b
    yield "singular", SOLVERS, with_eigenvalues(np.arange(N) % 3.0), any_b
    yield "zero", SOLVERS, np.zeros((N, N)), any_b
    yield "huge", SOLVERS, 1e30 * with_eigenvalues(SPREAD), any_b
    yield "tiny", SOLVERS, 1e-30 * with_eigenvalues(SPREAD), any_b
    # SciPy's lsmr calls such a solution converged (istop 1), whose norm of 1e17 certifies a residual as large as b.
    yield "astray", SOLVERS, with_singular_values(np.geomspace(1e-17, 1, N)), 1e3 * any_b
    yield "Frank", [gmres, lsmr], scipy.linalg.hessenberg(rng.normal(size=(N, N))), any_b


@pytest.mark.parametrize("dtype", DTYPES["real"].values(), ids=name)
def test_no_false_success(dtype, x64):
    tol, false, successes = {np.float32: 1e-5, np.float64: 1e-8}[dtype], [], 0
    for label, solvers, A, b in hard():
        A, b = A.astype(dtype), b.astype(dtype)
        for solver in solvers:
            options = {"restart": N, "maxiter": 20} if solver is gmres else {"maxiter": 500}
            try:
                x, info, _ = run(solver, A, b, tol, **options)
            except FloatingPointError:
                continue
            success = info in ((0, 1, 2, 4, 5) if solver is lsmr else (0,))
            successes += success
            if success and not misses(A, b, x, tol, solver is lsmr) <= 1:
                false.append((label, solver.__name__))
    assert not false
    assert successes >= 15


# Transformations.


def solution(solver, tol=1e-12, **options):
    """X alone, as a function of a matrix and b."""
    options = {"maxiter": 300, **options}
    if solver is lsmr:
        return lambda A, b, *damp: lsmr(linops.Matrix(A), b, *damp, atol=tol, btol=tol, **options)[0]
    if solver is minres:
        return lambda A, b, shift=0.0: minres(linops.Matrix(A), b, rtol=tol, shift=shift, **options)[0]
    return lambda A, b: solver(linops.Matrix(A), b, rtol=tol, **options)[0]


def symmetrized(dense):
    return lambda A, b, *more: dense((A + A.T) / 2, b, *more)


def damped(A, b, damp):
    return jnp.linalg.solve(A.T @ A + damp**2 * jnp.eye(A.shape[1]), A.T @ b)


GENERAL = np.random.default_rng(3).normal(size=(5, 5)) + 3 * np.eye(5)
RECTANGULAR = np.random.default_rng(4).normal(size=(7, 4))
DIFFERENTIATED = {
    "cg": (solution(cg), jnp.linalg.solve, GENERAL @ GENERAL.T, ()),
    "minres": (solution(minres), lambda A, b, s: jnp.linalg.solve(A - s * jnp.eye(5), b), GENERAL + GENERAL.T, (0.7,)),
    "gmres": (solution(gmres), jnp.linalg.solve, GENERAL, ()),
    "lsmr, tall": (solution(lsmr), lambda A, b: jnp.linalg.pinv(A) @ b, RECTANGULAR, ()),
    "lsmr, wide": (solution(lsmr), lambda A, b: jnp.linalg.pinv(A) @ b, RECTANGULAR.T, ()),
    "lsmr, damped": (solution(lsmr), damped, RECTANGULAR.T, (0.3,)),
}


@pytest.mark.parametrize("case", DIFFERENTIATED)
def test_derivatives(case, x64):
    ours, dense, A, more = DIFFERENTIATED[case]
    b = np.random.default_rng(6).normal(size=len(A))
    if case in ("cg", "minres"):
        ours, dense = symmetrized(ours), symmetrized(dense)
    weights = np.arange(1.0, A.shape[1] + 1)

    def loss(solve):
        return lambda *given: jnp.sum(weights * jnp.sin(solve(*given)))

    def both(*given):
        """The change along directions, and the gradient, of one linearization."""
        tangent = jax.linearize(loss(ours), *given)[1]
        # Cotangents as small as that made all gradients through preconditioned solves NaN elsewhere.
        return tangent(*directions), jax.linear_transpose(tangent, *given)(jnp.float64(1e-13))

    given = tuple(jnp.asarray(a) for a in (A, b, *more))
    directions = [jnp.ones_like(a) for a in given]
    expected = jax.jit(jax.grad(loss(dense), tuple(range(len(given)))))(*given)
    change, gradients = jax.jit(both)(*given)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(1e13 * gradient, other, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(change, sum(np.sum(g * d) for g, d in zip(expected, directions, strict=True)), rtol=1e-7)


def test_gradients_outside_of_jit_compile_once(x64):
    """JAX compiles a loop or a linear solve again whenever it differentiates one outside of a jit."""
    A, b = jnp.asarray(GENERAL @ GENERAL.T), jnp.ones(5)

    def total(c):
        H = linops.Hessian(lambda x, A: 0.5 * x @ A @ x, b, args=(c * A,))
        trace = linops.estimate.trace(H, jax.random.key(0)).value
        form = linops.estimate.quadratic_form(lambda t: t**2 / c, H, b).value
        of_operator = jnp.sum(expm_multiply(-linops.Matrix(A), c * b))
        solved = jnp.sum(cg(H, b, rtol=1e-12)[0])
        return solved + eigsh(H, k=1, return_eigenvectors=False)[0] + trace + form + of_operator

    gradient = jax.grad(total)
    gradient(2.0)
    with compilations() as count:
        found = gradient(3.0)
    assert count() == 0
    expected = -jnp.sum(jnp.linalg.solve(A, b)) / 9 + jnp.linalg.eigvalsh(A)[-1] + jnp.trace(A)
    expected += jnp.sum((A @ b) ** 2) + np.sum(scipy.linalg.expm(-np.asarray(A)) @ b)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_derivatives_of_derivatives(x64):
    *solvers, A, damp = DIFFERENTIATED["lsmr, damped"]
    b = np.random.default_rng(6).normal(size=len(A))

    def loss(solve):
        return lambda a: jnp.sum(jnp.sin(solve(a * A, b, *(a * d for d in damp))))

    ours, dense = (jax.jit(jax.grad(jax.grad(loss(solve)))) for solve in solvers)
    np.testing.assert_allclose(ours(1.3), dense(1.3), rtol=1e-7)


def test_derivatives_of_complex_solutions_and_of_norms(x64):
    rng = np.random.default_rng(7)
    A = rng.normal(size=(5, 4)) + 1j * rng.normal(size=(5, 4))
    b, x0 = A @ np.ones(4) + 1, np.ones(4) + 1j

    def ours(A, b, damp, x0):
        x, _, _, normr, *_, normx = lsmr(linops.Matrix(A), b, damp, 1e-13, 1e-13, maxiter=100, x0=x0)
        return x, normr, normx

    def dense(A, b, damp, x0):
        step = jnp.linalg.solve(A.conj().T @ A + damp**2 * jnp.eye(4), A.conj().T @ (b - A @ x0))
        whole = jnp.concatenate([b - A @ (x0 + step), damp * step])
        return x0 + step, jnp.linalg.norm(whole), jnp.linalg.norm(x0 + step)

    def loss(solve):
        def of(*given):
            x, normr, normx = solve(*given)
            return jnp.sum(abs(x) ** 2 * np.arange(4)) + normr + normx

        return jax.jit(jax.grad(of, (0, 1, 2, 3)))

    for gradient, other in zip(loss(ours)(A, b, 0.5, x0), loss(dense)(A, b, 0.5, x0), strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-7)


def test_derivatives_in_one_leaf_and_through_a_preconditioner():
    D = linops.Diagonal({"a": jnp.arange(1.0, 4.0), "b": jnp.ones(2)})
    M = linops.Diagonal({"a": jnp.ones(3) / 2, "b": jnp.ones(2)})

    def loss(a):
        return 1e-13 * jnp.sum(cg(D, {"a": a, "b": jnp.ones(2)}, M=M)[0]["a"] ** 2)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.ones(3)), 2e-13 / np.arange(1.0, 4.0) ** 2, rtol=1e-4)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_missing_rank_is_no_derivative(shape, x64):
    A = with_singular_values(np.array([3.0, 1.0]), *shape)
    solve = solution(lsmr, 1e-10)

    def loss(A):
        return jnp.sum(jnp.sin(solve(A, np.arange(1.0, shape[0] + 1))))

    if shape[0] > shape[1]:
        assert np.isnan(jax.jit(jax.grad(loss))(A)).all()
    # Along a direction that keeps the range there is one; and along one that does not there is none.
    b = A @ np.ones(shape[1])
    along = jax.jit(lambda dA: jax.jvp(lambda A: solve(A, b), (A,), (dA,)))
    x, change = along(A)
    np.testing.assert_allclose(change, -x, atol=1e-8)
    assert np.isnan(along(np.random.default_rng(8).normal(size=shape))[1]).all()


def test_in_jit_what_did_not_converge_is_nan():
    for solver in SOLVERS:
        A = MATRICES[solver](np.float32)
        B = right_sides(A)

        @jax.jit
        def few(A, B, solver=solver):
            options = {"restart": 2, "maxiter": 1} if solver is gmres else {"maxiter": 2}
            return solver(linops.Matrix(A), B, **options)[:2]

        X, info = few(A, B)
        np.testing.assert_array_equal(np.isnan(X), np.broadcast_to([True, True, False], X.shape))
        assert [bool(number) for number in info] == [True, True, False]


def test_under_vmap():
    A = np.stack([MATRICES[minres](np.float32), with_eigenvalues(SPREAD, np.float32)])
    b = right_sides(A[0], 1)[:, 0]
    X = jax.jit(jax.vmap(lambda A: minres(linops.Matrix(A), b, maxiter=500)[0]))(A)
    np.testing.assert_allclose(X, np.linalg.solve(A, b[:, None])[..., 0], rtol=1e-2, atol=1e-2)


def test_of_no_equations_the_solution_is_empty():
    A, b = linops.Diagonal(np.zeros(0, np.float32)), np.zeros(0, np.float32)
    for solver in SOLVERS:
        assert solver(A, b)[0].shape == (0,)
    assert linops.inverse(A).matvec(b).shape == (0,)


# Bad input.


def refused():
    A, b = linops.Matrix(np.eye(4, dtype=np.float32)), np.ones(4, np.float32)
    tall = linops.Matrix(np.eye(4, 3, dtype=np.float32))
    half, skew = linops.Matrix(np.eye(4, dtype=np.float16)), linops.Matrix(np.eye(4, k=1, dtype=np.float32))
    for solver in SOLVERS:
        yield TypeError, f"{solver.__name__} got an operator in float16", lambda f=solver: f(half, b)
        yield ValueError, f"{solver.__name__} got maxiter=0, expected at least 1", lambda f=solver: f(A, b, maxiter=0)
        yield ValueError, "or a tree like the operator", lambda f=solver: f(A, np.ones(5, np.float32))
        nan = np.full(4, np.nan, np.float32)
        yield FloatingPointError, "came upon NaN or infinite numbers", lambda f=solver, b=nan: f(A, b)
        two = np.ones((4, 2), np.float32)
        yield ValueError, "with 2 columns for b with 1, expected as many", lambda f=solver, x=two: f(A, b, x0=x)
        yield TypeError, "expected an operator of linops, an array", lambda f=solver: f("A", b)
    other = linops.Matrix(np.eye(3, dtype=np.float32))
    for solver in SQUARE:
        yield ValueError, "got rtol=-1, expected a number that is not", lambda f=solver: f(A, b, rtol=-1)
        yield ValueError, "expected a square one", lambda f=solver: f(tall, b)
        yield ValueError, f"{solver.__name__} got M of shape", lambda f=solver: f(A, b, M=other)

        def in_jit(f=solver):
            return jax.jit(lambda b: f(A, b, callback=print)[0])(b)

        yield TypeError, "got callback= within jit, vmap or grad", in_jit
    yield ValueError, "cg got shifts= with x0, expected one right-hand side", lambda: cg(A, b, b, shifts=[1.0])
    yield ValueError, "expected a vector of real numbers", lambda: cg(A, b, shifts=[])
    yield ValueError, "cg got radius= with x0", lambda: cg(A, b, b, radius=1.0)
    yield ValueError, "expected a positive number", lambda: cg(A, b, radius=-1.0)
    yield ValueError, "minres got show=True, expected False", lambda: minres(A, b, show=True)
    yield ValueError, "with check=True, expected a Hermitian A", lambda: minres(skew, b, check=True)
    yield ValueError, "got shift=1j, expected a real number", lambda: minres(A, b, shift=1j)
    yield TypeError, "gmres got restart=1.5, expected an integer", lambda: gmres(A, b, restart=1.5)
    yield ValueError, "expected at least 1, the vectors", lambda: gmres(A, b, restart=0)
    yield ValueError, "expected 'x', 'pr_norm' or 'legacy'", lambda: gmres(A, b, callback_type="y")
    yield ValueError, "lsmr got show=True, expected False", lambda: lsmr(A, b, show=True)
    for damp in -1.0, None, "0.1":
        yield ValueError, f"lsmr got damp={damp!r}, expected a number >= 0", functools.partial(lsmr, A, b, damp)
    yield ValueError, "expected some damps with one right-hand side", lambda: lsmr(A, np.eye(4, dtype="f"), [1.0, 2.0])
    yield ValueError, "expected how many vectors, an integer >= 0", lambda: lsmr(A, b, window=-1)
    yield ValueError, "lsmr got conlim=-1, expected a number that is", lambda: lsmr(A, b, conlim=-1)


@pytest.mark.parametrize(("error", "words", "call"), list(refused()))
def test_refused(error, words, call):
    with pytest.raises(error, match=words):
        call()
