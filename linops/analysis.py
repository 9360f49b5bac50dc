"""`linops.spectrum`: what products tell of the spectrum of a Hermitian operator, in one report."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import as_key
from linops.blas import one_blas_thread
from linops.estimate.densities import Density, gaussians
from linops.estimate.determinants import probes_at_once
from linops.estimate.norms import WIDENING
from linops.estimate.result import FEW, ROUNDINGS, WIDENED, Estimate
from linops.estimate.runs import operand, require_operator, require_square, require_whole
from linops.linalg.lanczos import SYMMETRIC, of_each_end
from linops.linalg.operands import block_of, require_matrix
from linops.linalg.records import CONVERGED, REASONS, STOPPED, Interrupted, NoConvergence
from linops.linalg.symmetric import MORE, eigsh
from linops.matrix import Matrix
from linops.monitoring import monitor
from linops.probing import Probing, measured, measured_whole
from linops.products import is_traced
from linops.report import Report, SpectrumInterrupted
from linops.watching import path_and_seconds, watched

TOL = 1e-4
PROBES = 12
STEPS = 32
POINTS = 512  # of the grid between the ends of what is not known eigenvalue by eigenvalue
PEAK = np.linspace(-5, 5, 41)  # and those around each known one, in widths
ROUNDING = 100  # times eps of the norm: nearer to zero the sign of an eigenvalue is not told


def spectrum(
    A,
    k=5,
    *,
    key=None,
    tol=TOL,
    maxiter=None,
    ncv=None,
    probes=PROBES,
    steps=STEPS,
    width=None,
    progress=False,
    callback=None,
    save=None,
):
    """Report on the spectrum of a Hermitian operator: its ends, eigenvalue by eigenvalue, and estimates of the rest.

    The k largest and the k smallest eigenvalues come from one run of `linops.linalg.eigsh`, with residual norms
    computed anew. Then `probes` random vectors, each with `steps` steps of Lanczos beside the eigenvectors that were
    found, give all of the rest together: the trace, the Frobenius norm, the shares of eigenvalues below and next to
    zero, and the density. Standard errors are the scatter of the probes, in which what is known has no part, and for
    the shares also what the last step changed. Where about as many products suffice for the columns of the identity,
    all is computed from these, with standard errors of 0.

    Parameters
    ----------
    A : Operator or array of shape (n, n)
        Symmetric or Hermitian.
    k : int
        How many eigenvalues at each end; the half of n at most, which the report says.
    key : JAX key, optional
        Of all that is random; `jax.random.key(0)` by default.
    tol, maxiter, ncv
        Of `eigsh`: residual norms are at most tol abs(w), or what rounding allows.
    probes, steps : int
        More probes make standard errors smaller, more steps the density sharper. Each step is a product for each probe.
    width : float, optional
        The standard deviation of the Gaussian by which the density is smoothed. By default as far as the nodes of the
        probes are apart.
    progress : bool
        A bar on stderr, where that is a terminal.
    callback : callable, optional
        `callback(record)` is called between chunks of steps, with the records of `eigsh`, and then with how many
        `probes` and `matvecs` were made; True stops, and the report has what is known.
    save : path, or (path, seconds), optional
        A file from which a run that was stopped goes on, as `eigsh` has it, and one beside it, of the same name with
        ".probes", for the probes. Where all columns are computed there is none.

    Returns
    -------
    Report
        Text by `print`, a figure by `.plot()`, JSON by `.to_json()`. What did not converge is marked, not raised.

    Raises
    ------
    SpectrumInterrupted
        A KeyboardInterrupt, with what is known in `.report`.
    TypeError, ValueError
        Where A is not square or turns out not to be Hermitian, or an argument is none of these.
    FloatingPointError
        Where a product is NaN or infinite.

    Examples
    --------
    >>> A = linops.Diagonal(jnp.append(jnp.linspace(-1.0, 1.0, 2000), jnp.array([5.0, 7.0])))
    >>> report = linops.spectrum(A, k=2)
    >>> report.largest.round(3).tolist(), report.converged
    ([7.0, 5.0], True)
    >>> bool(abs(report.trace.value - 12) < 3 * report.trace.standard_error)
    True
    """
    A = Matrix(A) if isinstance(A, np.ndarray | jax.Array) else A
    require_operator(A, "spectrum")
    require_square(A, "spectrum")
    require_matrix("spectrum", A)
    if is_traced(A):
        raise TypeError(
            f"spectrum got {A!r}, which belongs to a jit, vmap or grad in progress; expected arrays, since a report is "
            "made of NumPy's: call it outside, or linops.linalg.eigsh and linops.estimate inside"
        )
    key = as_key(jax.random.key(0) if key is None else key, "spectrum")
    counts = {"k": k, "probes": probes, "steps": steps}
    k, probes, steps = (require_whole("spectrum", count, name) for name, count in counts.items())
    if probes < 2:
        raise ValueError(f"spectrum got probes={probes}, expected at least 2, of which a standard error can be told")
    if width is not None and not width > 0:
        raise ValueError(f"spectrum got width={width!r}, expected a standard deviation above 0")
    with one_blas_thread(), monitor(A, progress=progress) as watched_A:
        linear, at_once = operand(watched_A, "spectrum")
        described = _described(A, linear, k)
        n = linear.shape[0]
        wanted = min(2 * k, n)
        if n <= probes * steps + max(2 * wanted + 1, wanted + MORE):
            return _whole(linear, described, width)
        asked = {"tol": tol, "maxiter": maxiter, "ncv": ncv}
        blocks = -(-probes // min(probes, probes_at_once(linear, at_once, steps + wanted)))
        probing = Probing(steps, -(-probes // blocks) * blocks, -(-probes // blocks))
        return _sampled(linear, described, key, asked, probing, width, callback, _files(save))


# How it is found.


def _sampled(A, described, key, asked, probing, width, callback, files):
    """By Lanczos: first the ends, then beside them what probes see."""
    stops = _Stops(A, callback)
    wanted = min(2 * described["k"], A.shape[0])
    code = CONVERGED
    try:
        values, vectors, record = eigsh(
            A, wanted, which="BE", key=key, trees=True, full_output=True, callback=stops, save=files[0], **asked
        )
    except NoConvergence as error:
        values, vectors, record = error.eigenvalues, error.eigenvectors, error.record
        stops.interrupted = isinstance(error, Interrupted)
        code = int(record.code)
    except KeyboardInterrupt:  # while it compiles
        raise SpectrumInterrupted(_nothing(described, wanted)) from None
    converged = np.asarray(record.converged)
    eigenvalues = np.full(wanted, np.nan)
    eigenvalues[converged] = values
    report = Report(
        **described,
        eigenvalues=eigenvalues,
        residuals=np.asarray(record.residual_norms, np.float64),
        vectors=vectors,
        reason=REASONS[code],
        matvecs=int(record.matvecs),
    )
    if code == STOPPED or stops.stopped:
        return _or_interrupted(_stopped(report), stops)
    try:
        report = _beside(A, report, jax.random.fold_in(key, 2), probing, width, stops, files[1])
    except KeyboardInterrupt:
        raise SpectrumInterrupted(_stopped(report)) from None
    return _or_interrupted(report, stops)


def _nothing(described, wanted):
    """The report of a run that was stopped before anything was known."""
    unknown = np.full(wanted, np.nan)
    return Report(**described, eigenvalues=unknown, residuals=unknown, vectors=None, reason=REASONS[STOPPED], matvecs=0)


def _beside(A, report, key, probing, width, stops, save):
    """The report with what probes see beside the eigenvectors that were found."""
    known = report.eigenvalues[report.is_found]
    operands = key, report.vectors if len(known) else None
    with A.domain.scope():
        state, watch = watched(probing, A, operands, probing.progress, A._listeners(), stops, save)
        done = int(state.done)
        matrices = np.asarray(state.matrices)[:done]
    stops.interrupted = watch.interrupted
    if not np.all(np.isfinite(matrices)):
        raise FloatingPointError(
            f"a product with {A!r} was NaN or infinite in spectrum, expected finite numbers: multiply by a vector, "
            "A @ v, to see where they come from"
        )
    spent = report.matvecs + int(probing.matvecs(state))
    report = dataclasses.replace(report, matvecs=spent, probes=done)
    if done < probing.probes:
        report = _stopped(report)
    if done < 2:
        return report
    measure, shorter = (measured(A.shape[0], known, m) for m in (matrices, matrices[:, :-1, :-1]))
    rounding = _rounding(A, measure)
    resolution = max(_spacing(measure, probing.steps), rounding)
    sharp = np.maximum(report.residuals[report.is_found], rounding)
    return _with_estimates(report, measure, shorter, resolution, sharp, width or resolution)


def _files(save):
    """Of what is kept in a file the two parts: the ends, and the probes."""
    if save is None:
        return None, None
    path, seconds = path_and_seconds(save)
    stem, ending = os.path.splitext(os.fspath(path))
    return (path, seconds), (f"{stem}.probes{ending}", seconds)


class _Stops:
    """The callback of a user, and whether it, Ctrl-C or the limit of a monitor stopped the run."""

    def __init__(self, A, callback):
        self.callback = callback
        self.records = [record for record, _ in A._listeners()]
        self.said, self.interrupted = False, False

    def __call__(self, record):
        self.said = self.callback is not None and bool(self.callback(record))
        return self.said

    @property
    def stopped(self):
        return self.said or self.interrupted or any(record.remaining == 0 for record in self.records)


def _stopped(report):
    """The report of a run that was stopped, and before, maybe, did not converge."""
    before = "" if report.converged or report.reason == REASONS[STOPPED] else f"{report.reason}; then "
    return dataclasses.replace(report, reason=before + REASONS[STOPPED])


def _or_interrupted(report, stops):
    if stops.interrupted:
        raise SpectrumInterrupted(report)
    return report


def _whole(A, described, width):
    """From all columns: every eigenvalue, and residuals of those that are shown from products of their own."""
    n = A.shape[0]
    M = A.toarray()
    if not np.all(np.isfinite(M)):
        raise FloatingPointError(f"{A!r} has NaN or infinite entries, expected finite ones for spectrum")
    wide = M.astype(np.result_type(M.dtype, np.float64))
    if np.linalg.norm(wide - wide.conj().T) > np.finfo(M.dtype).eps ** SYMMETRIC * np.linalg.norm(wide):
        raise ValueError(f"spectrum got {A!r}, whose matrix is not Hermitian; expected a Hermitian one")
    values, V = np.linalg.eigh((wide + wide.conj().T) / 2)
    high, low = of_each_end("BE", min(2 * described["k"], n))
    shown = np.r_[0:low, n - high : n]
    V = V[:, shown].astype(M.dtype)
    R = A.matmat(V).astype(wide.dtype) - V * values[shown]
    report = Report(
        **described,
        eigenvalues=values[shown],
        residuals=np.linalg.norm(R, axis=0),
        vectors=block_of(A.domain, V, "the eigenvectors"),
        reason=REASONS[CONVERGED],
        matvecs=n + len(shown),
    )
    measure = measured_whole(values, (low, high))
    rounding = _rounding(A, measure)
    return _with_estimates(report, measure, measure, rounding, (), width or max(_spacing(measure, STEPS), rounding))


def _described(A, linear, k):
    return {
        "operator": repr(A),
        "n": A.shape[0],
        "dtype": str(A.dtype),
        "device": _device(linear),
        "k": k,
    }


def _device(A):
    devices = set().union(*(leaf.devices() for leaf in jax.tree.leaves(A))) or {jax.devices()[0]}
    return str(*devices) if len(devices) == 1 else f"{len(devices)} devices"


def _spacing(measure, steps):
    """How far nodes are apart in the middle, π/2 times their mean distance, as those of Chebyshev."""
    return np.pi / 2 * (measure.high - measure.low) / steps


def _rounding(A, measure):
    largest = np.max(np.abs(measure.nodes))
    return ROUNDING * A._unit * (largest if largest > 0 else 1.0)


# What probes are read for.


def _with_estimates(report, measure, shorter, resolution, sharp, width):
    """The report with what integrals over the spectrum give; a ramp of one resolution tells what is below zero.

    `sharp` are the resolutions of the first nodes, which are eigenvalues that were found. `shorter` is the measure of a
    step less; that of moments is the same, of other functions it tells the truncation.
    """
    n, matvecs = report.n, report.matvecs
    eps = float(jnp.finfo(report.dtype).eps)

    def mean(f):
        value, error = _mean(measure.integrals(f))
        truncated = abs(value - np.mean(shorter.integrals(f)))
        rounded = ROUNDINGS * eps * np.mean(measure.integrals(lambda t: abs(f(t)))) if report.probes else 0.0
        return float(value), float(np.hypot(error + truncated, rounded))

    (trace, trace_error), (square, square_error) = map(mean, (lambda t: t, np.square))
    root = np.sqrt(square)
    root_error = WIDENING * square_error / (2 * root if root > 0 else 1)

    def in_resolutions(t):
        return t / np.append(sharp, np.full(t.shape[-1] - len(sharp), resolution))

    negative = mean(lambda t: np.clip(-in_resolutions(t), 0, 1))
    zero = mean(lambda t: np.clip(1 - abs(in_resolutions(t)), 0, 1))
    return dataclasses.replace(
        report,
        trace=Estimate(n * trace, n * trace_error, matvecs),
        frobenius_norm=Estimate(float(np.sqrt(n) * root), float(np.sqrt(n) * root_error), matvecs),
        negative=Estimate(*negative, matvecs),
        zero=Estimate(*zero, matvecs),
        resolution=float(resolution),
        density=_density(report, measure, width),
    )


def _mean(samples):
    """The mean of what probes give, with its standard error; of one that knows all, that is 0."""
    count, mean = len(samples), np.mean(samples, axis=0)
    if count == 1:
        return mean, np.zeros_like(mean)
    return mean, WIDENED[min(count, FEW)] * np.std(samples, axis=0, ddof=1) / np.sqrt(count)


def _density(report, measure, width):
    """The density on a grid that is as fine as its width between the ends of the rest, and around what is known."""
    low, high = measure.low, measure.high
    known = report.eigenvalues[report.is_found]
    known = known[(known < low) | (known > high)]
    points = max(POINTS, 4 * int(min((high - low) / width, 4096)))
    grid = np.linspace(low + PEAK[0] * width, high + PEAK[-1] * width, points)
    grid = np.union1d(grid, (known[:, None] + width * PEAK).ravel())

    each = [gaussians(*rule, grid, width) for rule in zip(measure.nodes, measure.weights, strict=True)]
    density, band = _mean(np.stack(each))
    return Density(grid, density, band, float(width), report.matvecs)
