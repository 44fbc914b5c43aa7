import dataclasses
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import call
from training import CPU, paired_room, pipe  # noqa: F401

from finetune import dataset
from utils import cli, video
from utils.cli import InputError


@pytest.fixture(scope="module")
def pairs(pipe, paired_room):  # noqa: F811
    return dataset.open_pairs(paired_room, None, pipe.clip_shape)


def sample(pipe, pairs, rank=0, step=0, seed=42, size=1):  # noqa: F811
    return dataset.training_batch(pipe, pairs, seed, rank, step, CPU, torch.float32, size)


def test_every_rank_and_step_draws_its_own_sample(pipe, pairs):  # noqa: F811
    first = sample(pipe, pairs)
    assert all(map(torch.equal, first, sample(pipe, pairs)))
    for other in ({"rank": 1}, {"step": 1}, {"seed": 43}):
        other = sample(pipe, pairs, **other)
        assert not torch.equal(first[3], other[3])  # timestep
        assert (first[2] - other[2]).abs().mean() > 0.5  # noise
    drawn = set()
    for step in range(80):
        _, render, start = pairs.draw(dataset.generator(42, "clip", step % 4, step))
        drawn.add((render.name, start))
    assert drawn == {(f"train_render{i}.mp4", 0) for i in (1, 2, 3)}


def test_a_fixed_batch_covers_the_schedule_and_changes_no_draw(pipe, pairs):  # noqa: F811
    before = sample(pipe, pairs)
    made = [dataset.fixed_batches(pipe, pairs, 42, rank, 2, 2, CPU, torch.float32, 2)
            for rank in (0, 1, 0)]
    assert all(map(torch.equal, before, sample(pipe, pairs)))
    timesteps = torch.cat([batch[3] for batch in made[0] + made[1]])
    assert sorted(timesteps.tolist()) == [62, 187, 312, 437, 562, 687, 812, 937]
    for first, again in zip(made[0], made[2], strict=True):
        assert all(map(torch.equal, first, again))
        assert not torch.equal(first[2], before[2])


def bank(pipe, pairs, count, rank=0, ranks=1):  # noqa: F811
    return dataset.Bank(pipe, pairs, count, 42, rank, ranks, CPU, torch.float32)


def test_a_bank_holds_what_direct_encoding_of_the_same_draws_gives(pipe, pairs):  # noqa: F811
    made = bank(pipe, pairs, 5)
    target = pairs.sequences[0].target
    for number, (shown, condition) in enumerate(made.entries):
        rng = dataset.generator(42, "bank noise", 0, number)
        render = pairs.sequences[0].renders[number % 3]
        clip = dataset.add_noise(pairs.clip(render, 0, CPU, torch.float32), rng)
        with torch.no_grad():
            assert torch.equal(condition, pipe.encode(clip, rng)) and shown == (target, 0)
    parts = [bank(pipe, pairs, 5, rank, 2) for rank in (0, 1)]
    assert [len(part.entries) for part in parts] == [2, 3]  # each process has others
    both = parts[0].entries + parts[1].entries
    for (_, one), (_, other) in zip(made.entries, both, strict=True):
        assert torch.equal(one, other)


def test_a_step_draws_from_the_bank_and_the_rest_anew(pipe, pairs):  # noqa: F811
    made = bank(pipe, pairs, 3)
    drawn = set()
    for step in range(20):
        x0, condition, noise, timestep = sample(pipe, made, step=step, size=2)
        assert len(x0) == len(condition) == len(noise) == len(timestep) == 2
        for one in condition:
            drawn.add([torch.equal(one, entry[0]) for _, entry in made.entries].index(True))
    assert drawn == {0, 1, 2}
    assert all(map(torch.equal, sample(pipe, made, step=3), sample(pipe, made, step=3)))
    expected = sample(pipe, pairs)
    assert expected[0].shape == x0[:1].shape and x0.dtype == expected[0].dtype
    assert not torch.equal(sample(pipe, made, step=0)[0], sample(pipe, made, step=1)[0])


def test_a_bank_is_of_all_pairs_and_windows_alike(long_pairs, monkeypatch):
    monkeypatch.setattr(dataset, "DiagonalGaussianDistribution",
                        lambda parameters: SimpleNamespace(mean=parameters[:, :5],
                                                           parameters=parameters))
    long_pairs.sequences *= 2
    encoder = Encoder()
    made = bank(encoder, long_pairs, 40)
    starts = {shown[1] for shown, _ in made.entries}
    assert starts == {0, 1, 2, 3, 4} == {start for _, start in made.targets}
    turns = [long_pairs.in_turn(number, dataset.generator(0, "", 0, 0)) for number in range(4)]
    assert [target for target, _, _ in turns] == [videos.target for videos in
                                                  long_pairs.sequences * 2]


