"""A picture of what was found of a video's geometry: geometry.png."""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import textwrap

import numpy as np

from utils import files


def write(path, found):
    """Draw frames, their depth in colour, the camera's path from above and the misfit over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    grid = figure.add_gridspec(3, 12, height_ratios=(1, 1, 1.3))
    shown = sorted(found.pictures)
    wide = 12 // len(shown)
    log = np.log10(np.maximum(found.disparity[shown], 1e-9))
    limits = np.quantile(log, (0.02, 0.98))
    for column, t in enumerate(shown):
        at = slice(column * wide, (column + 1) * wide)
        for row, (image, options) in enumerate((
                (found.pictures[t], {}),
                (log[column], {"cmap": "turbo", "vmin": limits[0], "vmax": limits[1]}))):
            axes = figure.add_subplot(grid[row, at])
            axes.imshow(image, **options)
            axes.set_axis_off()
            axes.set_title(f"frame {t}" if row == 0 else "depth: red is near, blue is far",
                           fontsize=9)
    plot_path(figure.add_subplot(grid[2, :5]), found.c2w)
    plot_misfit(figure.add_subplot(grid[2, 5:]), found)
    words = [line for sentence in found.sentences
             for line in textwrap.wrap(f"verdict: {sentence}", 130)]
    figure.suptitle("\n".join(words), fontsize=10, color="darkred" if found.flags else "darkgreen")
    with files.whole(path) as part:
        figure.savefig(part, format="png", dpi=90)


def plot_path(axes, c2w):
    """The camera from above, x to the right and z ahead, looking along short lines."""
    x, _, z = c2w[:, :3, 3].T
    axes.plot(x, z, color="0.4", linewidth=1)
    for t in np.linspace(0, len(c2w) - 1, min(9, len(c2w))).astype(int):
        ahead = c2w[t, :3, 2] * 0.15 * max(np.ptp(x), np.ptp(z), 1e-3)
        axes.plot([x[t], x[t] + ahead[0]], [z[t], z[t] + ahead[2]], color="tab:red")
    axes.plot(x[0], z[0], "o", color="tab:green", label="first frame")
    axes.set(title="the camera's path from above", xlabel="x, to the right", ylabel="z, ahead")
    axes.axis("equal")
    axes.legend(fontsize=8)


def plot_misfit(axes, found):
    """Each frame's misfit."""
    axes.plot(found.misfit, color="tab:blue")
    for t in found.cuts:
        axes.axvline(t, color="tab:red", linestyle=":")
    top = np.nanmax(found.misfit) if np.isfinite(found.misfit).any() else 1
    axes.set(title="how far matches are from where depth and cameras put them", xlabel="frame",
             ylabel="median, pixels", ylim=(0, max(1, 1.1 * top)))
