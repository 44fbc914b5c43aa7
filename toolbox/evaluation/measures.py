"""How good inpainted frames are: in holes, on known pixels and overall, against the truth; and what
can be told of them without one.

Frames are float32 [H, W, 3] in [0, 1] unless said otherwise, masks bool [H, W].
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from collections import defaultdict

import cv2
import numpy as np

from toolbox.geometry import matches
from utils import metrics

REGIONS = ("holes", "known", "all")
MEASURES = ("psnr", "ssim", "lpips", "energy", "flicker")
SEAM = 1  # pixels to either side of a hole's outline that count as its seam,
AWAY = (3, 6)  # and those that are compared with it


def telea(render, mask):
    """Every frame's holes filled by Telea's method (2004): uint8 [F, H, W, 3], bool [F, H, W]."""
    filled = []
    for frame, known in zip(render, mask, strict=True):
        filled.append(cv2.inpaint(frame, (~known).astype(np.uint8), 3, cv2.INPAINT_TELEA))
    return np.stack(filled)


class Sums:
    """Adds up maps over the regions of many frames."""

    def __init__(self):
        self.totals = defaultdict(float)
        self.counts = defaultdict(int)

    def add(self, name, values, mask, where=None):
        """Add a map [H, W]; `where`: only those pixels. mask: where the render is known."""
        for region, part in zip(REGIONS, (~mask, mask, None), strict=True):
            use = part if where is None else where if part is None else part & where
            picked = values if use is None else values[use]
            self.totals[name, region] += float(picked.sum(dtype=np.float64))
            self.counts[name, region] += picked.size

    def mean(self, name, region):
        """The mean over all pixels that were added, nan if there were none."""
        count = self.counts[name, region]
        return self.totals[name, region] / count if count else float("nan")


class Comparison:
    """Frames against their truth, frame by frame.

    lpips: what gives a perceptual distance map [H, W] of two frames, or None.
    """

    def __init__(self, lpips=None):
        self.lpips = lpips
        self.sums = Sums()
        self.before = None

    def add(self, frame, truth, mask, flow):
        """Take the next frame. flow: of the truth, as flow_back gives it; None for the first."""
        add = self.sums.add
        add("error", np.square(frame - truth).mean(-1), mask)
        add("ssim", metrics.ssim_map(frame, truth).mean(-1), mask)
        add("energy", metrics.gradient_energy(frame), mask)
        add("truth energy", metrics.gradient_energy(truth), mask)
        if self.lpips:
            add("lpips", self.lpips(frame, truth), mask)
        if flow:
            add("flicker", flicker(frame, self.before, flow[0]), mask, flow[1])
        self.before = frame

    def result(self):
        """{region: {measure: number}} of REGIONS and MEASURES; None for what was not measured.

        psnr in dB; energy: of gradients, as a share of the truth's; flicker: in levels of 255.
        """
        found = {}
        for region in REGIONS:
            def mean(name, region=region):
                return self.sums.mean(name, region)

            error = mean("error")
            found[region] = {
                "psnr": float(-10 * np.log10(error)) if error > 0 else None,
                "ssim": mean("ssim"),
                "lpips": mean("lpips") if self.lpips else None,
                "energy": mean("energy") / max(mean("truth energy"), 1e-12),
                "flicker": mean("flicker"),
            }
            for name, value in found[region].items():
                found[region][name] = value if value is not None and np.isfinite(value) else None
        return found


def flow_back(frame, before):
    """(flow float32 [H, W, 2] from a frame to the one before, bool [H, W] where it can be trusted).

    By DIS optical flow; trusted where forward and backward flow agree.
    """
    grey, grey_before = (cv2.cvtColor((255 * x).round().astype(np.uint8), cv2.COLOR_RGB2GRAY)
                         for x in (frame, before))
    flow, _, agree, _ = matches.flow_both_ways(grey, grey_before)
    return flow, agree


def flicker(frame, before, flow):
    """How much a frame differs from the one before, moved along the flow: levels of 255, [H, W]."""
    height, width = frame.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = cv2.remap(before, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REPLICATE)
    return 255 * np.abs(frame - moved).mean(-1)


def seam_bands(mask):
    """(pixels within SEAM of a hole's outline, pixels AWAY from it), bool [H, W] each."""
    holes = (~mask).astype(np.uint8)
    near = _distance(holes)
    return near <= SEAM, (near > AWAY[0]) & (near <= AWAY[1])


def _distance(holes):
    """How far each pixel is from the outline of the holes, pixels; the nearest have 1."""
    inside = cv2.distanceTransform(holes, cv2.DIST_L2, 5)
    outside = cv2.distanceTransform(1 - holes, cv2.DIST_L2, 5)
    return np.where(holes > 0, inside, outside)


class Plausibility:
    """What can be told of an output without its truth, frame by frame."""

    def __init__(self):
        self.sums = Sums()
        self.before = None

    def add(self, frame, render, mask):
        """Take the next frame of an output, and of the render that it was made of."""
        self.sums.add("error", np.square(frame - render).mean(-1), mask)
        energy = metrics.gradient_energy(frame)
        for name, band in zip(("seam", "away"), seam_bands(mask), strict=True):
            self.sums.add(name, energy, mask, band)
        if self.before is not None:
            flow, agree = flow_back(frame, self.before)
            self.sums.add("flicker", flicker(frame, self.before, flow), mask, agree)
        self.before = frame

    def result(self):
        """known_psnr, dB: how far known pixels are those of the render. seam: energy of gradients
        along the outlines of holes by that 3 to 6 pixels away, 1 where no seam shows. flicker in
        holes, and flicker_known, levels of 255. None for what cannot be told."""
        error = self.sums.mean("error", "known")
        found = {
            "known_psnr": float(-10 * np.log10(error)) if error > 0 else None,
            "seam": self.sums.mean("seam", "all") / max(self.sums.mean("away", "all"), 1e-12),
            "flicker": self.sums.mean("flicker", "holes"),
            "flicker_known": self.sums.mean("flicker", "known"),
        }
        return {name: value if value is not None and np.isfinite(value) else None
                for name, value in found.items()}