def test_no_pair_is_without_a_turn(long_pairs):
    assert long_pairs.turns() == 2  # 9 frames, shown 5 at a time
    videos = long_pairs.sequences[0]
    others = dataclasses.replace(videos, target="b", renders=["c", "d", "e"])
    long_pairs.sequences = [videos, *[others] * 40]
    turns = [long_pairs.in_turn(number, dataset.generator(0, "", 0, 0))[:2]
             for number in range(long_pairs.turns())]
    assert len(turns) == 41 * 6
    assert Counter(turns) == {(videos.target, videos.renders[0]): 6, ("b", "c"): 80,
                              ("b", "d"): 80, ("b", "e"): 80}


@pytest.fixture
def long_pairs(tmp_path):
    """Pairs of clips of 5 frames, whose videos of 9 frames show their number: 20 i, 20 i + 10."""
    shade = 20 * np.arange(9, dtype=np.uint8)[:, None, None, None]
    frames = np.tile(shade, (1, 16, 16, 3))
    info = video.VideoInfo(9, 16, 16, 10)
    video.write_video(tmp_path / "gt_rgb.mp4", frames, info, crf=0)
    video.write_video(tmp_path / "train_render1.mp4", frames + 10, info, crf=0)
    return dataset.Pairs(tmp_path, (5, 16, 16))


class Encoder:
    """Stands in for a pipeline whose VAE does nothing; counts what is encoded as a target."""

    scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000))
    encoded = 0

    def posterior(self, clip):
        self.encoded += 1
        return SimpleNamespace(parameters=torch.cat([clip, torch.full_like(clip, -30)], 1))

    def sample(self, posterior, rng):
        return posterior.mean

    def encode(self, clip, rng):
        return clip


def test_a_sample_is_the_noised_render_and_the_target_of_one_window(long_pairs):
    log_sigmas = []
    encoder = Encoder()
    starts = set()
    for step in range(60):
        x0, condition, _, _ = sample(encoder, long_pairs, step=step)
        target, render, start = long_pairs.draw(dataset.generator(42, "clip", 0, step))
        starts.add(start)
        torch.testing.assert_close(x0, long_pairs.clip(target, start, CPU, torch.float32))
        noise = condition - long_pairs.clip(render, start, CPU, torch.float32)
        log_sigmas.append(noise.std().log().item())
        shades = ((x0 + 1) * 127.5)[0, :, 0].mean((1, 2)) / 20
        assert shades.round().tolist() == [start + i for i in range(5)]
    assert np.mean(log_sigmas) == pytest.approx(-3, abs=0.25)
    assert np.std(log_sigmas) == pytest.approx(0.5, abs=0.15)
    assert starts == {0, 1, 2, 3, 4} and encoder.encoded == 5  # a window is encoded once


def test_a_short_video_repeats_its_last_frame(long_pairs):
    long_pairs.clip_shape = (12, 16, 16)
    target, _, start = long_pairs.draw(dataset.generator(0, "clip", 0, 0))
    clip = long_pairs.clip(target, start, CPU, torch.float32)
    shades = ((clip + 1) * 127.5)[0, :, 0].mean((1, 2)) / 20
    assert start == 0 and shades.round().tolist() == [*range(9), 8, 8, 8]


def test_videos_are_decoded_once_while_they_fit(long_pairs, monkeypatch):
    read = []
    decode = dataset.read_resized
    monkeypatch.setattr(dataset, "read_resized", lambda path, *size: read.append(path.name)
                        or decode(path, *size))
    for step in range(20):
        sample(Encoder(), long_pairs, step=step)
    assert sorted(read) == ["gt_rgb.mp4", "train_render1.mp4"]
    read.clear()
    long_pairs.videos = dataset.Cache(9 * 16 * 16 * 3)  # room for one of the two
    long_pairs.posteriors = dataset.Cache(0)
    first = sample(Encoder(), long_pairs, step=3)
    again = sample(Encoder(), long_pairs, step=3)
    assert all(map(torch.equal, first, again))
    assert len(read) > 2 and len(long_pairs.videos.items) == 1


def test_the_cache_keeps_to_its_limit_and_what_was_used_last():
    cache = dataset.Cache(20)
    made = []

    def get(key, size=8):
        return cache.get(key, lambda: made.append(key) or np.zeros(size, np.uint8))

    for key in "abacab":  # c takes the place of b, and b then that of c
        get(key)
    assert made == ["a", "b", "c", "b"] and set(cache.items) == {"a", "b"}
    assert get("large", 21).nbytes == 21 and set(cache.items) == {"a", "b"}


