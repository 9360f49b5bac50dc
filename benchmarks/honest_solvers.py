"""How often solvers say that they converged, and have not: systems that are hard, in float32 and float64, counted.

    python benchmarks/honest_solvers.py [--systems WORDS] [--solvers WORDS] [--seeds 1] [--worst]

Ill-conditioned, singular, indefinite, badly scaled and non-normal systems, and least-squares problems, each with
right-hand sides in and out of the range. A success is false where the residual, recomputed in float64, misses the
tolerance that was asked for: that of A x = b, and for solvers of least squares ‖b - A x‖ <= (atol + btol) ‖b‖ or
‖Aᵀ (b - A x)‖ <= atol ‖A‖ ‖b - A x‖, the norm of A that of Frobenius. A solver without a status, as those of jax.scipy
are, says success with whatever is finite. Peers that are not installed are left out.
"""

import argparse
import collections
import functools
import importlib.util
import itertools
import warnings

import jax
import numpy as np
import scipy.linalg
import scipy.sparse.linalg

import linops
from linops import linalg

N = 40
TOLERANCES = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-8}
CONDITIONS = 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e8, 1e10, 1e12
ITERATIONS = 1000


# Systems: by name, what a matrix is, and the matrix and right-hand side.


def orthogonal(rng, m, n=None):
    return np.linalg.qr(rng.normal(size=(m, n or m)))[0]


def hermitian(rng, values):
    Q = orthogonal(rng, len(values))
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def spectra():
    """Eigenvalues by name; those named so are not all positive, or zero."""
    signs = np.where(np.arange(N) % 2, 1.0, -1.0)
    for condition in CONDITIONS:
        spread = np.geomspace(1 / condition, 1, N)
        yield f"condition {condition:.0e}", spread
        yield f"indefinite, condition {condition:.0e}", spread * signs
    for condition in CONDITIONS[2::3]:
        few = np.ones(N)
        few[:3] = np.geomspace(1 / condition, 1 / np.sqrt(condition), 3)
        yield f"three small, condition {condition:.0e}", few
        yield f"indefinite, three small, condition {condition:.0e}", few * signs
    for rank in (1, 10, 30, 39):
        values = np.where(np.arange(N) < rank, np.linspace(1, 3, N), 0)
        yield f"singular, rank {rank}", values
        yield f"indefinite, singular, rank {rank}", values * signs
    yield "singular, decay", np.where(np.arange(N) < 35, 0.7 ** np.arange(N), 0)


def symmetric_systems(rng):
    for name, values in spectra():
        kind = "symmetric" if "indefinite" in name else "definite"
        A = hermitian(rng, values)
        yield f"{name}, in the range", kind, A, A @ rng.normal(size=N)
        yield f"{name}, any b", kind, A, rng.normal(size=N)
    for exponent in (2, 4, 6):
        D = np.diag(10.0 ** rng.uniform(-exponent, exponent, size=N))
        yield f"scaled by 1e{exponent}", "definite", D @ hermitian(rng, np.linspace(1, 3, N)) @ D, rng.normal(size=N)
    yield "Hilbert", "definite", scipy.linalg.hilbert(N), np.ones(N)
    yield "Poisson", "definite", 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1), np.ones(N)
    for size in (1e-30, 1e-12, 1e12, 1e30):
        A = hermitian(rng, np.geomspace(1e-3, 1, N))
        yield f"entries of {size:.0e}", "definite", size * A, rng.normal(size=N)
        yield f"b of {size:.0e}", "definite", A, size * rng.normal(size=N)


