"""Figures of spectra, by Matplotlib; `import linops.plot` imports it, and `import linops` does not.

Colors are those of Okabe and Ito, told apart by the color-blind; what a color tells, a marker, a line or hatching tells
too, for prints in black and white.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linops.estimate.densities import Density

BLUE, ORANGE, GREEN, BLACK, GRAY = "#0072B2", "#D55E00", "#009E73", "#000000", "#666666"
FAR_BELOW = 1e-4  # of a tolerance; what is smaller tells nothing more
DECADES = 5  # below the top of a density, that are shown
SIZE = (7, 4.2)
FORMATS = tuple(Figure().canvas.get_supported_filetypes())


def density(found, ax=None):
    """Draw a spectral density on a log scale, with its band, and the eigenvalues that are known; returns the axes.

    `found` is a `Density` of `linops.estimate.spectral_density`, or a `Report` of `linops.spectrum`, of which the
    eigenvalues at both ends are marked. The band is two standard errors to both sides; the width of smoothing is in the
    legend. Without `ax` the figure is a new one, `ax.figure`, which needs no display and no `pyplot`, and has a second
    panel for the bulk where outliers make it narrow.

    >>> import linops.plot
    >>> report = linops.spectrum(linops.Diagonal(jnp.linspace(-1.0, 1.0, 100)))
    >>> ax = linops.plot.density(report)
    >>> ax.get_xlabel(), ax.get_yscale()
    ('eigenvalue', 'log')
    """
    measured, report = (found, None) if isinstance(found, Density) else (found.density, found)
    bulk = None if measured is None else _bulk(measured)
    if ax is not None or bulk is None:
        ax = _axes(ax)
        _draw(ax, measured, report)
    else:  # outliers leave no room for what all the others do
        ax, beside = _axes(None, panels=2)
        for panel in (ax, beside):
            _draw(panel, measured, report)
        beside.set_xlim(*bulk)
        beside.set_ylabel("")
        beside.set_title("the bulk alone", fontsize="medium")
        beside.get_legend().remove()
    ax.set_title("Spectral density" if report is None else f"Spectrum of {report.operator}", fontsize="medium")
    return ax


def _bulk(measured):
    """Where most eigenvalues are, if that is a small part of the whole range."""
    grid, values = np.asarray(measured.grid, np.float64), np.asarray(measured.density, np.float64)
    parts = np.diff(grid) * (values[1:] + values[:-1]) / 2
    share = np.cumsum(parts) / np.sum(parts)
    low, high = grid[np.searchsorted(share, 0.001)], grid[1 + np.searchsorted(share, 0.98)]
    margin = 6 * float(measured.width)
    return (low - margin, high + margin) if high - low + 2 * margin < (grid[-1] - grid[0]) / 4 else None


def _draw(ax, measured, report):
    if measured is not None:
        _draw_density(ax, measured)
    if report is not None:
        _draw_ends(ax, report)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density of eigenvalues (integral 1)")
    ax.axvline(0, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    ax.legend(fontsize="small", framealpha=0.9)


def _draw_density(ax, measured):
    grid, values, band = (np.asarray(a, np.float64) for a in (measured.grid, measured.density, measured.band))
    top = np.max(values + 2 * band)
    bottom = top * 10.0**-DECADES
    shown = np.where(values >= bottom / 10, values, bottom / 10)  # lines fall below the axis, and do not end
    ax.plot(grid, shown, color=BLUE, linewidth=1.2, label=f"density, smoothed by {float(measured.width):.2g}")
    if np.any(band > 0):
        low, high = (np.maximum(values + side * band, bottom / 10) for side in (-2, 2))
        ax.fill_between(
            grid, low, high, facecolor=BLUE, alpha=0.3, hatch="////", edgecolor=BLUE, linewidth=0,
            label="± 2 standard errors",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(bottom, top * 4)


def _draw_ends(ax, report):
    """The eigenvalues at both ends, in the lower part of the axes, which is theirs on every scale."""
    place = ax.get_xaxis_transform()
    for end, marker, color in (("largest", "^", ORANGE), ("smallest", "v", GREEN)):
        values = getattr(report, end)
        values = values[np.isfinite(values)]
        ax.plot(
            values, np.full(len(values), 0.04), transform=place, linestyle="none", marker=marker, markersize=7,
            markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.3, label=f"the {len(values)} {end}",
        )  # fmt: skip


def eigenvalues(found, residuals=None, ax=None):
    """Draw eigenvalues by rank, with bars as long as their residual norms; returns the axes.

    `found` is a `Report`, or an array of eigenvalues with, if they are known, their `residuals`. The scale is
    logarithmic to both sides of zero where they are of several sizes; negative ones are marked apart.

    >>> import linops.plot
    >>> ax = linops.plot.eigenvalues(np.array([-0.5, 3.0, 2.0]), residuals=np.array([0.1, 0.1, 0.2]))
    >>> ax.get_ylabel()
    'eigenvalue'
    """
    ax = _axes(ax)
    if hasattr(found, "eigenvalues"):
        ax.set_title(f"Ends of the spectrum of {found.operator}", fontsize="medium")
        found, residuals = found.eigenvalues, found.residuals
    values = np.asarray(found, np.float64)
    errors = np.zeros_like(values) if residuals is None else np.asarray(residuals, np.float64)
    order = np.argsort(-values)[: np.sum(np.isfinite(values))]  # NaN comes last
    values, errors = values[order], errors[order]
    rank = np.arange(1, len(values) + 1)
    for sign, marker, color in (("positive", "o", BLUE), ("negative", "s", ORANGE)):
        chosen = values < 0 if sign == "negative" else values >= 0
        if np.any(chosen):
            ax.errorbar(
                rank[chosen], values[chosen], errors[chosen], linestyle="none", marker=marker, markersize=6,
                markerfacecolor="none", markeredgewidth=1.3, color=color,
                label=sign if residuals is None else f"{sign}, ± residual norm",
            )  # fmt: skip
    sizes = np.abs(values[values != 0])
    if len(sizes) and np.max(sizes) > 100 * np.min(sizes):
        ax.set_yscale("symlog", linthresh=max(np.min(sizes), 1e-6 * np.max(sizes)))
    ax.axhline(0, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank, from the largest known on")
    ax.set_ylabel("eigenvalue")
    if len(values):
        ax.legend(fontsize="small")
    return ax


def convergence(records, ax=None):
    """Draw how residual norms fell with products, each in units of its tolerance; returns the axes.

    `records` are those that a callback saw, as `history = []` and `callback=history.append` of `linops.linalg.eigsh`
    and `svds`.

    >>> import linops.plot
    >>> history = []
    >>> A = linops.Diagonal(jnp.linspace(0.0, 1.0, 1000) ** 2)
    >>> w, v = linops.linalg.eigsh(A, 2, tol=1e-3, callback=history.append)
    >>> linops.plot.convergence(history).get_xlabel()
    'products'
    """
    ax = _axes(ax)
    if not len(records):
        raise ValueError("convergence got no records, expected those of a run: callback=history.append keeps them")
    products = np.array([int(record.matvecs) for record in records])
    residuals, tolerance = (
        np.array([np.ravel(getattr(record, name)) for record in records], np.float64)
        for name in ("residual_norms", "tolerance")
    )
    shares = residuals / tolerance
    for i, row in enumerate(shares):  # a bound of 0 is one of a pair that converged, and is not looked at again
        row[:] = np.where(row > 0, row, np.minimum(shares[i - 1] if i else 1, 1))
    count = shares.shape[1]
    ax.plot(products, shares, color=BLUE, linewidth=0.7, label=["each"] + ["_"] * (count - 1))
    ax.plot(
        products, np.max(shares, axis=1), marker="o", markersize=4, color=ORANGE, linewidth=1.6, label="the largest"
    )
    ax.axhline(1, linestyle="--", color=BLACK, linewidth=1, label="converged below")
    ax.set_yscale("log")
    ax.set_ylim(bottom=FAR_BELOW)
    ax.set_xlabel("products")
    ax.set_ylabel(f"residual norms of {count} pairs / tolerance")
    ax.legend(fontsize="small")
    return ax


def _axes(ax, panels=1):
    """The axes, or those of a new figure."""
    if ax is None:
        figure = Figure(figsize=(SIZE[0] * (1 + panels) / 2, SIZE[1]), layout="constrained", dpi=150)
        ax = figure.subplots(1, panels, squeeze=False)[0]
        for panel in ax:
            panel.spines[["top", "right"]].set_visible(False)
        return ax[0] if panels == 1 else ax
    return ax
