"""Figures: what they show, in what scales, and that no color is the only thing that tells."""

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import linops
import linops.plot
from linops.linalg.records import Record

mpl.use("agg")

VALUES = np.r_[np.linspace(-1, 1, 150), 40, 50]


@pytest.fixture(scope="module")
def report():
    return linops.spectrum(linops.Diagonal(jnp.asarray(VALUES, jnp.float32)), 2)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_density_of_a_report(report, tmp_path):
    ax = report.plot(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == (
        "log",
        "eigenvalue",
        "density of eigenvalues (integral 1)",
    )
    assert "Spectrum of <152x152 Diagonal with dtype=float32>" in ax.get_title()
    assert texts(ax) == [f"density, smoothed by {report.density.width:.2g}", "the 2 largest", "the 2 smallest"]
    line, largest, smallest = ax.lines[:3]
    np.testing.assert_array_equal(line.get_xdata(), report.density.grid)
    np.testing.assert_array_equal(largest.get_xdata(), report.largest)
    np.testing.assert_array_equal(smallest.get_xdata(), report.smallest)
    assert largest.get_marker() != smallest.get_marker()


def test_the_bulk_beside_outliers(report):
    """It has a panel of its own, where it would be a line in the other one."""
    ax = linops.plot.density(report)
    _, beside = ax.figure.axes
    low, high = beside.get_xlim()
    assert low < -1 < 1 < high < 40
    given = linops.plot.density(report, ax=mpl.figure.Figure().add_subplot())
    assert given.figure.axes == [given]


def test_density_with_a_band():
    grid = np.linspace(-1, 1, 50)
    found = linops.estimate.Density(grid, np.full(50, 0.5), np.full(50, 0.1), 0.02, 100)
    ax = linops.plot.density(found)
    assert texts(ax) == ["density, smoothed by 0.02", "± 2 standard errors"]
    (band,) = ax.collections
    assert band.get_hatch()
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [0.3, 0.7])
    assert ax.figure.axes == [ax]


def test_eigenvalues(report):
    ax = linops.plot.eigenvalues(report)
    assert ax.get_yscale() == "linear"
    assert texts(ax) == ["positive, ± residual norm", "negative, ± residual norm"]
    assert len({bar.lines[0].get_marker() for bar in ax.containers}) == 2
    ax = linops.plot.eigenvalues(np.array([np.nan, 1e3, 1.0, 0.0, -1e-3]))
    assert ax.get_yscale() == "symlog"
    np.testing.assert_array_equal(ax.containers[0].lines[0].get_ydata(), [1e3, 1, 0])


def test_convergence():
    """Each pair in units of its tolerance; a bound of 0 is one of a pair that is done with."""
    rows = [[1e-2, 1e-3], [1e-3, 1e-5], [2e-5, 0]]
    records = [
        Record(
            np.array([False, False]), np.int32(4), np.int32(1), np.int32(10 * i), np.array(row), np.array([1e-4, 1e-4])
        )
        for i, row in enumerate(rows)
    ]
    ax = linops.plot.convergence(records)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [10, 0.1, 0.1])
    np.testing.assert_allclose(ax.lines[2].get_ydata(), [100, 10, 0.2])
    np.testing.assert_array_equal(ax.lines[2].get_xdata(), [0, 10, 20])
    with pytest.raises(ValueError, match="convergence got no records, expected those of a run"):
        linops.plot.convergence([])