def general_systems(rng):
    for condition in CONDITIONS:
        A = orthogonal(rng, N) @ np.diag(np.geomspace(1 / condition, 1, N)) @ orthogonal(rng, N)
        yield f"general, condition {condition:.0e}", "general", A, rng.normal(size=N)
        yield f"general, condition {condition:.0e}, in the range", "general", A, A @ rng.normal(size=N)
    for rank in (1, 20, 39):
        A = orthogonal(rng, N)[:, :rank] @ orthogonal(rng, N)[:rank]
        yield f"general, rank {rank}", "general", A, rng.normal(size=N)
        yield f"general, rank {rank}, in the range", "general", A, A @ rng.normal(size=N)
    yield "permutation", "general", np.roll(np.eye(N), 1, axis=0), np.eye(N)[0]
    yield "Jordan block", "general", 0.5 * np.eye(N) + np.eye(N, k=1), np.ones(N)
    yield "nilpotent", "general", np.eye(N, k=1), np.eye(N)[0]
    yield "Grcar", "general", sum(np.eye(N, k=k) for k in range(4)) - np.eye(N, k=-1), np.ones(N)
    rows, columns = np.indices((N, N))
    yield "Frank", "general", np.where(columns >= rows - 1, N - np.maximum(rows, columns), 0), np.ones(N)
    yield "random", "general", rng.normal(size=(N, N)), rng.normal(size=N)
    yield "zero", "general", np.zeros((N, N)), np.ones(N)


def rectangular_systems(rng):
    for m, n in ((N + 20, N), (N, N + 20)):
        least = min(m, n)
        U, V = orthogonal(rng, m, least), orthogonal(rng, n, least)
        for condition in CONDITIONS:
            A = U * np.geomspace(1 / condition, 1, least) @ V.T
            yield f"{m} x {n}, condition {condition:.0e}", "rectangular", A, rng.normal(size=m)
            yield f"{m} x {n}, condition {condition:.0e}, in the range", "rectangular", A, A @ rng.normal(size=n)
        for rank in (1, 20, 39):
            A = U[:, :rank] @ V[:, :rank].T
            yield f"{m} x {n}, rank {rank}", "rectangular", A, rng.normal(size=m)
            yield f"{m} x {n}, rank {rank}, in the range", "rectangular", A, A @ rng.normal(size=n)
        A = rng.normal(size=(m, n)) * 10.0 ** rng.uniform(-5, 5, size=n)
        yield f"{m} x {n}, scaled columns", "rectangular", A, rng.normal(size=m)


def systems(seed=0):
    rng = np.random.default_rng(seed)
    for family in (symmetric_systems, general_systems, rectangular_systems):
        for name, kind, A, b in family(rng):
            for dtype in TOLERANCES:
                with np.errstate(over="ignore"):
                    yield f"{name}, {dtype}", kind, A.astype(dtype), b.astype(dtype)


# Solvers: of A, b and a tolerance they give x and whether they say that it converged. Each takes some kinds.

DEFINITE = ("definite",)  # and what is singular, which they should find
SYMMETRIC = ("definite", "symmetric")
SQUARE = ("definite", "symmetric", "general")
ALL = ("definite", "symmetric", "general", "rectangular")


def ours(solver, A, b, tol, **options):
    try:
        x, info = solver(linops.Matrix(A), b, rtol=tol, **options)
    except FloatingPointError:
        return np.full(A.shape[1], np.nan), False
    return x, info == 0


def our_lsmr(A, b, tol):
    try:
        x, istop = linalg.lsmr(linops.Matrix(A), b, atol=tol, btol=tol, maxiter=ITERATIONS)[:2]
    except FloatingPointError:
        return np.full(A.shape[1], np.nan), False
    return x, istop in (0, 1, 2, 4, 5)


def scipys(solver, A, b, tol, **options):
    x, info = solver(A, b, rtol=tol, **options)
    return x, info == 0


def scipy_lsmr(A, b, tol):
    x, istop = scipy.sparse.linalg.lsmr(A, b, atol=tol, btol=tol, maxiter=ITERATIONS)[:2]
    return x, istop in (0, 1, 2, 4, 5)


@functools.partial(jax.jit, static_argnums=0)
def of_jax(solver, A, b, tol):
    return solver(A, b, tol=tol)[0]


def jaxs(solver, A, b, tol):
    x = of_jax(functools.partial(solver, maxiter=ITERATIONS), A, b, tol)
    return x, bool(np.isfinite(x).all())


