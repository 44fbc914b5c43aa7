"""A picture of what a run would render: frames of each path with their holes, and the paths themselves."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from utils import trajectory


def write(path, names, cameras, rows, moments, radius):
    """Write a sheet: a row of frames a path, with the hole share, and its phi, theta, r over time; last, all in 3D.

    cameras: trajectory.Cameras of each path. rows: (uint8 [m, H, W, 3], bool [m, H, W]) of each path, its frames at
    `moments`. radius: R of the orbits in depth units.
    """
    count, columns = len(names), len(moments) + 1
    height, width = rows[0][0].shape[1:3]
    figure = plt.figure(figsize=(4 * columns, 4 * height / width * count + 5), layout="constrained")
    grid = figure.add_gridspec(count + 1, columns, height_ratios=[4 * height / width] * count + [5])
    for row, (name, (pixels, masks)) in enumerate(zip(names, rows, strict=True)):
        for column, (frame, mask) in enumerate(zip(pixels, masks, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(frame)
            axes.set_title(f"{name}, frame {moments[column]}: {1 - mask.mean():.0%} holes", fontsize=9)
            axes.axis("off")
        plot_angles(figure.add_subplot(grid[row, -1]), cameras[row], radius)
    plot_positions(figure.add_subplot(grid[count, :], projection="3d"), names, cameras)
    part = path.with_name(f"{path.name}.part")
    figure.savefig(part, format="png", dpi=80)
    plt.close(figure)
    part.replace(path)


def plot_angles(axes, cameras, radius):
    """phi and theta in degrees and r in percent of the radius, over the frames."""
    phi, theta, r = trajectory.angles(cameras.c2w, radius)
    for label, values in (("phi (deg)", phi), ("theta (deg)", theta), ("r (% of radius)", 100 * r)):
        axes.plot(values, label=label)
    axes.set_xlabel("frame", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)


def plot_positions(axes, names, cameras):
    """Where the cameras stand relative to the source camera, and a tick in the direction in which each looks."""
    for name, path in zip(names, cameras, strict=True):
        x, y, z = path.c2w[:, :3, 3].T
        (line,) = axes.plot(x, z, -y, label=name)
        tick = 0.15 * max(1e-6, abs(path.c2w[:, :3, 3]).max())
        for pose in path.c2w[:: max(1, len(x) // 6)]:
            ends = [pose[:3, 3], pose[:3, 3] + tick * pose[:3, 2]]
            axes.plot(*[[p[i] * sign for p in ends] for i, sign in ((0, 1), (2, 1), (1, -1))], color=line.get_color())
    axes.scatter(0, 0, 0, color="black", label="source camera")
    axes.set(xlabel="right", ylabel="forward", zlabel="up", aspect="equal")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.05, 1))
