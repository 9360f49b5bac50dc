"""Traces and diagonals estimated on the six spectra of the XTrace paper, n = 1,000: errors, and how often they cover.

    python benchmarks/estimators.py [--keys 200] [--only PART] [--plot FILE]

For each method, spectrum and number of products: the median error in shares of the value over the keys (40 of them for
192 products of a trace, and for diagonals), the median standard error, and how many of the values lie within one
standard error and within two. A mark says that this is below .683 or .954 by more than chance explains, one of a
thousand (a binomial test). The same of log-determinants, and what densities are off two known laws, in L1.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest

import linops
from linops import estimate

N = 1_000
PRODUCTS = 24, 48, 96, 192
METHODS = "hutchinson", "hutch++", "xtrace", "xnystrace"
LEVELS = 0.6827, 0.9545


class Spectrum(linops.Operator):
    """Q diag(values) Qᴴ."""

    Q: jax.Array
    values: jax.Array

    symmetric = positive_semidefinite = True
    domain = codomain = property(lambda self: linops.Space.flat(*self.Q.shape[:1], self.Q.dtype))

    def _mv(self, v):
        return self.Q @ (self.values * (self.Q.T @ v))


class Dense(linops.Operator):
    """A symmetric matrix that says so."""

    array: jax.Array

    symmetric = True
    domain = codomain = property(lambda self: linops.Space.flat(self.array.shape[0], self.array.dtype))

    def _mv(self, v):
        return self.array @ v


def spectra(n=N):
    """By name, the eigenvalues of the paper's examples."""
    i = np.arange(1, n + 1)
    few = np.arange(n) < n // 20
    return {
        "flat, 1 to 3": 3 - 2 * (i - 1) / (n - 1),
        "i^-2": 1.0 / i**2,
        ".9^i": 0.9**i,
        ".7^i": 0.7**i,
        "ones, then 1e-3": np.where(few, 1, 1e-3),
        "ones, then 1e-8": np.where(few, 1, 1e-8),
    }


