"""linops beside its rivals on the same work, in turn in one process, and beside what the machine does at best.

    python benchmarks [--rows WORDS] [--seconds S] [--json FILE] [--plot FILE] [--growth] [--first]

Each row prints the median of each rival (and its quartiles), in times of linops, and what is lost to the
limits: operations by XLA's count over the machine's measured rate, bytes over its measured rate of copying. At the end
stand the bars, met or not. Rivals that are not installed are left out: `pip install '.[peers]'` brings them.
"""

import argparse
import warnings

import bars
import first
import growth
import measure
import plot
import rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows",
        default="",
        metavar="WORDS",
        help="only rows whose names contain these words; more words after a comma",
    )
    parser.add_argument("--seconds", type=float, default=4, help="about how long each rival of a row is measured")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", metavar="FILE", help="draw them there")
    parser.add_argument("--growth", action="store_true", help="also time and memory against n, examples and columns")
    parser.add_argument("--first", action="store_true", help="also the first products of a hundred functions")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of torch and SciPy, on each import
    machine = measure.machine()
    report = {"machine": machine, "rows": {}, "growth": {}, "first": {}, "bars": {}}
    print(
        f"{machine['device']}, {machine['cores']} cores, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + f"\nat best {machine['flops_per_second'] / 1e9:.0f} Gflop/s, {machine['bytes_per_second'] / 1e9:.1f} GB/s\n"
    )
    for name, make in (rows.ROWS | rows.MEMORY).items():
        if any(words in name for words in options.rows.split(",")):
            show = _bytes if name in rows.MEMORY else _seconds
            report["rows"][name] = _row(name, make, machine, options.seconds, show)
    if options.growth:
        report["growth"] = growth.report()
    if options.first:
        report["first"] = first.report()
    report["bars"] = bars.judge(report)
    if options.json:
        measure.save(report, options.json)
    if options.plot:
        plot.draw(report, options.plot)


def _row(name, make, machine, seconds, show):
    calls, cost = make()
    times = calls if _is_measured(calls) else measure.interleaved(calls, seconds)
    print(name)
    ours = times["linops"][1]
    for rival, (low, median, high) in times.items():
        ratio = "" if rival == "linops" else f"  {median / ours:8.2f}"
        print(f"    {rival:45} {show(median):>12}  ({show(low)} to {show(high)}){ratio}", flush=True)
    limits = {}
    if cost:
        limits = {
            "arithmetic": cost["flops"] / machine["flops_per_second"],
            "bytes": cost["bytes"] / machine["bytes_per_second"],
        }
        print(f"    at best {_seconds(limits['arithmetic'])} of arithmetic, {_seconds(limits['bytes'])} of memory")
    print()
    return {"times": times, "limits": limits}


def _is_measured(values):
    return not any(callable(value) for value in values.values())


def _bytes(count):
    return f"{count / 2**20:.1f} MB"


def _seconds(seconds):
    unit, scale = next((u, s) for u, s in (("s", 1), ("ms", 1e3), ("us", 1e6)) if seconds * s >= 1 or u == "us")
    return f"{seconds * scale:.3g} {unit}"


if __name__ == "__main__":
    main()
