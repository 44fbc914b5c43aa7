"""A picture of what a run would render: frames of each path, their holes, and the paths."""

from matplotlib.figure import Figure

from utils import files, trajectory

TICKS = 7  # along a path in 3D, about that many show where the camera looks


def write(path, paths, views, moments, pivot):
    """Write a sheet, a line a path: frames with their hole share, and its angles over time.

    The last line shows all paths in 3D. paths: (name, trajectory.Cameras). views: of each path,
    (uint8 [m, H, W, 3], bool [m, H, W]), its frames at `moments` and where they are known.
    pivot: as of trajectory.angles, or None if the paths turn about no point.
    """
    columns = len(moments) + 1
    height, width = views[0][0].shape[1:3]
    heights = [4 * height / width] * len(paths) + [5]
    figure = Figure(figsize=(4 * columns, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(paths) + 1, columns, height_ratios=heights)
    for line, (name, cameras) in enumerate(paths):
        pixels, known = views[line]
        for column, moment in enumerate(moments):
            axes = figure.add_subplot(grid[line, column])
            axes.imshow(pixels[column])
            share = 1 - known[column].mean()
            axes.set_title(f"{name}, frame {moment}: {share:.0%} holes", fontsize=9)
            axes.axis("off")
        plot_angles(figure.add_subplot(grid[line, -1]), cameras, pivot)
    plot_positions(figure.add_subplot(grid[-1, :], projection="3d"), paths)
    with files.whole(path) as part:
        figure.savefig(part, format="png", dpi=80)


def plot_angles(axes, cameras, pivot):
    """phi and theta in degrees and r in percent of the way to the pivot, over the frames."""
    phi, theta, r = trajectory.angles(cameras.c2w, 1 if pivot is None else pivot)
    axes.plot(phi, label="phi (deg)")
    axes.plot(theta, label="theta (deg)")
    if pivot is not None:
        axes.plot(100 * r, label="r (% of radius)")
    axes.set_xlabel("frame", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)


def plot_positions(axes, paths):
    """Where the cameras stand relative to the source camera; ticks show where they look."""
    for name, cameras in paths:
        position = cameras.c2w[:, :3, 3]
        (line,) = axes.plot(*to_plot(position), label=name)
        tick = 0.15 * max(1e-6, abs(position).max())
        for pose in cameras.c2w[:: max(1, len(position) // (TICKS - 1))]:
            ends = pose[:3, 3] + [[0], [tick]] * pose[:3, 2]
            axes.plot(*to_plot(ends), color=line.get_color())
    axes.scatter(0, 0, 0, color="black", label="source camera")
    axes.set(xlabel="right", ylabel="forward", zlabel="up", aspect="equal")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.05, 1))


def to_plot(points):
    """Points [n, 3] in OpenCV's axes to the plot's: right, forward, up."""
    return points[:, 0], points[:, 2], -points[:, 1]
