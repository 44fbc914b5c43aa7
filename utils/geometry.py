"""Whether depth, K and poses belong to a video: what a wrong file shows of itself.

Sizes are (width, height) in pixels. Each InputError says both numbers.
"""

import cv2
import numpy as np

from utils.cli import InputError

ROUNDING = 0.03  # of the aspect, silently; up to STRETCH where sizes are multiples of so many:
STRETCH = 0.1
MULTIPLES = (64, 32, 16, 14, 8)  # that depth networks bring both sides to
OFF_CENTRE = 0.25  # of the picture, by which a principal point may lie off its middle
OTHERWISE = 0.1  # the same, of a K that is taken for one of another size
PAIRS = 6  # of frames that poses are tried on
SIDE = 160  # pixels of the longer side then
EARLY = 64  # frames at the beginning that they are taken from


def check_shape(name, size, video_size):
    """InputError unless depth maps show the whole picture of a video, the same way up.

    Networks that round both sides to a multiple stretch the picture by up to a tenth; what else
    differs in aspect by more than 3% is a crop.
    """
    if _fits(size, video_size):
        return
    got = f"{name}: got depth maps of {size[0]} x {size[1]} for a video of {video_size[0]} x " \
          f"{video_size[1]}"
    if _fits(size[::-1], video_size):
        raise InputError(f"{got} as it is shown; expected the same way up: made from its frames "
                         "without their rotation tag? turn the maps (numpy.rot90), or make them "
                         "again from the frames as shown")
    apart = abs(_aspect(size) / _aspect(video_size) - 1)
    raise InputError(f"{got}: aspects of {_aspect(size):.3f} and {_aspect(video_size):.3f}, "
                     f"{apart:.0%} apart; expected the whole picture, neither cropped nor padded: "
                     "make depth and video from the same frames")


def _aspect(size):
    return size[0] / size[1]


def _fits(size, video_size):
    """Whether a depth map's size may be a video's, scaled and rounded."""
    apart = abs(_aspect(size) / _aspect(video_size) - 1)
    if apart <= ROUNDING or _is_rounded(size, video_size, 1):
        return True
    multiples = [m for m in MULTIPLES if size[0] % m == 0 and size[1] % m == 0]
    return apart <= STRETCH and any(_is_rounded(size, video_size, m) for m in multiples)


def _is_rounded(size, video_size, multiple):
    """Whether some scale of a video's size is within half a multiple of a size on both sides."""
    low = max((side - multiple / 2) / whole for side, whole in zip(size, video_size, strict=True))
    high = min((side + multiple / 2) / whole for side, whole in zip(size, video_size, strict=True))
    return low <= high


def in_video_pixels(name, k, size, video_size):
    """(K in pixels of the video, a note or None) of K [..., 3, 3] in pixels of the depth maps.

    The principal point tells where K is of the video's own size, or normalised to 1, instead. It is
    taken for that then, and the note says so. InputError where it is of no size that is known.
    """
    ks = np.array(k, np.float64)
    centre = np.median(ks.reshape(-1, 3, 3)[:, :2, 2], 0)
    depth_size = "the depth maps' size, {} x {}".format(*size)
    own_size = "the video's size, {} x {}".format(*video_size)
    sizes = {depth_size: size, own_size: video_size, "size 1 (normalised)": (1, 1)}
    off = {what: np.abs(centre / side - 0.5).max() for what, side in sizes.items()}
    taken = min(off, key=off.get)
    if off[depth_size] < 0.02 or (off[depth_size] < OFF_CENTRE and off[taken] > 0.02):
        taken = depth_size
    if off[taken] >= (OFF_CENTRE if taken == depth_size else OTHERWISE):
        raise InputError(f"{name}: K has its principal point at {centre[0]:.6g} {centre[1]:.6g}, "
                         f"as of a picture of about {2 * centre[0]:.0f} x {2 * centre[1]:.0f}; "
                         f"expected near its middle at {depth_size}: scale K to that")
    note = None
    if taken != depth_size:
        note = (f"{name}: K has its principal point at {centre[0]:.6g} {centre[1]:.6g}, so it is "
                f"taken for one at {taken}, not at {depth_size}")
    return ks / scale(video_size, sizes[taken]), note


def scale(video_size, size):
    """Factors [3, 3] from K in pixels of a video to K in pixels of the same picture at `size`.

    The focal lengths share one factor where the sides' are equal to rounding.
    """
    sx, sy = np.array(size) / video_size
    focal = np.array([sx, sy])
    if abs(sx / sy - 1) <= STRETCH:
        focal[:] = np.sqrt(sx * sy)  # rounded sides are no other pixel shape
    return np.array([[focal[0], 1, sx], [1, focal[1], sy], [1, 1, 1]])


def check_poses_move(name, frames, depth, k, c2w):
    """InputError if the scene stands still under the inverse of poses, and moves under them.

    That is what world to camera, given as camera to world, looks like. frames: uint8
    [N, h, w, 3]; depth: [N, h, w], 0 where unknown; k: [N, 3, 3] in pixels of these frames; c2w:
    [N, 4, 4]. A static scene has, at a pixel's place in another frame, the same grey.
    """
    if len(frames) < 2:
        return
    changes = {}
    still = np.tile(np.eye(4), (len(c2w), 1, 1))
    for what, poses in (("given", c2w), ("inverse", np.linalg.inv(c2w)), ("none", still)):
        changes[what] = _grey_change(frames, depth, k, poses)
    given, inverse, none = changes.values()
    if inverse < 0.7 * given and inverse < none < given:
        raise InputError(f"{name}: under these poses frames differ by {given:.1f} of 255, without "
                         f"them by {none:.1f}, under their inverses by {inverse:.1f}: they "
                         "are world to camera; expected camera to world: invert them "
                         "(numpy.linalg.inv)")


def _grey_change(frames, depth, k, c2w):
    """Median change of grey, 0 to 255, of what is followed from frame to frame by depth."""
    grey = []
    for frame in frames:
        smooth = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
        grey.append(smooth.astype(np.float32))
    gap = max(1, len(frames) // 8)
    medians = []
    for a in np.unique(np.linspace(0, len(frames) - gap - 1, PAIRS).astype(int)):
        b = a + gap
        x, y, _, seen = follow(depth[a], k[a], k[b], np.linalg.inv(c2w[b]) @ c2w[a])
        there = cv2.remap(grey[b], x, y, cv2.INTER_LINEAR)
        if seen.mean() > 0.1:
            medians.append(np.median(np.abs(there - grey[a])[seen]))
    return np.median(medians) if medians else np.nan


def follow(depth, k, k_other, motion):
    """Where pixels of a frame are in another: (x, y, z, whether they are in it), each [h, w].

    depth [h, w], z; k, k_other [3, 3]: in its pixels; motion [4, 4]: to the other's camera. x, y in
    pixels, z in units of depth, inf for what is not in front of the other camera.
    """
    height, width = depth.shape
    v, u = np.mgrid[:height, :width]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(depth)], -1)
    points = rays * depth[..., None] @ motion[:3, :3].T + motion[:3, 3]
    z = np.where(points[..., 2] > 0, points[..., 2], np.inf)
    x = (k_other[0, 0] * points[..., 0] / z + k_other[0, 2]).astype(np.float32)
    y = (k_other[1, 1] * points[..., 1] / z + k_other[1, 2]).astype(np.float32)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return x, y, z, inside & np.isfinite(z) & (depth > 0)
