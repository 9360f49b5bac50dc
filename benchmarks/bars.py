"""The bars: what the table has to show, judged by the figures of the same run."""

import math

from problems import KINDS

HESSIAN = "Hessian of the digits network, product, n = {:,}"
GGN = "Gauss-Newton of the digits network, product, n = {:,}"
SIZES = (2_410, 85_002, 1_126_410)
WAYS = "ways to a Hessian product on the device: {}"
CHAIN, FIRST = "chain_of_100_points", "first product, compilation included, n = {:,}"


def judge(report):
    """Print and return, by bar, the figure, the bound, and whether it is met; what was not run is left out."""
    verdicts = {}
    for name, (rows, figure, bound, at_least) in BARS.items():
        if not all(row in report["rows"] or row in _tables(report) for row in rows):
            continue
        value = figure(*(_medians(report, row) for row in rows))
        if math.isnan(value):  # a rival that is not installed
            continue
        met = value >= bound if at_least else value <= bound
        verdicts[name] = {"value": value, "bound": bound, "met": bool(met)}
        sign = ">=" if at_least else "<="
        print(f"{'met    ' if met else 'NOT MET'}  {name}: {value:.3g} (bar: {sign} {bound:g})")
    return verdicts


def _tables(report):
    return report["growth"] | report["first"]


def _medians(report, row):
    if row in _tables(report):
        return _tables(report)[row]
    return {rival: times[1] for rival, times in report["rows"][row]["times"].items()}


def _times_faster(rival, ours="linops"):
    return lambda times: times[rival] / times[ours] if rival in times else float("nan")


def _of_best_bare(times):
    return times["linops"] / min(median for rival, median in times.items() if rival.startswith("bare"))


EIGSH = "eigsh(k=10) of the Hessian, n = 85,002"
GRAM = "gram_at_two_points"
TINY, SMALL = "overhead: Hessian of sum(x**4), n = 10", "overhead: Hessian of sum(x**4), n = 1,000"
BLOCK = "block of 256 columns, Hessian, n = 2,410"

# name: (rows, figure of their medians, bound, whether the figure has to be at least the bound)
BARS = {
    "eigsh, BLAS on one thread, times faster than by hand": (
        [EIGSH],
        _times_faster("by hand", "linops, BLAS on one thread"),
        1.8,
        True,
    ),
    "eigsh, BLAS on one thread, times faster than curvlinops": (
        [EIGSH],
        _times_faster("curvlinops", "linops, BLAS on one thread"),
        10,
        True,
    ),
    **{
        f"{row.format(n)}, times faster than curvlinops": ([row.format(n)], _times_faster("curvlinops"), 1.5, True)
        for row in (HESSIAN, GGN)
        for n in SIZES
    },
    **{
        f"{HESSIAN.format(n)}, of the best bare program": ([HESSIAN.format(n)], _of_best_bare, 1.05, False)
        for n in SIZES[1:]
    },
    **{
        f"product of a Hessian, {kind}, of all kept": (
            [WAYS.format(kind)],
            lambda t: t["linops"] / t["forward over reverse, all kept"],
            1.1,
            False,
        )
        for kind in (make.__name__.replace("_", " ") for make in KINDS)
    },
    "n = 1,000, of the hand-written operator": ([SMALL], lambda t: t["linops"] / t["by hand"], 1.2, False),
    "n = 10, seconds beyond the hand-written operator": ([TINY], lambda t: t["linops"] - t["by hand"], 30e-6, False),
    "J(x1) J(x2)^T, times faster than vmapped": ([GRAM], _times_faster("vmapped"), 20, True),
    "J(x1) J(x2)^T, of the jitted one": (
        [GRAM],
        lambda t: t["linops"] / min(t["direct, jitted"], t["vmapped, jitted"]),
        1,
        False,
    ),
    "100 points, times faster than a jitted closure at each": (
        [CHAIN],
        _times_faster("by hand, a jitted closure at each point"),
        20,
        True,
    ),
    "256 columns, times the throughput of one by one": ([BLOCK], _times_faster("linops, one by one"), 1.5, True),
    **{
        f"{FIRST.format(n)}, of the hand-written": (
            [FIRST.format(n)],
            lambda t: t["linops"] / t["by hand"],
            1.5,
            False,
        )
        for n in SIZES[:2]
    },
    "first products, of by hand in the median": (["first products"], lambda t: t["median"], 1.5, False),
    "first products, of by hand at worst": (["first products"], lambda t: t["worst"], 2.2, False),
    "import linops, seconds": (["import"], lambda t: t["linops"], 0.1, False),
    "exponent of time against n": (["n"], lambda g: g["exponent"], 1.05, False),
    "exponent of time against examples": (["examples"], lambda g: g["exponent"], 1.05, False),
    "memory of 4,096 columns beside that of 1,024": (["columns"], lambda g: g["ratio"], 1.5, False),
}
