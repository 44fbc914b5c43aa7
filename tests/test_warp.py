import numpy as np
import pytest
import reference_warp
import torch
from conftest import ROOT

import data_gen
from utils import camera_paths, metrics, sequence, trajectory, video, warp

SHIPPED = ROOT / "demo_data" / "room"


def random_view(batch=2, height=24, width=32, seed=0):
    """A smooth random depth, random frames and a K."""
    rng = torch.Generator().manual_seed(seed)
    frames = torch.rand(batch, 3, height, width, generator=rng) * 2 - 1
    coarse = torch.rand(batch, 1, 4, 5, generator=rng) * 3 + 1
    depth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0]
    k = torch.tensor([[30.0, 0, width / 2], [0, 30, height / 2], [0, 0, 1]]).repeat(batch, 1, 1)
    return frames, depth, k


def motion(phi=0.0, theta=0.0, r=0.0, radius=2.0, batch=2):
    keys = {"phi": [phi], "theta": [theta], "r": [r]}
    return torch.from_numpy(trajectory.relative_motion(keys, batch, radius))


def test_a_camera_that_does_not_move_returns_the_source_exactly():
    frames, depth, k = random_view()
    for way in (warp.forward_warp, warp.double_warp):
        warped, mask = way(frames, depth, motion(), k)
        assert mask.all()
        torch.testing.assert_close(warped, frames, rtol=0, atol=2e-7)


def test_splat_equals_a_loop_over_pixels():
    rng = torch.Generator().manual_seed(1)
    values = torch.rand(1, 3, 8, 10, generator=rng)
    weight = torch.rand(1, 8, 10, generator=rng)
    u = torch.rand(1, 8, 10, generator=rng) * 13 - 1.5
    v = torch.rand(1, 8, 10, generator=rng) * 11 - 1.5
    u[0, 0, :3] = 4.0  # exact integers count a corner twice
    weight[0, 1, :4] = 0  # contributes nothing
    total = np.zeros((8, 10, 3))
    weights = np.zeros((8, 10))
    for i in range(8):
        for j in range(10):
            x, y = u[0, i, j].item(), v[0, i, j].item()
            for cx in (np.floor(x), np.ceil(x)):
                for cy in (np.floor(y), np.ceil(y)):
                    if 0 <= cx < 10 and 0 <= cy < 8:
                        w = (1 - abs(x - cx)) * (1 - abs(y - cy)) * weight[0, i, j].item()
                        weights[int(cy), int(cx)] += w
                        total[int(cy), int(cx)] += w * values[0, :, i, j].numpy()
    out, mask = warp.splat(values, u, v, weight)
    assert np.array_equal(mask[0].numpy(), weights > 0)
    assert 0 < mask.sum() < 80
    expected = np.where(weights[..., None] > 0, total / np.maximum(weights, 1e-30)[..., None], 0)
    np.testing.assert_allclose(out[0].permute(1, 2, 0), expected, atol=1e-5)


def test_reprojection_is_the_pinhole_formula():
    _, depth, k = random_view()
    m = motion(20, -8, 0.2)
    ys, xs = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    pixel = torch.stack([xs, ys, torch.ones_like(xs)]).flatten(1).double()
    points = torch.linalg.inv(k.double()) @ pixel * depth.double().flatten(1)[:, None]
    p = k.double() @ (m[:, :3, :3] @ points + m[:, :3, 3:])
    u, v, z = warp.reproject(depth, m, k)
    for got, expected in ((u, p[:, 0] / p[:, 2]), (v, p[:, 1] / p[:, 2]), (z, p[:, 2])):
        np.testing.assert_allclose(got.flatten(1), expected, rtol=1e-5, atol=1e-4)


def test_a_batch_is_its_frames_one_by_one():
    frames, depth, k = random_view()
    m = motion(12, 4, 0.1)
    for way in (warp.forward_warp, warp.double_warp):
        together = way(frames, depth, m, k)
        for i in range(2):
            alone = way(*(x[i : i + 1] for x in (frames, depth, m, k)))
            assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together, alone, strict=True))


def test_the_nearer_surface_wins():
    depth = torch.full((1, 8, 16), 10.0)
    depth[:, :, 4:8] = 1.0
    frames = torch.full((1, 3, 8, 16), -0.5)
    frames[..., 4:8] = 0.5
    m = torch.eye(4)[None]
    m[0, 0, 3] = 4 / 10  # the near bar moves by 4 pixels, the far wall by 0.4
    k = torch.tensor([[[10.0, 0, 8], [0, 10, 4], [0, 0, 1]]])
    warped, mask = warp.forward_warp(frames, depth, m, k)
    assert (warped[..., 8:12] > 0.499).all() and (~mask[..., 5:8]).all()


