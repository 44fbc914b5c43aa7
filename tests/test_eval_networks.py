"""What eval_metrics.py computes, against other packages and by its properties: masked measures,
LPIPS, the features and distances of FID and KID."""

import urllib.error

import made_weights
import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.linalg import sqrtm
from skimage.metrics import structural_similarity

from toolbox.evaluation import covisible, distances, networks
from utils import metrics
from utils.cli import InputError

# Of every 300th feature, by torch-fidelity 0.4.0, with the weights of made_weights.inception().
FEATURES = [10.999250, 29.559797, 0, 0, 3.709841, 0.658628, 14.839142]
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.fixture(scope="module")
def frames():
    """Two frames float64 [45, 53, 3] in [0, 1], alike, and a bool mask of an odd outline."""
    rng = np.random.default_rng(0)
    a = rng.random((45, 53, 3))
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)
    mask = rng.random((45, 53)) < 0.7
    mask[:14, :20] = False  # windows without a pixel
    return a, b, mask


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(made_weights.alexnet(), path)
    return path


@pytest.fixture(scope="module")
def lpips(alexnet):
    return networks.load_lpips(alexnet)


def tensor(frame):
    return torch.from_numpy(frame).permute(2, 0, 1)[None]  # [1, C, H, W]


# ---- masked measures -----------------------------------------------------------------------------


def test_a_mask_of_ones_changes_nothing(frames, lpips):
    a, b, mask = frames
    ones = np.ones_like(mask)
    assert metrics.psnr(a, b, ones) == metrics.psnr(a, b)
    assert covisible.ssim(a, b, ones) == covisible.ssim(a, b)
    assert covisible.ssim(a, b, ones) == pytest.approx(metrics.ssim(a[None], b[None]), abs=1e-12)
    assert covisible.lpips(lpips, a, b, ones) == covisible.lpips(lpips, a, b)


def test_holes_and_known_recombine_to_the_whole(frames):
    a, b, mask = frames

    def error(where):
        return 10 ** (-metrics.psnr(a, b, where) / 10)

    whole = (error(mask) * mask.sum() + error(~mask) * (~mask).sum()) / mask.size
    assert whole == pytest.approx(error(None), rel=1e-12)


def test_what_the_mask_leaves_out_does_not_count(frames, lpips):
    a, b, mask = frames
    other = np.where(mask[..., None], b, 1 - b)
    assert metrics.psnr(a, other, mask) == metrics.psnr(a, b, mask)
    assert covisible.ssim(a, other, mask) == pytest.approx(covisible.ssim(a, b, mask), abs=1e-12)
    assert covisible.lpips(lpips, a, other, mask) == covisible.lpips(lpips, a, b, mask)
    assert np.isnan(covisible.lpips(lpips, a, b, np.zeros_like(mask)))


