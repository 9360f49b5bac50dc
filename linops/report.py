"""The report of a spectrum: numbers, as text, as a figure, as JSON."""

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from linops.estimate.densities import Density
from linops.estimate.result import Estimate
from linops.linalg.records import CONVERGED, REASONS


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What `linops.spectrum` knows of a Hermitian operator of n rows.

    - `eigenvalues`: those at both ends, ascending, NaN where one did not converge; `residuals`, the norms ‖A v - w v‖,
      each a bound of the distance to an eigenvalue; `vectors`, a pytree of those that converged, each leaf with a
      leading axis. `largest` and `smallest`, with `_residuals` and `_vectors`, are those of one end, from the outermost
      one on.
    - `trace`, `frobenius_norm`: each an `Estimate`.
    - `negative`, `zero`: the shares of eigenvalues that are below zero, and so near to it that their sign is not told.
      An eigenvalue that was found counts by its sign; another one within one `resolution` of zero counts to both, to
      `zero` the more the nearer it is.
    - `density`: a `Density`, of all eigenvalues, on a grid that is finer around those that were found.
    - `matvecs`: all products, `probes` the number of random vectors; 0 where all was computed.
    - `converged`, whether all is known that was asked for; `reason`, why the run ended.

    What the run was stopped before is None.

    >>> print(linops.spectrum(linops.Diagonal(jnp.array([-1.0, 0.0, 2.0, 3.0])), k=1))
    Spectrum of <4x4 Diagonal with dtype=float32>
      6 products, of which all eigenvalues are computed
    <BLANKLINE>
           largest eigenvalues   residual |Av - wv|
                             3   0.0e+00
    <BLANKLINE>
          smallest eigenvalues   residual |Av - wv|
                            -1   0.0e+00
    <BLANKLINE>
                         trace   4
                Frobenius norm   3.74166
        eigenvalues below zero   25%
                       at zero   25%
    """

    operator: str
    n: int
    dtype: str
    device: str
    k: int
    eigenvalues: np.ndarray
    residuals: np.ndarray
    vectors: Any
    reason: str
    matvecs: int
    probes: int = 0
    trace: Estimate | None = None
    frobenius_norm: Estimate | None = None
    negative: Estimate | None = None
    zero: Estimate | None = None
    resolution: float | None = None
    density: Density | None = None

    @property
    def converged(self):
        """Whether all is known that was asked for."""
        return self.reason == REASONS[CONVERGED]

    @property
    def is_found(self):
        """Of each of the eigenvalues, whether it converged."""
        return np.isfinite(self.eigenvalues)

    @property
    def _low(self):
        """How many of them are at the lower end."""
        return len(self.eigenvalues) // 2

    largest = property(lambda self: self.eigenvalues[self._low :][::-1])
    largest_residuals = property(lambda self: self.residuals[self._low :][::-1])
    smallest = property(lambda self: self.eigenvalues[: self._low])
    smallest_residuals = property(lambda self: self.residuals[: self._low])

    @property
    def largest_vectors(self):
        """The eigenvectors of the largest that converged, from the outermost one on."""
        low = np.sum(self.is_found[: self._low])
        return jax.tree.map(lambda leaf: leaf[low:][::-1], self.vectors)

    @property
    def smallest_vectors(self):
        """The eigenvectors of the smallest that converged, from the outermost one on."""
        low = np.sum(self.is_found[: self._low])
        return jax.tree.map(lambda leaf: leaf[:low], self.vectors)

    def __str__(self):
        parts = [self._head(), *map(self._end, ("largest", "smallest"))]
        if self.trace is not None:
            parts.append(self._estimates())
        return "\n\n".join("\n".join(part) for part in parts)

    def __repr__(self):
        return f"<Report on {self.operator}: {self.reason}>"

    def _head(self):
        made = f"  {self.matvecs:,} products"
        if self.probes:
            made += f", of {self.probes} random vectors beside the eigenvectors"
        elif self.trace is not None:
            made += ", of which all eigenvalues are computed"
        lines = [f"Spectrum of {self.operator}", made]
        if not self.converged:
            lines.append(f"  {np.sum(self.is_found)} of {self.is_found.size} eigenvalues are known: {self.reason}")
        if 2 * self.k > self.n:
            lines.append(f"  k = {self.k} at each end is more than there are: each of the {self.n} is shown once")
        return lines

    def _end(self, end):
        values, residuals = getattr(self, end), getattr(self, f"{end}_residuals")
        shown = ["not converged" if math.isnan(value) else f"{value:.6g}" for value in values]
        rows = [f"{text:>{WIDTH}}   {residual:.1e}" for text, residual in zip(shown, residuals, strict=True)]
        return [f"{end + ' eigenvalues':>{WIDTH}}   residual |Av - wv|", *rows]

    def _estimates(self):
        shares = {"eigenvalues below zero": self.negative}
        # Where all are computed, zero is what rounding makes of it.
        shares[f"sign not told, ±{self.resolution:.2g}" if self.probes else "at zero"] = self.zero
        rows = {"trace": _text(self.trace), "Frobenius norm": _text(self.frobenius_norm)}
        rows |= {name: f"{_text(share, 100)}%" for name, share in shares.items()}
        return [f"{name:>{WIDTH}}   {text}" for name, text in rows.items()]

    def plot(self, path=None, ax=None):
        """Draw the density with its band and the eigenvalues, by `linops.plot.density`; returns Matplotlib's axes.

        With a `path`, a name such as "spectrum.png", it is written there.
        """
        from linops import plot  # which imports Matplotlib

        ax = plot.density(self, ax=ax)
        if path is not None:
            ax.figure.savefig(path)
        return ax

    def to_dict(self):
        """The report without its vectors, of what JSON has; None where something is not known."""
        found = {
            name: getattr(self, name)
            for name in ("operator", "n", "dtype", "device", "k", "converged", "reason", "matvecs", "probes")
        }
        for end in ("largest", "smallest"):
            pairs = zip(getattr(self, end), getattr(self, f"{end}_residuals"), strict=True)
            found[end] = [{"eigenvalue": value, "residual": residual} for value, residual in pairs]
        for name in ("trace", "frobenius_norm", "negative", "zero"):
            found[name] = _fields(getattr(self, name), ("value", "standard_error"))
        found["resolution"] = self.resolution
        found["density"] = _fields(self.density, ("grid", "density", "band", "width"))
        return jax.tree.map(_plain, found, is_leaf=lambda leaf: isinstance(leaf, np.ndarray))

    def to_json(self, path=None):
        """`to_dict` as a text; with a `path`, it is written there too."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        if path is not None:
            with open(path, "w") as file:
                file.write(text)
        return text


WIDTH = 28  # of what stands before a number


class SpectrumInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped `linops.spectrum`; `report` has what is known."""

    def __init__(self, report):
        super().__init__(f"Ctrl-C stopped it; what is known is in .report:\n{report}")
        self.report = report


def _text(estimate, scale=1):
    """A value with its standard error, of which two digits are shown."""
    value, error = scale * float(estimate.value), scale * float(estimate.standard_error)
    if not (0 < error < math.inf):
        return f"{value:.6g}"
    digits = 1 - math.floor(math.log10(error))
    if digits < -5 or error < 1e-6 * abs(value):
        return f"{value:.6g} ± {error:.1e}"
    return f"{round(value, digits):.{max(0, digits)}f} ± {round(error, digits):.{max(0, digits)}f}"


def _fields(value, names):
    return None if value is None else {name: getattr(value, name) for name in names}


def _plain(leaf):
    """As numbers and lists of Python; JSON has no NaN and no infinity."""
    if isinstance(leaf, np.ndarray | np.generic):
        leaf = leaf.tolist()
    if isinstance(leaf, list):
        return list(map(_plain, leaf))
    return None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf
