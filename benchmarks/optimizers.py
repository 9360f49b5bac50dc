"""Optimizers and the solvers in them: published problems, times beside peers, and what preconditioners give.

    python benchmarks/optimizers.py [--only PART]

- nist: digits of NIST's certified fits, from both starts, by `levenberg_marquardt` and by SciPy's `least_squares`.
- published: the problems of More, Garbow and Hillstrom by `newton_cg` and by `levenberg_marquardt`.
- sized: those of any number of variables, n = 10,000, by `newton_cg`.
- rosenbrock: chained Rosenbrock, n = 1,000, in turn with SciPy's methods over hand-written jitted products.
- peers: other packages on the same function.
- nystrom: iterations of `cg` on damped Gauss-Newton systems of the digits network, with `nystrom` and without.
- bound: condition numbers with `nystrom`, dense, beside the bound of its paper.
- poisson: where it does not help.
- shifts: products of `cg` with ten shifts beside those of one.

Peers that are not installed are left out.
"""

import argparse
import functools
import importlib.util
import sys
import time
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import problems
import scipy.optimize
from eigenvalues import trained
from measure import interleaved

import linops
from linops.linalg import cg
from linops.optimize import levenberg_marquardt, newton_cg
from linops.precondition import FIRST_RANK, POWERS, nystrom

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from published import mgh, nist  # which tests and benchmarks share

EXACT = 11.0  # digits that NIST certified


# Published problems.


def digits(value, certified):
    """The digits that all of some numbers have right."""
    with np.errstate(divide="ignore"):
        return float(np.min(np.minimum(EXACT, -np.log10(np.abs(np.asarray(value) / certified - 1)))))


def standard_errors(fit, jacobian, problem):
    """Those that a fit has, or from a QR factorization of the Jacobian with columns of length 1; NaN for none."""
    if hasattr(fit, "standard_errors"):
        try:
            return fit.standard_errors
        except np.linalg.LinAlgError:
            return np.full_like(problem.parameters, np.nan)
    jacobian = np.asarray(jacobian(fit.x))
    norms = np.linalg.norm(jacobian, axis=0)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        return np.full_like(norms, np.nan)
    inverse = np.linalg.pinv(np.linalg.qr(jacobian / norms)[1], rcond=1e-15)
    return np.sqrt(2 * fit.cost / problem.degrees_of_freedom) * np.linalg.norm(inverse, axis=1) / norms


def by_scipy(problem, start):
    """SciPy's trust region reflective method at its best: exact Jacobian, scaled, the smallest tolerances."""
    values, jacobian = jax.jit(problem.residuals), jax.jit(jax.jacfwd(problem.residuals))
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    return scipy.optimize.least_squares(
        lambda x: np.asarray(values(x)),
        start,
        lambda x: np.asarray(jacobian(x)),
        x_scale="jac",
        max_nfev=10_000,
        **tight,
    )


def certified():
    """Digits of parameters and of standard deviations; evaluations."""
    print("problem      start  levenberg_marquardt: digits, evaluations, status    SciPy's trf: digits, evaluations")
    least = {}
    for name, problem in nist.PROBLEMS.items():
        jacobian = jax.jit(jax.jacfwd(problem.residuals))
        best = [0, 0]
        for i, start in enumerate(problem.starts):
            row = []
            for fit in (levenberg_marquardt(problem.residuals, start), by_scipy(problem, start)):
                errors = standard_errors(fit, jacobian, problem)
                right = digits(fit.x, problem.parameters), digits(errors, problem.standard_deviations)
                row.append((*right, fit.nfev, fit.status))
            best = max(best, row[0][:2], key=min)
            texts = [f"{a:5.1f} {b:5.1f} {count:6d} {status:3d}" for a, b, count, status in row]
            print(f"{name:12} {i + 1:5}  " + "      ".join(texts), flush=True)
        least[name] = min(best)
    few = {name: round(value, 1) for name, value in least.items() if value < 6}
    print(f"fewest digits from the better start: {min(least.values()):.1f}; fewer than 6: {few or 'none'}")