def slow_blur(z, mask):
    """covisible.blur of one channel, pixel by pixel."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()
    for _ in range(2):  # rows, then columns of the transposed
        height, width = z.shape
        blurred, known = np.zeros((height, width - 10)), np.zeros((height, width - 10), bool)
        for y in range(height):
            for x in range(width - 10):
                inside = mask[y, x:x + 11]
                known[y, x] = inside.any()
                if inside.any():
                    total = (weights * z[y, x:x + 11] * inside).sum()
                    blurred[y, x] = total * 11 / inside.sum()
        z, mask = blurred.T, known.T
    return z


def test_windows_are_partial_convolutions(frames):
    a, _, mask = frames
    fast = covisible.blur(a, mask[..., None].astype(float))
    np.testing.assert_allclose(fast[..., 1], slow_blur(a[..., 1], mask), atol=1e-12)
    assert not fast[0, 0].any() and covisible.ssim(a, a, mask) == pytest.approx(1)


def test_measures_are_those_of_scikit_image_and_torchmetrics(frames):
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    a, b, mask = frames
    pair = tensor(a), tensor(b)
    theirs = peak_signal_noise_ratio(*pair, data_range=1.0).item()
    assert metrics.psnr(a, b) == pytest.approx(theirs, abs=1e-4)
    _, theirs = structural_similarity_index_measure(*pair, data_range=1.0, return_full_image=True)
    theirs = theirs[..., 5:-5, 5:-5].mean().item()  # it mirrors pictures beyond their border
    for mine in (covisible.ssim(a, b), metrics.ssim(a[None], b[None])):
        assert mine == pytest.approx(theirs, abs=1e-4)
    theirs = structural_similarity(a, b, channel_axis=-1, data_range=1, **GAUSSIAN)
    assert covisible.ssim(a, b, np.ones_like(mask)) == pytest.approx(theirs, abs=1e-4)


# ---- LPIPS ---------------------------------------------------------------------------------------


def test_lpips_is_torchmetrics(frames, lpips, monkeypatch):
    import torchmetrics.functional.image.lpips as theirs

    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: lpips.features)
    a, b, mask = frames
    pair = tensor(a).float(), tensor(b).float()
    expected = theirs._LPIPS(net="alex")(*pair, normalize=True).item()
    assert lpips.distance(a, b) == pytest.approx(expected, abs=1e-6) and expected > 0.01
    expected = theirs._LPIPS(net="alex", spatial=True)(*pair, normalize=True)[0, 0].numpy()
    np.testing.assert_allclose(lpips.distance_map(a, b), expected, rtol=1e-4, atol=1e-6)


def test_lpips_is_a_distance(frames, lpips):
    a, b, _ = frames
    assert lpips.distance(a, a) == 0 and not lpips.distance_map(a, a).any()
    assert lpips.distance(a, b) == pytest.approx(lpips.distance(b, a), rel=1e-6)
    assert lpips.distance_map(a, b).shape == a.shape[:2]
    assert lpips.distance(a, (a + b) / 2) < lpips.distance(a, b)


# ---- FID and KID ---------------------------------------------------------------------------------


def test_inception_is_torch_fidelitys(tmp_path):
    path = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(made_weights.inception(), path)
    network = networks.load_inception(path)
    assert sum(p.numel() for p in network.parameters()) == 21_785_568
    picture = np.random.default_rng(1).integers(0, 256, (299, 299, 3), np.uint8)
    features = network.features(picture)
    assert features.shape == (2048,) and features.dtype == np.float32
    np.testing.assert_allclose(features[::300], FEATURES, rtol=1e-3)


def test_clean_resizing_averages_and_keeps_fractions():
    grey = np.full((70, 500, 3), (9, 100, 255), np.uint8)
    resized = networks.clean_resize(grey)
    assert resized.shape == (299, 299, 3) and resized.dtype == np.float32
    np.testing.assert_allclose(resized, np.broadcast_to((9, 100, 255), resized.shape), atol=1e-3)
    stripes = np.zeros((299, 1196, 3), np.uint8)
    stripes[:, ::2] = 255
    np.testing.assert_allclose(networks.clean_resize(stripes)[:, 2:-2], 127.5, atol=1)
    noise = np.random.default_rng(0).integers(0, 256, (299, 299, 3), np.uint8)
    np.testing.assert_array_equal(networks.clean_resize(noise), noise)
    larger = networks.clean_resize(noise[:200])
    assert larger.min() == 0 and larger.max() == 255 and (larger % 1).any()


def test_frechet_is_the_formula():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 12)) @ rng.standard_normal((12, 12))
    b = rng.standard_normal((90, 12)) + 0.3
    A, B = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    expected = apart + np.trace(A + B - 2 * sqrtm(A @ B).real)
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet(b, a) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet(a, a + 2) == pytest.approx(4 * 12)
    few = a[:5]  # fewer than features: a root of a matrix of rank 4
    assert distances.frechet(few, few) == pytest.approx(0, abs=1e-9)
    assert distances.frechet(few, 3 * few - 2 * few.mean(0)) == pytest.approx(
        4 * np.trace(np.cov(few, rowvar=False)))


def test_kernel_is_the_unbiased_discrepancy(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 4)), rng.standard_normal((9, 4)) + 1

    def pairs(x, y, same):
        values = []
        for i in range(9):
            for j in range(9):
                if i != j or not same:
                    values.append((x[i] @ y[j] / 4 + 1) ** 3)
        return np.mean(values)

    expected = pairs(a, a, True) + pairs(b, b, True) - 2 * pairs(a, b, False)
    assert distances.kernel(a, b) == pytest.approx(expected)  # subsets of all
    monkeypatch.setattr(distances, "LARGEST", 6)
    assert distances.kernel(a, b) == distances.kernel(a, b) != distances.kernel(a, b, seed=1)
    assert distances.kernel(a, b) == pytest.approx(expected, rel=0.3)


# ---- weights -------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_other_files_are_no_weights(tmp_path, capsys):
    def refused(says, content, name="x.pth"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(InputError) as caught:
            networks.load_lpips(path)
        words = str(caught.value)
        assert says in words and str(path) in words and "\n" not in words and len(words) < 400

    good = made_weights.alexnet()
    refused("has no features.3.bias (1 of 15 tensors are missing)",
            {name: each for name, each in good.items() if name != "features.3.bias"})
    refused("features.0.weight has the shape [64, 3, 3, 3]; expected [64, 3, 11, 11]",
            good | {"features.0.weight": torch.zeros(64, 3, 3, 3)})
    refused("15 tensors", {"state_dict": good})
    refused("holds a list", [1, 2])
    refused("not a readable file of weights", Evil())
    refused("not a readable file of weights", b"text")
    refused("not a readable file of weights", b"", "x.safetensors")
    with pytest.raises(FileNotFoundError):
        networks.load_inception(tmp_path / "gone.pth")
    assert "unpickled" not in capsys.readouterr().out


def test_a_download_is_kept_and_its_failure_is_one_line(tmp_path, monkeypatch):
    calls = []

    def fetch(url, path, prefix):
        calls.append((url, prefix))
        if len(calls) == 1:
            raise urllib.error.URLError("no route to host")
        open(path, "w").close()

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    wanted = networks.ALEXNET, "--lpips_weights", tmp_path / "cognvs"
    with pytest.raises(InputError, match="no route to host.*give it to --lpips_weights"):
        networks.download(*wanted)
    for _ in range(2):
        path = networks.download(*wanted)
        assert path == tmp_path / "cognvs" / "alexnet-owt-7be5be79.pth" and path.is_file()
    assert calls == [(networks.ALEXNET, "7be5be79")] * 2
    with pytest.raises(InputError, match="no home"):
        networks.download(*wanted[:2], None)