def test_points_behind_the_camera_and_unknown_depth_contribute_nothing():
    frames, depth, k = random_view()
    behind = torch.eye(4).repeat(2, 1, 1)
    behind[:, 2, 3] = -100
    warped, mask = warp.forward_warp(frames, depth, behind, k)
    assert not mask.any() and (warped == -1).all()
    depth[:, :, :10] = 0
    _, mask = warp.forward_warp(frames, depth, motion(), k)
    assert not mask[:, :, :10].any() and mask[:, :, 10:].all()


def test_holes_grow_by_a_five_by_five_box():
    mask = torch.ones(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 4] = False
    frames, grown = warp.dilate_holes(torch.ones(1, 3, 9, 9), mask)
    assert (~grown).sum() == 25 and not grown[0, 2:7, 2:7].any()
    assert (frames[:, :, 2:7, 2:7] == -1).all() and (frames == -1).sum() == 75


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("with_k", [True, False])
def test_parity_with_float64(mode, with_k, tmp_path):
    """From the shipped files to the bytes that are encoded: within 2 of 255 on 99.9% of pixels."""
    k_file = k_path = None
    if with_k:
        k_file = np.array([[270, 0, 113.5], [0, 280, 83.25], [0, 0, 1]])  # not the default one
        k_path = tmp_path / "k.npy"
        np.save(k_path, k_file)
    seq = sequence.open_sequence(SHIPPED, intrinsics_file=k_path)
    height, width = seq.info.height, seq.info.width
    frames = video.read_video(seq.rgb_path)
    keys = trajectory.random_keyframes(42, 1)[0]
    if mode == "eval":
        keys = camera_paths.read_keyframes(ROOT / "trajs" / "traj4.txt")
    axes = [trajectory.interpolate(keys[axis], seq.info.frames) for axis in trajectory.AXES]
    path = np.stack(axes, 1)
    k = reference_warp.scaled_intrinsics(k_file, seq.depth_map.shape[1:], height, width)
    first = reference_warp.resized_depth(seq.depth_map[0], height, width)
    radius = first[height // 2, width // 2]
    m = torch.from_numpy(trajectory.relative_motion(keys, seq.info.frames, seq.pivot_depth))
    reference = getattr(reference_warp, f"{mode}_render")
    close = same_mask = total = 0
    for i in range(0, seq.info.frames, 12):
        cameras = (m[i : i + 1], torch.from_numpy(seq.intrinsics[i : i + 1].copy()))
        ours, mask = data_gen.warp_chunk(mode, frames[i : i + 1], seq.depth(i, i + 1), *cameras)
        depth = reference_warp.resized_depth(seq.depth_map[i], height, width)
        theirs, their_mask = reference(frames[i], depth, k, path[i], radius)
        close += (np.abs(ours[0].astype(int) - theirs) <= 2).all(-1).sum()
        same_mask += (mask[0] == their_mask).sum()
        total += mask.size
    print(f"{mode}, K {with_k}: {close / total:.5%} of pixels within 2/255, masks equal on "
          f"{same_mask / total:.5%}")
    assert close / total >= 0.999 and same_mask / total >= 0.999


def test_a_render_agrees_with_the_exact_novel_view(room):
    """Path 1 of the synthetic scene against what the tracer sees from there, on known pixels."""
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS)
    keys = camera_paths.read_keyframes(ROOT / "trajs" / "traj1.txt")
    m = torch.from_numpy(trajectory.relative_motion(keys, seq.info.frames, seq.pivot_depth))
    k = torch.from_numpy(seq.intrinsics.copy())
    depth = seq.depth(0, seq.info.frames)
    ours, mask = data_gen.warp_chunk("eval", video.read_video(seq.rgb_path), depth, m, k)
    exact = video.read_video(room / "novel_gt1.mp4")
    known = metrics.psnr(ours / 255, exact / 255, mask)
    print(f"synthetic room: {known:.2f} dB on {mask.mean():.1%} known pixels")
    assert known > 25 and mask.mean() > 0.4


@pytest.mark.gpu
def test_the_gpu_computes_the_same():
    frames, depth, k = random_view()
    for way in (warp.forward_warp, warp.double_warp):
        cpu = way(frames, depth, motion(10, 3, 0.1), k)
        gpu = way(*(x.cuda() for x in (frames, depth, motion(10, 3, 0.1), k)))
        assert (cpu[1] == gpu[1].cpu()).float().mean() > 0.999
        assert ((cpu[0] - gpu[0].cpu()).abs() < 1e-3).float().mean() > 0.999
