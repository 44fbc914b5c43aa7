"""The two networks of perceptual measures: LPIPS of AlexNet, and the Inception V3 of FID and KID.

They are written out here because the packages that have them (torchmetrics, clean-fid, pytorch-fid)
need torchvision. The names of their weights are the published ones, so the published files load;
LPIPS' linear weights, 6 KB, come with torchmetrics.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import contextlib
import importlib.util
import socket
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from utils import files
from utils.cli import InputError, short

# The file's name ends in the first digits of its SHA-256, which a download is checked against.
ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
INCEPTION = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
             "pt_inception-2015-12-05-6726825d.pth")
SIDE = 299  # pixels of Inception's input
TIMEOUT = 30  # seconds in which a server has to answer


# ---- LPIPS ---------------------------------------------------------------------------------------


class Lpips(nn.Module):
    """LPIPS 0.1 of AlexNet (Zhang et al. 2018): distances of pictures, 0 if they are equal.

    Its weights are those of torchvision's AlexNet (features.N) and the linear ones (lin0 to lin4).
    """

    SHIFT = (-0.030, -0.088, -0.188)  # what makes ImageNet's mean 0 and its deviation 1,
    SCALE = (0.458, 0.448, 0.450)  # of pixels in [-1, 1]
    TAPS = (1, 4, 7, 9, 11)  # the five ReLUs
    CHANNELS = (64, 192, 384, 256, 256)  # after them

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
        )
        for number, channels in enumerate(self.CHANNELS):
            self.add_module(f"lin{number}", nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, a, b):
        """Distances of float tensors [n, 3, H, W] in [-1, 1]: five maps [n, 1, h, w], one a layer.

        Each is the squared difference of unit-length features, weighted by channel.
        """
        x = torch.cat([a, b])
        x = (x - x.new_tensor(self.SHIFT)[:, None, None]) / x.new_tensor(self.SCALE)[:, None, None]
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.TAPS:
                unit = x / torch.sqrt(1e-8 + x.square().sum(1, keepdim=True))
                here, there = unit.chunk(2)
                weigh = getattr(self, f"lin{len(maps)}")
                maps.append(weigh((here - there).square()))
        return maps

    def distance(self, a, b):
        """LPIPS of two frames, float [H, W, 3] in [0, 1]: the sum of the layers' means."""
        return sum(each.double().mean().item() for each in self._maps(a, b))

    def distance_map(self, a, b):
        """The spatial LPIPS of two frames, float [H, W, 3] in [0, 1]: float64 [H, W].

        The sum of the layers' maps, bilinearly enlarged. That weighs borders anew, so its mean is
        nearly the distance, but not quite.
        """
        total = 0
        for each in self._maps(a, b):
            total = total + F.interpolate(each, a.shape[:2], mode="bilinear", align_corners=False)
        return total[0, 0].double().cpu().numpy()

    @torch.inference_mode()
    def _maps(self, a, b):
        device = self.lin0.weight.device
        both = torch.from_numpy(np.stack([a, b])).to(device, torch.float32)
        both = both.permute(0, 3, 1, 2) * 2 - 1  # [2, 3, H, W]
        with exact():
            return self(both[:1], both[1:])


def load_lpips(path, device="cpu"):
    """The Lpips of a file of AlexNet's weights. Raises InputError for other files."""
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None:
        raise InputError("LPIPS' linear weights come with torchmetrics, which is not installed: "
                         "pip install -r cognvs_requirements.txt")
    lins = Path(spec.submodule_search_locations[0], "functional/image/lpips_models/alex.pth")
    linear = {}
    for name, tensor in read_state(lins).items():
        linear[name.replace(".model.1", "")] = tensor  # after a dropout, which is not here
    return load(Lpips, path, "AlexNet of torchvision", device, linear)


# ---- Inception -----------------------------------------------------------------------------------

AVERAGE = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
LARGEST = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
HALVE = partial(F.max_pool2d, kernel_size=3, stride=2)


