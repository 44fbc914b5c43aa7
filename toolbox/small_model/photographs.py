"""Photographs under free licences that installed packages ship, as textures to train on.

scikit-image's motorcycle pair is not among them: it is kept to evaluate on.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import contextlib
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F

LICENCES = {  # as the packages state them
    "skimage astronaut": "public domain (NASA)",
    "skimage brick": "CC0 (CC0Textures)",
    "skimage camera": "CC0 (Lav Varshney)",
    "skimage cell": "CC0 (Paul Mueller et al.)",
    "skimage chelsea": "CC0 (Stefan van der Walt)",
    "skimage clock": "public domain (Stefan van der Walt)",
    "skimage coffee": "CC0 (Rachel Michetti)",
    "skimage coins": "no known copyright restrictions (Brooklyn Museum)",
    "skimage grass": "CC0 (linolafett, DeviantArt)",
    "skimage gravel": "CC0 (CC0Textures)",
    "skimage hubble_deep_field": "public domain (NASA, HubbleSite)",
    "skimage immunohistochemistry": "no known copyright restrictions (CMMI)",
    "skimage retina": "CC0 (Mikael Haeggstroem)",
    "skimage rocket": "public domain (SpaceX)",
    "skimage text": "public domain (Wikipedia, Corner.png)",
    "sklearn china.jpg": "CC BY (danielbuechele, Flickr)",
    "sklearn flower.jpg": "CC BY (vultilion, Flickr)",
    "matplotlib grace_hopper.jpg": "public domain (US Navy)",
}
SIZE = 256  # pixels to a side in memory
LEVELS = 6  # each half as fine as the one before


def load(name):
    """One of LICENCES, uint8 [H, W, 3]. ImportError or OSError where its package has it not."""
    package, picture = name.split()
    if package == "skimage":
        from skimage import data

        found = getattr(data, picture)()
    elif package == "sklearn":
        from sklearn.datasets import load_sample_image

        found = load_sample_image(picture)
    else:
        from matplotlib import cbook

        with cbook.get_sample_data(picture) as file:
            found = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(found if found.ndim == 3 else np.stack([found] * 3, -1))


def pyramid(picture):
    """Linear RGB [1, 3, LEVELS, SIZE, SIZE] float32: ever coarser, all in the same size."""
    small = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    x = torch.from_numpy(small).permute(2, 0, 1)[None] / 255.0  # [1, 3, SIZE, SIZE]
    x = x**2.2
    levels = [x]
    for k in range(1, LEVELS):
        coarse = F.avg_pool2d(x, 2**k)
        levels.append(F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear"))
    return torch.stack(levels, 2)


@lru_cache
def pyramids(device):
    """{name of LICENCES: its pyramid} of all photographs that are there."""
    found = {}
    for name in LICENCES:
        with contextlib.suppress(ImportError, OSError):
            found[name] = pyramid(load(name)).to(device)
    return found


def missing():
    """A note of the photographs that are not there, which are grey; "" if none is missing."""
    names = [name for name in LICENCES if name not in pyramids(torch.device("cpu"))]
    return f"note: no photographs {', '.join(names)}; they are grey\n" if names else ""


def sample(number, q, w):
    """Linear RGB [3, n] at q [2, n], x and y down; a picture is one unit wide and high.

    Every second picture of the endless plane is mirrored. w [n]: how wide a pixel is there.
    number: any whole number, which means one of LICENCES. Grey if that is not there.
    """
    picture = pyramids(q.device).get(list(LICENCES)[number % len(LICENCES)])
    if picture is None:
        return torch.full_like(q[:1], 0.2).repeat(3, 1)
    level = (w * SIZE).clamp_min(1).log2() / ((LEVELS - 1) / 2) - 1
    folded = 1 - 2 * (q - 2 * (q / 2).floor() - 1).abs()
    at = torch.stack([folded[0], folded[1], level.clamp(-1, 1)], -1)
    return F.grid_sample(picture, at[None, None, None], align_corners=True)[0, :, 0, 0]
