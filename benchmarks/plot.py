"""The table as a picture: how many times the time, or memory, of linops each rival takes, row by row."""

from matplotlib.figure import Figure


def draw(report, path):
    rows = {name: row["times"] for name, row in report["rows"].items()}
    rivals = sorted({rival for times in rows.values() for rival in times} - {"linops"})
    figure = Figure(figsize=(10, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color="black", linewidth=1)
    for i, rival in enumerate(rivals):
        found = [(y, times[rival][1] / times["linops"][1]) for y, times in enumerate(rows.values()) if rival in times]
        marker = "os^vD<>PX*"[i % 10]
        axes.plot([ratio for _, ratio in found], [y for y, _ in found], marker, label=rival, alpha=0.8)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time, or memory, in that of linops")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path)