class BasicConv(nn.Module):
    """A convolution, batch normalisation and ReLU."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches of convolutions beside each other, and one of pooling, joined by channel.

    branches: {name: steps}. A step is a convolution (channels, kernel, stride), of the same size
    unless its stride is 2, or a list of such, whose outputs are joined. pooled: the channels of the
    convolution after the pooling; 0 for none. channels: what comes out.
    """

    def __init__(self, inputs, pool, pooled=0, **branches):
        super().__init__()
        self.pool = pool
        self.names = [self._add(inputs, name, steps) for name, steps in branches.items()]
        self.channels = sum(self.get_submodule(name).conv.out_channels
                            for names in self.names for name in names[-1])
        self.channels += pooled or inputs
        self.branch_pool = BasicConv(inputs, pooled, 1) if pooled else nn.Identity()

    def _add(self, channels, branch, steps):
        """Add a branch, by the published names such as branch3x3_2a: its steps' lists of names."""
        names = []
        for number, step in enumerate(steps, 1):
            beside = step if isinstance(step, list) else [step]
            names.append([])
            for letter, (outputs, kernel, *stride) in zip("ab", beside, strict=False):
                name = branch if len(steps) == 1 else f"{branch}_{number}"
                name += letter if len(beside) > 1 else ""
                padding = 0 if stride else tuple(k // 2 for k in np.broadcast_to(kernel, 2))
                self.add_module(name, BasicConv(channels, outputs, kernel, *stride,
                                                padding=padding))
                names[-1].append(name)
            channels = outputs
        return names

    def forward(self, x):
        outputs = []
        for steps in self.names:
            y = x
            for beside in steps:
                y = torch.cat([self.get_submodule(name)(y) for name in beside], 1)
            outputs.append(y)
        return torch.cat([*outputs, self.branch_pool(self.pool(x))], 1)


def mixed_a(inputs, pooled):
    return Mixed(inputs, AVERAGE, pooled, branch1x1=[(64, 1)], branch5x5=[(48, 1), (64, 5)],
                 branch3x3dbl=[(64, 1), (96, 3), (96, 3)])


def mixed_b(inputs):
    return Mixed(inputs, HALVE, branch3x3=[(384, 3, 2)],
                 branch3x3dbl=[(64, 1), (96, 3), (96, 3, 2)])


def mixed_c(inputs, c):
    wide, tall = (1, 7), (7, 1)
    return Mixed(inputs, AVERAGE, 192, branch1x1=[(192, 1)],
                 branch7x7=[(c, 1), (c, wide), (192, tall)],
                 branch7x7dbl=[(c, 1), (c, tall), (c, wide), (c, tall), (192, wide)])


def mixed_d(inputs):
    return Mixed(inputs, HALVE, branch3x3=[(192, 1), (320, 3, 2)],
                 branch7x7x3=[(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)])


def mixed_e(inputs, pool):
    split = [(384, (1, 3)), (384, (3, 1))]
    return Mixed(inputs, pool, 192, branch1x1=[(320, 1)], branch3x3=[(384, 1), split],
                 branch3x3dbl=[(448, 1), (384, 3), split])


class Inception(nn.Module):
    """The Inception V3 that FID and KID are defined by, as TensorFlow released it in 2015.

    It differs from torchvision's in its pooling: averages leave padding out, and the last block
    takes the largest.
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = BasicConv(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv(80, 192, 3)
        blocks = {"5b": (mixed_a, 32), "5c": (mixed_a, 64), "5d": (mixed_a, 64), "6a": (mixed_b,),
                  "6b": (mixed_c, 128), "6c": (mixed_c, 160), "6d": (mixed_c, 160),
                  "6e": (mixed_c, 192), "7a": (mixed_d,), "7b": (mixed_e, AVERAGE),
                  "7c": (mixed_e, LARGEST)}
        self.blocks = list(blocks)
        channels = 192
        for name, (make, *options) in blocks.items():
            block = make(channels, *options)
            self.add_module(f"Mixed_{name}", block)
            channels = block.channels

    def forward(self, x):
        """Features [n, 2048] of float tensors [n, 3, 299, 299] in [0, 255]."""
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = HALVE(x)
        x = HALVE(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in self.blocks:
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))

    @torch.inference_mode()
    def features(self, frame):
        """The features of a frame, uint8 [H, W, 3]: float32 [2048]."""
        device = self.Conv2d_1a_3x3.conv.weight.device
        pixels = torch.from_numpy(clean_resize(frame)).to(device).permute(2, 0, 1)  # [3, 299, 299]
        with exact():
            return self(pixels[None])[0].cpu().numpy()


def load_inception(path, device="cpu"):
    """The Inception of a file of its weights. Raises InputError for other files."""
    return load(Inception, path, "Inception V3 of FID", device)


def clean_resize(frame):
    """A frame uint8 [H, W, 3] as Inception takes it: float32 [299, 299, 3] in [0, 255].

    As clean-fid does it (Parmar et al. 2022): PIL's bicubic filter, which averages where it
    shrinks, on each channel in floating point, not rounded to whole levels.
    """
    channels = []
    for channel in np.moveaxis(frame.astype(np.float32), -1, 0):
        picture = Image.fromarray(np.ascontiguousarray(channel))
        channels.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return np.stack(channels, -1).clip(0, 255)


# ---- weights -------------------------------------------------------------------------------------


def exact():
    """A context in which convolutions are the same on every device; TF32 rounds to 10 bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def load(network, path, what, device, extra=()):
    """network() with the weights of a file, and of a dict `extra`, for inference.

    Names that the network does not have are passed over. what: the network's name, for the
    InputError of a file whose tensors are missing or have other shapes.
    """
    with torch.device("meta"):  # no memory, and no time for random numbers
        model = network()
    model = model.to_empty(device="cpu")
    state = read_state(path) | dict(extra)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()
              if not name.endswith("num_batches_tracked")}  # no part of what is computed
    missing = [name for name in wanted if name not in state]
    if missing:
        raise InputError(f"{path}: has no {missing[0]} ({len(missing)} of {len(wanted)} tensors "
                         f"are missing); expected the weights of {what}")
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise InputError(f"{path}: {name} has the shape {list(state[name].shape)}; expected "
                             f"{list(shape)}, as in the weights of {what}")
    model.load_state_dict(state, strict=False)
    return model.eval().requires_grad_(False).to(device)


def read_state(path):
    """{name: tensor} of a .safetensors or .pth file; only tensors are unpickled."""
    with open(path, "rb"):  # one that is missing or may not be read is an OSError, as everywhere
        pass
    with files.refused(path, "file of weights", "a .safetensors or .pth file of named tensors"):
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}


def download(url, flag, cache):
    """The file that a URL names, fetched into a folder unless it is there.

    cache: None for a user without a home. Raises InputError, which names the flag that takes a file
    instead, if it cannot be fetched.
    """
    name = url.rpartition("/")[2]
    instead = f"fetch {url} by other means and give it to {flag}"
    if cache is None:
        raise InputError(f"--download: this user has no home to keep {name} in; {instead}")
    path = cache / name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with answered_soon():
            torch.hub.download_url_to_file(url, str(path), Path(name).stem.rpartition("-")[2])
    except (OSError, RuntimeError, ValueError) as error:  # what urllib and a wrong hash raise
        raise InputError(f"--download: {name} could not be fetched ({short(error)}); {instead}"
                         ) from error
    return path


@contextlib.contextmanager
def answered_soon():
    """While it is entered, a server that does not answer is given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