def timed(call):
    """A result, and the seconds of a second run, in which nothing compiles."""
    call()
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def minima():
    """What f comes to, and after how much."""
    print(
        "problem                                        newton_cg: f, gradient, iterations, evaluations, products, ms, "
        "status    levenberg_marquardt: f, cosine, iterations, evaluations, ms, status"
    )
    reached = [0, 0]
    for name, problem in mgh.PROBLEMS.items():
        newton, seconds = timed(functools.partial(newton_cg, problem.f, problem.start))
        fit, fit_seconds = timed(functools.partial(levenberg_marquardt, problem.residuals, problem.start))
        marks = [problem.reached(newton.fun), problem.reached(2 * fit.cost)]
        reached = [count + mark for count, mark in zip(reached, marks, strict=True)]
        print(
            f"{name:46} {_newton(newton, seconds, marks[0])}    {2 * fit.cost:12.6g}{' ' if marks[1] else '*'} "
            f"{fit.optimality:7.0e} {fit.nit:5d} {fit.nfev:5d} {1e3 * fit_seconds:7.1f} {fit.status} "
            f"{'' if fit.success else 'no success'}",
            flush=True,
        )
    print(f"a published minimum: newton_cg {reached[0]}, levenberg_marquardt {reached[1]} of {len(mgh.PROBLEMS)}")


def _newton(result, seconds, reached):
    return (
        f"{result.fun:12.6g}{' ' if reached else '*'} {np.linalg.norm(result.jac):7.0e} {result.nit:5d} "
        f"{result.nfev:5d} {result.nhev:6d} {1e3 * seconds:8.1f} {result.status}"
        f"{'' if result.success else ' no success'}"
    )


def sized(n=10_000):
    """The same for problems of n variables, of at most 100,000 products."""
    print(
        "problem                                        newton_cg: f, gradient, iterations, evaluations, products, ms"
    )
    for name, make in mgh.SIZED.items():
        problem = make(n)
        result, seconds = timed(functools.partial(newton_cg, problem.f, problem.start, max_matvecs=100_000))
        print(f"{name:46} {_newton(result, seconds, problem.reached(result.fun))}", flush=True)


# Beside peers.