SOLVERS = {
    "linops cg": (SYMMETRIC, functools.partial(ours, linalg.cg, maxiter=ITERATIONS)),
    "scipy cg": (SYMMETRIC, functools.partial(scipys, scipy.sparse.linalg.cg, maxiter=ITERATIONS)),
    "jax.scipy cg": (SYMMETRIC, functools.partial(jaxs, jax.scipy.sparse.linalg.cg)),
    "linops minres": (SYMMETRIC, functools.partial(ours, linalg.minres, maxiter=ITERATIONS)),
    "scipy minres": (SYMMETRIC, functools.partial(scipys, scipy.sparse.linalg.minres, maxiter=ITERATIONS)),
    "linops gmres": (SQUARE, functools.partial(ours, linalg.gmres, restart=N)),
    "scipy gmres": (SQUARE, functools.partial(scipys, scipy.sparse.linalg.gmres, restart=N, maxiter=ITERATIONS // N)),
    "jax.scipy gmres": (SQUARE, functools.partial(jaxs, functools.partial(jax.scipy.sparse.linalg.gmres, restart=N))),
    "linops lsmr": (ALL, our_lsmr),
    "scipy lsmr": (ALL, scipy_lsmr),
}

if importlib.util.find_spec("lineax"):
    import lineax

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def of_lineax(solver, A, b, tol, tags):
        A = lineax.MatrixLinearOperator(A, tags)
        solution = lineax.linear_solve(A, b, solver(rtol=tol, atol=0.0, max_steps=ITERATIONS), throw=False)
        return solution.value, solution.result == lineax.RESULTS.successful

    def lineaxs(solver, A, b, tol, tags=()):
        with jax.enable_x64(A.dtype == np.float64):  # of which its LSMR takes no float32
            x, success = of_lineax(solver, A, b, tol, tags)
            return np.asarray(x), bool(success)

    definite = lineax.symmetric_tag, lineax.positive_semidefinite_tag
    gmres = functools.partial(lineax.GMRES, restart=N)
    SOLVERS |= {
        "lineax CG": (SYMMETRIC, functools.partial(lineaxs, lineax.CG, tags=definite)),
        "lineax GMRES": (SQUARE, functools.partial(lineaxs, gmres)),
        "lineax LSMR": (ALL, functools.partial(lineaxs, lineax.LSMR)),
    }


# The count.


def misses(A, b, x, tol, is_least):
    """How many times the tolerance the residual is, recomputed in float64; at most 1 where it is met."""
    A, b, x = (np.asarray(a, np.float64) for a in (A, b, x))
    if not np.isfinite(x).all():
        return np.inf
    size = scipy.linalg.norm  # which does not overflow
    r = b - A @ x
    ratio = size(r) / (tol * size(b)) if size(b) else size(r)
    if not is_least:
        return ratio
    share, gradient = tol * size(A) * size(r), size(A.T @ r)
    return min(ratio / 2, gradient / share if share else gradient)


def judged(solver, kinds, words="", seeds=1):
    """Of each system: its name, whether success was said, and by how much the tolerance is missed."""
    for name, kind, A, b in itertools.chain(*map(systems, range(seeds))):
        if kind in kinds and words in name:
            tol = TOLERANCES[A.dtype]
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                x, success = solver(A, b, tol)
            yield name, bool(success), misses(A, b, x, tol, "rectangular" in kinds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="", metavar="WORDS", help="only systems whose names contain these words")
    parser.add_argument("--solvers", default="", metavar="WORDS", help="only solvers whose names contain these words")
    parser.add_argument("--seeds", type=int, default=1, help="how many random ones of each")
    parser.add_argument("--worst", action="store_true", help="name the false successes")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if not importlib.util.find_spec("lineax"):
        print("lineax is not installed: its rows are left out")
    print(f"{'':16} systems  success  false success  by 10 times  not converged")
    for label, (kinds, solver) in SOLVERS.items():
        if options.solvers not in label:
            continue
        results = list(judged(solver, kinds, options.systems, options.seeds))
        counts = collections.Counter()
        for _, success, miss in results:
            counts["success"] += success and miss <= 1
            counts["false"] += success and not miss <= 1
            counts["far"] += success and not miss <= 10
            counts["not"] += not success
        print(
            f"{label:16} {len(results):7}  {counts['success']:7}  {counts['false']:13}  {counts['far']:11}  "
            f"{counts['not']:13}",
            flush=True,
        )
        if options.worst:
            for name, success, miss in results:
                if success and not miss <= 1:
                    print(f"    {miss:9.3g} {name}")


if __name__ == "__main__":
    main()
