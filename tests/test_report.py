"""toolbox/make_report.py: what it gathers, and its page in a browser."""

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import call

import data_gen
from toolbox.evaluation import report_cameras, report_page, report_videos
from utils import camera_paths, cli, metrics, sequence, trajectory, video

INFO = video.VideoInfo(frames=6, height=64, width=96, fps=Fraction(10))
HOSTILE = "</script><img src=x onerror=document.title='broken'> & \"quoted\""


def moving(seed, size=(64, 96)):
    """Frames of a picture that moves, each of them another one."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(40, 216, (size[0] // 8 + 1, size[1] // 8 + 8, 3), np.uint8)
    picture = picture.repeat(8, 0).repeat(8, 1)
    return np.stack([picture[: size[0], 4 * t : 4 * t + size[1]] for t in range(INFO.frames)])


def write_mask(path, known):
    with video.VideoWriter(path, INFO, mask=True) as writer:
        writer.write(known)


def write_cameras(path, phi):
    k = np.tile(np.array([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]]), (INFO.frames, 1, 1))
    camera_paths.write_cameras(path, trajectory.keyframe_cameras({"phi": [0, phi]}, k, 2))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two paths, of which the first has a truth, scores, and a finetuning run."""
    root = tmp_path_factory.mktemp("report") / "a scene #1"
    outputs = root / "outputs" / "mine"
    video.write_video(root / "gt_rgb.mp4", moving(0), INFO)
    known = np.ones((6, 64, 96), bool)
    known[3:, :, 48:] = False
    for i in (1, 2):
        render = moving(i)
        render[~known] = 0
        video.write_video(root / f"eval_render{i}.mp4", render, INFO, tags={"path": "trajs/t.txt"})
        write_mask(root / f"eval_mask{i}.mp4", known)
        write_cameras(root / f"eval_cameras{i}.npz", -20 * i)
    tags = {"render": cli.file_hash(root / "eval_render1.mp4"), "weights": "0" * 64,
            "settings": {"num_inference_steps": 7, "secret": str(root / "weights")}}
    video.write_video(outputs / "eval_render1_out.mp4", moving(1) // 2 + 60, INFO, tags=tags)
    video.write_video(outputs / "eval_render2_out.mp4", moving(2), INFO, crf=0,
                      tags={"render": "another"})
    video.write_video(root / "novel_gt1.mp4", moving(1), INFO)
    sequence.save_array(root / sequence.DEPTH, np.full((6, 32, 48), 2, np.float16))
    video.write_video(root / "val_render1.mp4", moving(3), INFO)
    write_mask(root / "val_mask1.mp4", known)
    video.write_video(outputs / "score" / "m" / "val_render1_out.mp4", moving(4), INFO)
    write_score(root, outputs)
    return SimpleNamespace(root=root, outputs=outputs, run=write_run(root.parent / "run"))


def write_score(root, outputs):
    region = {"psnr": 20.5, "ssim": None, "lpips": float("nan"), "energy": "many", "flicker": 3}
    method = {"method": f"weights {HOSTILE}", "holes": region, "known": region, "all": [],
              "spread": 0.25, "videos": {
                  "val_render1": str((outputs / "score/m/val_render1_out.mp4").relative_to(root)),
                  "val_render2": "../../../etc/passwd", "other": "gt_rgb.mp4"}}
    score = {"pairs": ["val_render1", 7], "seeds": [1, 2], "num_inference_steps": 50,
             "verdict": [f"It is good {HOSTILE}", {}], "held_out": [method, "none"],
             "outputs": [{"name": "eval_render1", "known_psnr": 33.33, "seam": None,
                          "doubts": [f"Doubtful {HOSTILE}"]}, {"name": []}]}
    (outputs / "score" / "score.json").write_text(json.dumps(score))


def write_run(run):
    """A finetuning run, with a validation of an odd width: three pictures of 31 pixels."""
    (run / "validation").mkdir(parents=True)
    rows = ["step,loss,fixed_batch_loss", "1,0.5,0.4", "2,0.3,", "3,0.2,0.25", "4,nan,x"]
    (run / "train_log.csv").write_text("\n".join(rows))
    settings = {"learning_rate": 2e-5, "output_dir": str(run), "deepspeed": None, "made_of": {}}
    (run / "settings.json").write_text(json.dumps(settings))
    record = {"made_of": {}, "results": {}, "seconds": 754, "peak_mib": 23 * 1024}
    (run / "run_all_finetuning.json").write_text(json.dumps(record))
    beside = np.concatenate([moving(i, (64, 31)) for i in range(3)], 2)
    video.write_video(run / "validation" / "step-3_room_val_render1.mp4", beside, INFO)
    return run


@pytest.fixture(scope="module")
def page(made):
    """The text of the page, and the data of its script."""
    before = {path: path.read_bytes() for path in made.root.rglob("*") if path.is_file()}
    assert call("toolbox.make_report", "--data_path", made.root, "--run", made.run) == 0
    for path, content in before.items():
        assert path.read_bytes() == content
    file = made.root / "report" / "index.html"
    text = file.read_text()
    told = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    return SimpleNamespace(file=file, text=text, data=json.loads(told))


# ---- what is gathered ----------------------------------------------------------------------------


def test_clips_and_their_layers(page):
    assert page.data["groups"] == [["Camera paths", 2], ["Held-out pairs", 1], ["Training", 1]]
    layers = [[layer["name"] for layer in clip["layers"]] for clip in page.data["clips"]]
    weights = layers[2].pop(1)
    assert weights.startswith("weights </script>")
    assert layers == [["Source", "Render", "Output", "Truth", "Depth"],
                      ["Source", "Render", "Output", "Depth"],
                      ["Render", "Truth"], ["Render", "Output", "Truth"]]
    assert all(clip["frames"] == 6 and clip["fps"] == 10 for clip in page.data["clips"])


def test_videos_are_linked_or_else_copied_so_that_browsers_play_them(page, made):
    first, second, _, training = page.data["clips"]
    assert first["layers"][1]["src"] == "../eval_render1.mp4"
    assert first["layers"][2]["src"] == "../outputs/mine/eval_render1_out.mp4"
    assert second["layers"][2]["src"] == "outputs_mine_eval_render2_out.mp4"  # it was 4:4:4
    assert training["layers"][1] == {"name": "Output", "part": 1, "fps": 10.0,
                                     "src": "validation_step-3_room_val_render1.mp4"}
    copy = made.root / "report" / training["layers"][1]["src"]
    assert video.is_playable(copy) and video.probe(copy).width == 92
    copy = made.root / "report" / second["layers"][2]["src"]
    assert video.is_playable(copy)
    assert metrics.psnr(video.read_video(copy) / 255, moving(2) / 255) > 35


def test_curves_are_psnr_of_each_frame(page, made):
    clip = page.data["clips"][0]
    truth, output = (video.read_video(path) / 255 for path in (
        made.root / "novel_gt1.mp4", made.outputs / "eval_render1_out.mp4"))
    known = video.read_mask(made.root / "eval_mask1.mp4")
    expected = metrics.masked_psnr(output[4], truth[4], known[4])
    for region, value in expected.items():
        assert clip["curves"][region]["Output"][4] == pytest.approx(value, abs=1e-3)
    assert clip["curves"]["holes"]["Output"][0] is None  # that frame has none
    assert clip["holes"] == [0, 0, 0, 0.5, 0.5, 0.5]
    second = page.data["clips"][1]  # without a truth: near to its render, where that is known
    assert second["against"] == "Render" and list(second["curves"]) == ["known"]


def test_words_of_the_page(page, made):
    assert "It is good &lt;/script&gt;" in page.text and "<img src=x" not in page.text
    assert "made of another eval_render2.mp4" in page.text
    for words in ("33.3 dB", "<b>20.50</b>", "<td>0.25</td>", "over 1 pair, 2 seeds, 50 steps.",
                  "13 min, 23.0 GiB", "<dt>num inference steps</dt><dd>7</dd>", "40° left",
                  "near 2", "torch 2"):
        assert words in page.text, words
    assert str(made.root.parent) not in page.text and "passwd" not in page.text
    assert page.data["training"]["fixed"] == [[1, 0.4], [3, 0.25]]
    assert page.data["training"]["loss"] == [[1, 0.5], [2, 0.3], [3, 0.2]]
    assert "http" not in page.text.replace("http://www.w3.org/2000/svg", "")


def test_cameras_are_those_of_the_paths(page):
    source, first = page.data["cameras"]["source"], page.data["clips"][0]["cameras"]
    assert source[5] == [0, 0, 0, 0, 0, 1] == first[0]  # x, y, z in radii, and where it looks
    turn = np.radians(20)  # about the point at depth 1
    expected = [-np.sin(turn), 0, 1 - np.cos(turn), np.sin(turn), 0, np.cos(turn)]
    np.testing.assert_allclose(first[5], expected, atol=1e-4)
    assert len(page.data["cameras"]["points"]) > 100


def test_a_place_in_the_data_is_no_place():
    page = report_page.fill("@TOP@ @DATA@", "", {"a": "@TOP@</"}, {"TOP": "@DATA@"})
    assert page == '@DATA@ {"a":"@TOP@\\u003c/"}'


def test_depth_colours_are_of_one_range_and_unknown_depth_is_grey(tmp_path):
    depth = np.geomspace(1, 16, 4, dtype=np.float32).repeat(16 * 16).reshape(4, 16, 16).copy()
    depth[:, :8, :8] = np.nan
    info = replace(INFO, frames=4)
    said = report_videos.write_depth(tmp_path / "depth.mp4", depth, info)
    assert said == {"near": pytest.approx(1), "far": pytest.approx(16)}
    frames = video.read_video(tmp_path / "depth.mp4").astype(int)
    brightness = frames[:, 12, 12].sum(-1)
    assert (np.diff(brightness) < -20).all()
    assert np.abs(frames[:, 3, 3] - report_videos.UNKNOWN).max() < 12
    assert report_videos.write_depth(tmp_path / "none.mp4", depth * np.nan, info) is None


def test_little_is_enough(tmp_path):
    root = tmp_path / "bare"
    video.write_video(root / "gt_rgb.mp4", moving(0), INFO)
    assert call("toolbox.make_report", "--data_path", root) == 2
    assert not (root / "report").exists()
    odd = moving(0)[:, :63, :95]
    video.write_video(root / "eval_render3.mp4", odd, INFO)
    assert call("toolbox.make_report", "--data_path", root) == 0
    text = (root / "report" / "index.html").read_text()
    assert "demo.py will fill them" in text and "held-out" not in text.split("</style>")[1]
    copy = video.probe(root / "report" / "eval_render3.mp4")
    assert (copy.height, copy.width) == (62, 94)


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the folder, to be spoilt."""
    return Path(shutil.copytree(made.root, tmp_path / "room"))


def page_of(root, *flags):
    assert call("toolbox.make_report", "--data_path", root, *flags) == 0
    return (root / "report" / "index.html").read_text()


@pytest.mark.parametrize("spoil, says", [
    (lambda root: (root / "gt_rgb.mp4").unlink(), "no gt_rgb.mp4 there"),
    (lambda root: (root / "gt_rgb.mp4").write_text("x"), "gt_rgb.mp4: could not be"),
])
def test_a_source_that_cannot_be_read_is_an_error(copied, capsys, spoil, says):
    spoil(copied)
    assert call("toolbox.make_report", "--data_path", copied) == 2
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert says in error and error.count("\n") == 1


def test_what_is_broken_is_left_out_and_said(copied):
    (copied / "outputs/mine/score/score.json").write_text("{")
    (copied / "run_all_inference.json").write_text("[]")
    (copied / "eval_mask1.mp4").write_text("x")
    cut = copied / "outputs/mine/eval_render2_out.mp4"
    cut.write_bytes(cut.read_bytes()[:-2000])
    np.savez(copied / "eval_cameras1.npz", c2w=np.tile(np.eye(4), (9, 1, 1)))
    np.save(copied / sequence.C2WS, np.tile(np.eye(4), (9, 1, 1)))
    text = page_of(copied)
    for file in ("outputs/mine/score/score.json: not a", "run_all_inference.json: got a JSON list",
                 "eval_mask1.mp4: could not be", "outputs/mine/eval_render2_out.mp4: ",
                 "eval_cameras1.npz: ", f"{sequence.C2WS}: got "):
        assert f"<li>Left out: {file}" in text, file
    assert "eval_render1_out.mp4" in text and str(copied) not in text
    for name in ("eval_render1.mp4", "outputs/mine/eval_render1_out.mp4"):
        (copied / name).write_text("x")
    text = page_of(copied)  # without that path
    assert "<li>Left out: path 1, as none of its videos can be read. Left out: " in text
    assert "eval_render2.mp4" in text


@pytest.mark.parametrize("used, focal", [("file", 80), ("none", 500), ("other", None)])
def test_cameras_are_drawn_with_the_intrinsics_of_the_render(copied, used, focal):
    k = np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]])
    np.save(copied / sequence.INTRINSICS, k)
    opened = sequence.open_sequence(
        copied, intrinsics_file=sequence.INTRINSICS if used == "file" else None)
    arrays = [opened.intrinsics + (used == "other")]
    for i in (1, 2):
        tags = {"source_cameras": data_gen.hash_of(arrays), "fuse_static": False}
        video.write_video(copied / f"eval_render{i}.mp4", moving(i), INFO, tags=tags)
    notes = []
    seq, poses = report_cameras.open_sequence(copied, INFO.frames, [1, 2], notes)
    clips = {1: {"notes": notes}}
    report_cameras.add_cameras(copied, seq, poses, clips, INFO.frames)
    assert ("cameras" in clips[1]) == (focal is not None) == (notes == [])
    assert focal in (None, seq.intrinsics[0, 0, 0])


def test_copies_of_clips_that_are_gone_are_deleted(copied):
    page_of(copied)
    report = copied / "report"
    shutil.copy(copied / "gt_rgb.mp4", report / "mine.mp4")
    copy = report / "outputs_mine_eval_render2_out.mp4"
    assert copy.is_file()
    (copied / "outputs/mine/eval_render2_out.mp4").unlink()
    page_of(copied)
    assert not copy.exists()
    assert (report / "mine.mp4").is_file() and (report / "depth.mp4").is_file()


def test_held_out_videos_outside_of_the_folder(copied, tmp_path):
    outside = tmp_path / "elsewhere"
    shutil.move(copied / "outputs" / "mine", outside)
    path = outside / "score" / "score.json"
    score = json.loads(path.read_text())
    score["held_out"][0]["videos"] = {
        "val_render1": "../elsewhere/score/m/val_render1_out.mp4", "val_render2": "../a.mp4"}
    path.write_text(json.dumps(score))
    text = page_of(copied, "--outputs", outside)
    assert '"elsewhere_score_m_val_render1_out.mp4"' in text
    assert (copied / "report" / "elsewhere_score_m_val_render1_out.mp4").is_file()
    assert "renders, 1 in all." in text


def test_flags_that_lead_nowhere(made, capsys):
    for flag in ("--outputs", "--run"):
        assert call("toolbox.make_report", "--data_path", made.root, flag, made.root / "no") == 2
        assert f"{flag} {made.root / 'no'}: no " in capsys.readouterr().err


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def shown(browser, page):
    """The page, opened from disk; whatever it complains of, or asks a host for, fails the test."""
    faults = []
    tab = browser.new_page(viewport={"width": 1200, "height": 1800})
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.file.as_uri())
    tab.asked = asked
    stands(tab, 3)  # where holes are largest
    yield tab
    assert faults == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    tab.close()


STANDS = """(frame) => [...document.querySelectorAll("#stage video")].every((video) =>
    !video.seeking && video.readyState > 1 && Math.floor(10 * video.currentTime) === frame)"""


def stands(tab, frame):
    """Wait until all videos of the stage, and the words below it, are at one frame."""
    tab.wait_for_function(STANDS, arg=frame)
    assert tab.inner_text("#where").startswith(f"{frame + 1} / 6")
    return True


def names(tab):
    """What is shown left and right."""
    return [tab.inner_text(f"#stage .{side} figcaption") for side in "ab"]


def test_videos_play_in_step(shown):
    durations = shown.evaluate(
        "[...document.querySelectorAll('#stage video')].map(v => v.duration)")
    assert durations == pytest.approx([0.6] * 6)  # five layers and the mask
    assert len([url for url in shown.asked if "eval_render2" in url]) == 0
    shown.keyboard.press("Space")
    shown.wait_for_timeout(300)
    assert shown.get_attribute("#play", "aria-label") == "Pause"
    left, right, depth = shown.evaluate("""[1, 2, 4].map((number) =>
        document.querySelectorAll("#stage video")[number].currentTime)""")
    assert abs(left - right) < 0.1 and depth == 0.35  # what is not seen stands still
    shown.keyboard.press("Space")
    stands(shown, int(shown.inner_text("#where").split()[0]) - 1)
    assert shown.get_attribute("#play", "aria-label") == "Play"


def test_the_scrubber_moves_all_videos(shown):
    box = shown.locator("#scrub").bounding_box()
    for share, frame in ((0.01, 0), (0.41, 2), (0.99, 5)):
        shown.mouse.click(box["x"] + share * box["width"], box["y"] + 10)
        assert stands(shown, frame)
    plot = shown.locator("#curves .plot").bounding_box()
    shown.mouse.click(plot["x"] + 0.6 * plot["width"], plot["y"] + 20)
    assert stands(shown, 3)
    assert shown.locator("#curves .cursor").get_attribute("style") == "left: 60%;"
    assert "dB" in shown.inner_text("#curves .legend")


def test_keys(shown):
    press = shown.keyboard.press
    press("ArrowRight")
    assert stands(shown, 4)
    press("Shift+ArrowLeft")
    assert stands(shown, 0)
    assert names(shown) == ["Render", "Output"]
    press("4")
    press("Shift+Digit1")
    assert names(shown) == ["Source", "Truth"]
    press("x")
    assert names(shown) == ["Truth", "Source"]
    press("m")
    assert shown.get_attribute("#mask", "aria-pressed") == "true"
    for key, mode in (("w", "one"), ("w", "wipe"), ("a", "all")):
        press(key)
        assert mode in shown.get_attribute("#stage", "class")
    press("]")
    assert stands(shown, 0)
    assert shown.locator("#clips [aria-pressed=true] b").inner_text() == "t"
    assert shown.locator("aside:visible .notes").inner_text().startswith("The output was made of")
    press("[")
    press("?")
    assert shown.is_visible("#help")
    shown.uncheck("#listen")
    shown.click("#close")
    press("w")
    assert "all" in shown.get_attribute("#stage", "class")


def test_the_wipe_moves_by_mouse_and_by_keys(shown):
    def at():
        return int(shown.get_attribute("#wipe", "aria-valuenow"))

    box = shown.locator("#stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    shown.mouse.move(box["x"] + box["width"] / 2, middle)
    shown.mouse.down()
    shown.mouse.move(box["x"] + box["width"] / 4, middle)
    shown.mouse.up()
    assert at() == 25
    clip = shown.evaluate("getComputedStyle(document.querySelector('#stage .a')).clipPath")
    assert "75%" in clip
    shown.focus("#wipe")
    shown.keyboard.press("ArrowRight")
    assert at() == 27 and stands(shown, 3)
    shown.keyboard.press("End")
    assert at() == 100


def test_clips_of_all_kinds_open_and_texts_stay_texts(shown):
    for group, count in (("Held-out pairs (1)", 4), ("Training (1)", 3), ("Camera paths (2)", 6)):
        shown.get_by_text(group).click()
        stands(shown, 3)
        assert shown.locator("#stage video").count() == count
    assert shown.title() == "a scene #1: report"
    assert "</script><img" in shown.inner_text(".said")
    assert shown.locator("img:not(#clips img)").count() == 0
    shown.keyboard.press("Space")  # after a click on a button it plays all the same
    assert shown.get_attribute("#play", "aria-label") == "Pause"


def test_a_phone_in_the_dark(browser, page):
    tab = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
    tab.goto(page.file.as_uri())
    stands(tab, 3)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = tab.evaluate("""["backgroundColor", "color"].map((name) =>
        getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))""")
    assert max(colours[0]) < 40 and min(colours[1]) > 200
    tab.close()