def chained_rosenbrock(x, height=100.0):
    return jnp.sum(height * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


class Compilations:
    """How many there were, as JAX reports them."""

    count = 0

    def __call__(self, name, seconds, **_):
        self.count += name == "/jax/core/compile/backend_compile_duration"


START = np.resize([-1.2, 1.0], 1_000)
GTOL = 1e-8  # of the norm of the gradient

_value_and_gradient = jax.jit(jax.value_and_grad(chained_rosenbrock))
_product = jax.jit(lambda x, v: jax.jvp(jax.grad(chained_rosenbrock), (x,), (v,))[1])


def _objective(x):
    value, gradient = _value_and_gradient(x)
    return float(value), np.asarray(gradient)


def _minimized(method, **options):
    """What one writes by hand for SciPy: value and gradient of one program, products of another."""
    return scipy.optimize.minimize(
        _objective, START, jac=True, hessp=lambda x, v: np.asarray(_product(x, v)), method=method, options=options
    )


def rosenbrock():
    """Beside SciPy's, in turn; then the compilations of a second problem of that shape."""
    calls = {
        "linops, newton_cg": lambda: newton_cg(chained_rosenbrock, START, gtol=GTOL),
        "SciPy, trust-krylov": lambda: _minimized("trust-krylov", gtol=GTOL, maxiter=10_000),
        "SciPy, trust-ncg": lambda: _minimized("trust-ncg", gtol=GTOL, maxiter=10_000),
        "SciPy, Newton-CG": lambda: _minimized("Newton-CG", xtol=1e-10, maxiter=10_000),
    }
    for name, call in calls.items():
        result = call()
        counts = ", ".join(f"{what} {result[key]}" for key, what in COUNTS.items())
        print(f"  {name:40} f {result.fun:8.1e}, gradient {np.linalg.norm(result.jac):7.1e}; {counts}")
    times = interleaved(calls, seconds=2.5, least=3, most=9)
    for name, (low, median, high) in times.items():
        ratio = median / times["linops, newton_cg"][1]
        print(f"  {name:40} {1e3 * median:9.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f}), {ratio:.2f}")
    compilations = Compilations()
    jax.monitoring.register_event_duration_secs_listener(compilations)
    result = newton_cg(chained_rosenbrock, np.zeros_like(START), (90.0,), gtol=GTOL)
    before = compilations.count
    result = newton_cg(chained_rosenbrock, START, (110.0,), gtol=GTOL)
    print(f"  compilations of another start and height: {compilations.count - before}, f {result.fun:.1e}")


COUNTS = {"nit": "iterations", "nfev": "evaluations", "nhev": "products"}


def peers():
    """Other packages on the same function, each whole in one jitted function: what they reach, and in what time."""
    for name, run in _peers().items():
        try:
            x, seconds = timed(lambda run=run: jax.block_until_ready(run(START)))
        except Exception as error:  # a peer that gives up is a row of the table
            print(f"  {name:40} {type(error).__name__}: {str(error).splitlines()[0][:80]}", flush=True)
            continue
        value, gradient = _objective(x)
        print(f"  {name:40} f {value:8.1e}, gradient {np.linalg.norm(gradient):7.1e}, {seconds:7.2f} s", flush=True)


def _peers():
    """A function from x0 to x of each."""
    gradient, runs = jax.grad(chained_rosenbrock), {}
    runs["linops, newton_cg"] = lambda x0: newton_cg(chained_rosenbrock, x0, gtol=GTOL).x
    if importlib.util.find_spec("jaxopt"):
        import jaxopt

        for method in (jaxopt.LBFGS, jaxopt.NonlinearCG):
            solver = method(chained_rosenbrock, tol=GTOL, maxiter=20_000)
            runs[f"jaxopt, {method.__name__}"] = jax.jit(lambda x0, solver=solver: solver.run(x0).params)
    if importlib.util.find_spec("optimistix"):
        import optimistix

        for method in (optimistix.LBFGS, optimistix.BFGS):
            solver = method(rtol=GTOL, atol=GTOL)
            runs[f"optimistix, {method.__name__}"] = jax.jit(
                lambda x0, solver=solver: (
                    optimistix.minimise(
                        lambda x, _: chained_rosenbrock(x), solver, x0, max_steps=20_000, throw=False
                    ).value
                )
            )
        for method in (optimistix.Newton, optimistix.Dogleg):
            solver = method(rtol=GTOL, atol=GTOL)
            runs[f"optimistix, {method.__name__} on the gradient"] = jax.jit(
                lambda x0, solver=solver: (
                    optimistix.root_find(lambda x, _: gradient(x), solver, x0, max_steps=50, throw=False).value
                )
            )
    if importlib.util.find_spec("solvax"):
        import solvax

        runs["solvax, newton_krylov on the gradient"] = jax.jit(
            lambda x0: solvax.newton_krylov(gradient, x0, max_steps=200)[0]
        )
    return runs


# Solvers and preconditioners.


@functools.cache
def trained_network(n):
    """Gauss-Newton of the trained digits network, its gradient."""
    model, loss, weights = problems.digits(problems.LAYERS[n])
    weights = trained(lambda weights: loss(model(weights)), weights)
    gradient = jax.grad(lambda weights: loss(model(weights)))(weights)
    return linops.GaussNewton(model, weights, loss), gradient


def damped_systems(sizes=(2_410, 85_002), shifts=(1e-2, 1e-3, 1e-4)):
    """Iterations of cg on (G + shift) x = -g, to 1e-5, without a preconditioner and with one."""
    print("n       shift    cg    nystrom: rank, cg   times fewer   products with those of the rank")
    for n in sizes:
        G, gradient = trained_network(n)
        b = jax.tree.map(jnp.negative, gradient)
        for shift in shifts:
            A = G + np.float32(shift) * linops.Identity(G.domain)
            solve = functools.partial(cg, A, b, rtol=1e-5, maxiter=2_000, full_output=True)
            plain = solve()[2]
            M = nystrom(G, shift)
            rank, with_it = _rank(M), solve(M=M)[2]
            few = int(plain.iterations) / int(with_it.iterations)
            print(
                f"{n:<7,} {shift:.0e} {_iterations(plain)}    {rank:5d}  {_iterations(with_it)}   {few:11.1f}"
                f"   {_spent(rank) + int(with_it.matvecs)} beside {int(plain.matvecs)}",
                flush=True,
            )


def _iterations(record):
    return f"{int(record.iterations):5d}{' ' if bool(record.converged) else '*'}"


def _spent(rank):
    """Products for a rank that was found: those of random vectors, and what looks at each rank on the way."""
    return rank + POWERS * (1 + int(np.log2(rank // FIRST_RANK)))


def _rank(M):
    return max(len(jax.tree.leaves(term)[0]) for term in M.terms if isinstance(term, linops.LowRank))


def paper_bound(keys=5):
    """Condition numbers for the rank of the paper's theorem 5.1, 2 ceil(3/2 d) + 1, d the effective dimension: its
    bound is 28 for their mean.
    """
    model, loss, weights = problems.digits((64, 8, 10))
    weights = trained(lambda weights: loss(model(weights)), weights)
    G = linops.GaussNewton(model, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), weights), loss)
    dense = G.toarray()
    w = np.maximum(np.linalg.eigvalsh(dense), 0)
    n = len(w)
    print(f"n = {n}: shift, rank, condition number without, and with: mean and largest of {keys} keys")
    for shift in (1.0, 1e-1, 1e-2):
        rank = min(2 * int(np.ceil(1.5 * np.sum(w / (w + shift)))) + 1, n)
        found = []
        for key in jax.random.split(jax.random.key(0), keys):
            M = nystrom(G, shift, rank, key=key).toarray()
            L = np.linalg.cholesky((M + M.T) / 2)
            inner = np.linalg.eigvalsh(L.T @ (dense + shift * np.eye(n)) @ L)
            found.append(inner[-1] / inner[0])
        print(
            f"  {shift:.0e} {rank:4d} {(w[-1] + shift) / (w[0] + shift):10.0f}    "
            f"{np.mean(found):7.2f} {np.max(found):7.2f}",
            flush=True,
        )


class Poisson(linops.Operator):
    """The five-point Laplacian on a square grid, zero around it."""

    like: jax.Array

    symmetric = positive_semidefinite = True
    domain = codomain = property(lambda self: linops.Space.of(self.like))

    def _mv(self, v):
        padded = jnp.pad(v, 1)
        return 4 * v - padded[:-2, 1:-1] - padded[2:, 1:-1] - padded[1:-1, :-2] - padded[1:-1, 2:]


def poisson(side=40):
    """Iterations of cg to 1e-8, by rank."""
    A = Poisson(jnp.zeros((side, side)))
    b = problems.normal(side**2)
    solve = functools.partial(cg, A, b, rtol=1e-8, full_output=True)
    counts = {0: int(solve()[2].iterations)}
    for rank in (10, 20, 50, 100, 200):
        counts[rank] = int(solve(M=nystrom(A, 0.0, rank))[2].iterations)
    print(f"Poisson's matrix on a grid of {side} x {side}: iterations by rank: {counts}")


def ten_shifts(n=2_410):
    """Products of one run for ten shifts, of one for the smallest, and of ten runs."""
    G, gradient = trained_network(n)
    print(f"n = {n:,}: products for ten shifts, for the smallest, times; for each by itself")
    for low in (1e-2, 1e-3, 1e-4):
        shifts = np.geomspace(low, 1e3 * low, 10)
        solve = functools.partial(cg, G, gradient, rtol=1e-5, maxiter=20_000, full_output=True)
        record = solve(shifts=shifts)[2]
        ones = [
            cg(G + np.float32(s) * linops.Identity(G.domain), gradient, rtol=1e-5, maxiter=20_000, full_output=True)[2]
            for s in shifts
        ]
        many, one = int(np.max(record.matvecs)), int(ones[0].matvecs)
        print(
            f"  from {low:.0e}: {many:5d} {one:5d} {many / one:6.2f} {sum(int(r.matvecs) for r in ones):6d}   "
            f"converged {bool(np.all(record.converged))}, alone {all(bool(r.converged) for r in ones)}",
            flush=True,
        )


PARTS = {
    "nist": (certified, True), "published": (minima, True), "sized": (sized, True), "rosenbrock": (rosenbrock, True),
    "peers": (peers, True), "nystrom": (damped_systems, False), "bound": (paper_bound, True),
    "poisson": (poisson, True), "shifts": (ten_shifts, False),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS), help="these parts, and no others")
    options = parser.parse_args()
    for name in options.only:
        part, double = PARTS[name]
        with jax.enable_x64(double):
            part()
        print()


if __name__ == "__main__":
    main()