def operators(n=N, seed=0):
    """The operators of the spectra, with one random basis."""
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return {name: Spectrum(jnp.asarray(Q), jnp.asarray(values)) for name, values in spectra(n).items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _estimates(function, options, A, keys):
    return jax.lax.map(lambda key: function(A, key, **dict(options)), keys, batch_size=8)


def errors(function, A, true, keys, **options):
    """Of each key the error of an estimate, of each entry, and its standard error."""
    found = _estimates(function, tuple(sorted(options.items())), A, keys)
    return np.abs(np.asarray(found.value) - true), np.asarray(found.standard_error)


def within(error, standard_error):
    """The shares within one standard error and two, and whether each is at least the normal distribution's."""
    shares, passed = [], []
    for times, level in enumerate(LEVELS, start=1):
        inside = error <= times * standard_error
        shares.append(inside.mean())
        count = round(inside.mean() * len(inside))
        passed.append(binomtest(count, len(inside), level, alternative="less").pvalue > 1e-3)
    return shares, passed


def traces(keys):
    """Of each spectrum, method and number of products: the median error, the shares within, and whether they pass."""
    table = {}
    for name, A in operators().items():
        true = float(jnp.sum(A.values))
        for method in METHODS:
            for products in PRODUCTS:
                some = keys if products < 100 else keys[:40]
                error, standard = errors(estimate.trace, A, true, some, method=method, num_matvecs=products)
                row = np.median(error) / true, np.median(standard) / true, *within(error, standard)
                table[name, method, products] = row
                _show(name, method, products, row)
    return table


def diagonals(keys):
    """The same for diagonals: the norm of the errors, and the shares of all entries."""
    for name, A in operators().items():
        true = np.asarray(jnp.sum(A.Q**2 * A.values, axis=1))
        for method in ("hutchinson", "xdiag"):
            for products in PRODUCTS:
                error, standard = errors(estimate.diagonal, A, true, keys, method=method, num_matvecs=products)
                size = [np.median(np.linalg.norm(e, axis=1)) / np.linalg.norm(true) for e in (error, standard)]
                row = *size, *within(error, standard)
                _show(name, f"diagonal, {method}", products, row)


def norms(keys):
    """The same for Frobenius norms."""
    for name, A in operators().items():
        true = float(jnp.linalg.norm(A.values))
        for products in PRODUCTS:
            error, standard = errors(estimate.frobenius_norm, A, true, keys, num_matvecs=products)
            row = np.median(error) / true, np.median(standard) / true, *within(error, standard)
            _show(name, "Frobenius norm", products, row)


def determinants(keys):
    """The same for log det (A + s I), by Ritz values or by the bound s, for probes of so many steps."""
    shift = 1e-2
    for name, A in operators().items():
        A = A._replace(values=A.values + shift)
        true = float(jnp.sum(jnp.log(A.values)))
        for steps, low in (8, None), (8, shift), (24, None):
            options = {"steps": steps, "num_matvecs": 8 * steps, "bounds": (low, None)}
            error, standard = errors(estimate.logdet, A, true, keys, **options)
            row = np.median(error) / abs(true), np.median(standard) / abs(true), *within(error, standard)
            _show(name, f"logdet, {steps} steps{', bound' * (low is not None)}", 8 * steps, row)


def densities():
    """The L1 distances of densities from the semicircle and the law of Marchenko and Pastur, n = 2,000."""
    rng = np.random.default_rng(0)
    W, X = rng.normal(size=(2_000, 2_000)), rng.normal(size=(4_000, 2_000)) / np.sqrt(4_000)
    low, high = (1 - 0.5**0.5) ** 2, (1 + 0.5**0.5) ** 2
    laws = {
        "semicircle": ((W + W.T) / np.sqrt(16_000), lambda t: 2 / np.pi * np.sqrt(np.maximum(1 - t**2, 0))),
        "Marchenko-Pastur": (
            X.T @ X,
            lambda t: np.sqrt(np.maximum((high - t) * (t - low), 0)) / (np.pi * np.maximum(t, low)),
        ),
    }
    print(f"\n{'L1 distance':18} probes  " + "".join(f"{steps:>4} steps slq, kpm   " for steps in (16, 32, 64, 128)))
    for name, (matrix, law) in laws.items():
        A = Dense(jnp.asarray(matrix))
        for probes in 2, 8, 32:
            row = f"{name:18} {probes:6}  "
            for steps in 16, 32, 64, 128:
                for method in "slq", "kpm":
                    found = estimate.spectral_density(
                        A, jax.random.key(0), method=method, steps=steps, num_matvecs=min(probes * steps, 1_999)
                    )
                    grid, density = np.asarray(found.grid), np.asarray(found.density)
                    row += f"  {np.trapezoid(abs(density - law(grid)), grid):.3f}"
                row += "      "
            print(row, flush=True)


def _show(name, method, products, row):
    error, standard, shares, passed = row
    marks = "".join(f"  {share:.2f}{' ' if ok else '*'}" for share, ok in zip(shares, passed, strict=True))
    print(f"{name:18} {method:30} {products:4}  {error:8.1e}  {standard:8.1e}{marks}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--only", default="", help="of traces, norms, diagonals, determinants, densities the one")
    parser.add_argument("--plot", metavar="FILE", help="draw the errors of traces there")
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), options.keys)
    print(f"{'spectrum':18} {'method':30} products  error     standard  within 1, 2")
    parts = {
        "traces": lambda: traces(keys),
        "norms": lambda: norms(keys),
        "diagonals": lambda: diagonals(keys[:40]),
        "determinants": lambda: determinants(keys),
        "densities": densities,
    }
    results = {name: part() for name, part in parts.items() if options.only in name}
    if options.plot:
        draw(results["traces"], options.plot)


def draw(table, path):
    """A panel for each spectrum: the median error of each method against products, and its standard error."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"  # letters, not their outlines
    colors = "#0072b2", "#d55e00", "#009e73", "#cc79a7"  # of Okabe and Ito
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3, sharex=True).flat, spectra(), strict=True):
        for method, marker, color in zip(METHODS, "os^D", colors, strict=True):
            error, standard, *_ = zip(*(table[name, method, products] for products in PRODUCTS), strict=True)
            axes.loglog(PRODUCTS, error, marker=marker, markersize=4, color=color, label=method)
            axes.loglog(PRODUCTS, standard, ":", color=color)
        low, high = np.log10(axes.get_ylim())
        axes.set_ylim(10.0 ** np.floor(low), 10.0 ** np.ceil(high))
        axes.set_title(name, fontsize="medium")
        axes.set_xticks(PRODUCTS, PRODUCTS)
        axes.minorticks_off()
    figure.supxlabel("products", fontsize="medium")
    figure.supylabel("median error, and standard error (dotted), in shares of the trace", fontsize="medium")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