def test_a_folder_of_sequences_is_sampled_evenly(paired_room, pipe, tmp_path):  # noqa: F811
    for name in "abc":
        (tmp_path / name).symlink_to(paired_room)
    many = dataset.open_pairs(tmp_path, None, pipe.clip_shape)
    names = []
    for step in range(120):
        target, _, _ = many.draw(dataset.generator(0, "clip", 0, step))
        names.append(target.parent.name)
    assert all(25 <= names.count(name) <= 55 for name in "abc")
    x0, condition, noise, timestep = sample(pipe, many, size=2)
    assert len(x0) == len(condition) == len(noise) == len(timestep) == 2
    assert timestep[0] != timestep[1] and len(many.files()) == 12


def test_what_a_process_keeps_is_counted(paired_room, pipe):  # noqa: F811
    kept = dataset.check_pairs(paired_room, pipe.clip_shape)
    assert kept == 4 * 17 * 64 * 96 * 3
    assert dataset.check_pairs(paired_room, (17, 64_000, 9600)) == dataset.VIDEOS_KEPT


@pytest.mark.parametrize("frames, message", [
    (np.zeros(17, int), "freezes time"),
    (np.arange(17)[::-1], "train_cameras2.npz: .*frames"),
    (np.arange(16), "train_cameras2.npz: .*frames"),
    (None, "not a readable .npy or .npz"),
])
def test_a_render_of_other_moments_is_refused(paired_room, tmp_path, frames, message):  # noqa: F811
    folder = shutil.copytree(paired_room, tmp_path / "room")
    cameras = folder / "train_cameras2.npz"
    if frames is None:
        cameras.write_bytes(cameras.read_bytes()[:100])
    else:
        np.savez(cameras, c2w=np.eye(4), frames=frames)
    with pytest.raises(InputError, match=message):
        dataset.check_pairs(folder, (17, 64, 96))
    cameras.unlink()
    dataset.check_pairs(folder, (17, 64, 96))  # without cameras, as published


@pytest.mark.parametrize("shape, message", [
    ((16, 64, 96, 3), "got 16 frames; expected 17 frames"),
    ((17, 32, 96, 3), "got 96 x 32 pixels; expected 96 x 64 pixels"),
])
def test_a_render_of_another_length_or_size_is_refused(paired_room, tmp_path, shape, message):  # noqa: F811
    folder = shutil.copytree(paired_room, tmp_path / "room")
    info = video.VideoInfo(*shape[:3], 10)
    video.write_video(folder / "train_render2.mp4", np.zeros(shape, np.uint8), info)
    with pytest.raises(InputError, match=message):
        dataset.Pairs(folder, (17, 64, 96))


def test_what_data_gen_makes_is_taken(room):
    assert call("data_gen", "--data_path", room, "--mode", "train", "--num_train_render", 1,
                "--device", "cpu") == 0
    assert "frames" in np.load(room / "train_cameras1.npz")
    assert dataset.check_pairs(room, (17, 64, 96)) == 2 * 17 * 64 * 96 * 3


def test_a_folder_without_pairs_is_refused(made_room):
    with pytest.raises(InputError, match="no train_render"):
        dataset.check_pairs(made_room, (17, 64, 96))


@pytest.mark.parametrize("tags, taken", [
    (None, True),  # as published
    ({"program": "another.py", "source": "0"}, True),
    ({"program": "data_gen.py", "source": "right"}, True),
    ({"program": "data_gen.py", "source": "0"}, False),
])
def test_a_render_of_another_video_is_refused(paired_room, tmp_path, tags, taken):  # noqa: F811
    folder = shutil.copytree(paired_room, tmp_path / "room")
    if tags and tags["source"] == "right":
        tags = tags | {"source": cli.file_hash(folder / "gt_rgb.mp4")}
    render = folder / "train_render2.mp4"
    video.write_video(render, video.read_video(render), video.probe(render), tags=tags)
    if taken:
        dataset.check_pairs(folder, (17, 64, 96))
        return
    with pytest.raises(InputError, match="train_render2.mp4: was made of another gt_rgb.mp4"):
        dataset.check_pairs(folder, (17, 64, 96))


@pytest.mark.parametrize("name, array, message", [
    ("c2w", np.tile(2 * np.eye(4), (17, 1, 1)), "pose 0 has the last row"),
    ("c2w", np.tile(np.diag([2, 2, 2, 1.0]), (17, 1, 1)), "pose 0 is scaled"),
    ("c2w", np.full((17, 4, 4), np.nan), "pose 0 holds numbers that are not finite"),
    ("intrinsics", np.zeros((17, 3, 3)), "K 0 is 0 0 0"),
])
def test_cameras_that_are_none_are_refused(paired_room, tmp_path, name, array, message):  # noqa: F811
    folder = shutil.copytree(paired_room, tmp_path / "room")
    np.savez(folder / "train_cameras2.npz", **{"c2w": np.eye(4), name: array})
    with pytest.raises(InputError, match=message):
        dataset.check_pairs(folder, (17, 64, 96))
