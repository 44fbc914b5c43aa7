"""Random weights of the networks of toolbox/evaluation/networks.py, by name and so always the same.
"""

import numpy as np
import torch

from toolbox.evaluation import networks


def alexnet(seed=0):
    """{name: tensor} of torchvision's AlexNet, as its file has them."""
    names = {name: tensor for name, tensor in networks.Lpips().state_dict().items()
             if name.startswith("features")}
    return random_state(names, seed) | {"classifier.6.bias": torch.zeros(1000)}


def inception(seed=0):
    """{name: tensor} of pytorch-fid's Inception, as its file has them."""
    with torch.device("meta"):
        names = networks.Inception().state_dict()
    return random_state(names, seed) | {"fc.bias": torch.zeros(1008)}


def random_state(shapes, seed):
    """Weights that keep the size of what goes through, in the order of their names."""
    rng = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name].shape)
        if name.endswith("num_batches_tracked"):
            continue
        values = rng.standard_normal(shape, np.float32)
        if len(shape) > 1:
            values *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif name.endswith(("bn.weight", "running_var")):
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            values *= np.float32(0.1)
        state[name] = torch.from_numpy(values)
    return state
