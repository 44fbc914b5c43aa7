"""toolbox/design_path.py: its page in a browser shows, and saves, what data_gen.py renders."""

import base64
import json
import warnings
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from conftest import ROOT, call
from scipy.interpolate import UnivariateSpline
from scipy.spatial.transform import Rotation

from utils import camera_paths, sequence, trajectory, video
from utils.designer import page as design

FLAGS = ("--intrinsics_file", sequence.INTRINSICS, "--extrinsics_file", sequence.C2WS)
MOVES = {"phi": 30, "theta": 15, "r": 0.3, "x": 0.1, "y": 0.1, "z": 0.1, "yaw": 8, "pitch": 8,
         "roll": 10}


def make(folder, dtype, size=(75, 101), seed=0, count=6):
    """A sequence of an odd size: a smooth video, depth of another size, partly unknown."""
    rng = np.random.default_rng(seed)
    info = video.VideoInfo(frames=count, height=size[0], width=size[1], fps=12)
    blocks = rng.integers(90, 170, (count, 9, 12, 3), np.uint8)
    frames = video.resize(blocks, *size, cv2.INTER_CUBIC)
    video.write_video(folder / "gt_rgb.mp4", frames, info)
    y, x = np.mgrid[:43, :58]
    depth = 3 + np.sin(x / 5) * np.cos(y / 7) + (x > 30) + rng.uniform(0, 0.02, (count, 43, 58))
    depth[:, 10:14, 40:45] = 0
    sequence.save_array(folder / sequence.DEPTH, depth.astype(dtype))
    k = np.array([[60.0, 0, 29], [0, 60, 21.5], [0, 0, 1]])
    sequence.save_array(folder / sequence.INTRINSICS, k)
    moved = np.tile(np.eye(4), (count, 1, 1))
    moved[:, 0, 3] = np.arange(count) / 20
    sequence.save_array(folder / sequence.C2WS, moved)
    return folder


def write_page(folder, *args):
    assert call("toolbox.design_path", "--data_path", folder, *FLAGS, *args) == 0
    return folder / "design.html"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("design") / "odd scene", np.float16)
    write_page(folder, "--trajs", f"{ROOT}/trajs,spiral:8,orbit_left:20+dolly_in:0.1@ease")
    return folder


@contextmanager
def opener(browser):
    """A function that opens a page in a new context; nothing on it may complain or ask a host."""
    faults, contexts = [], []

    def opened(file, script=None, **options):
        context = browser.new_context(viewport={"width": 1300, "height": 1400}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(("file:", "blob:", "data:"))
               or faults.append(request.url))
        if script:
            tab.add_init_script(script)
        tab.goto(file.as_uri())
        if not script:
            tab.wait_for_function("document.getElementById('share').textContent.includes('holes')")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def open_page(browser):
    with opener(browser) as opened:
        yield opened


@pytest.fixture(scope="module")
def formulas(odd, browser):
    """A page whose functions are called and whose paths stay as they are."""
    with opener(browser) as opened:
        yield opened(odd / "design.html")


def saved(tab, path, button="#json"):
    """What a button lets the browser save."""
    with tab.expect_download() as download:
        tab.click(button)
    download.value.save_as(path)
    return path


def drag(tab, dx, dy, *keys):
    """Drag the new view by pixels, with keys held."""
    box = tab.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for key in keys:
        tab.keyboard.down(key)
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + dx / 2, y + dy / 2)
    tab.mouse.move(x + dx, y + dy)
    tab.mouse.up()
    for key in keys:
        tab.keyboard.up(key)


def to_frame(tab, frame):
    tab.locator("#scrub").fill(str(frame))


def views(tab, frames):
    """What the page shows at frames: pixels uint8 [n, H, W, 3] and where they are known."""
    told = tab.evaluate("""async (frames) => {
      const inText = (bytes) => btoa(Array.from(bytes, (c) => String.fromCharCode(c)).join(""));
      const found = [];
      for (const frame of frames) {
        const view = camera(computed[state.chosen].cameras, frame);
        const asked = {...view, holes: "black", isMaskWanted: true};
        const {pixels, mask} = await warp.ask("view", asked);
        found.push([inText(pixels), inText(mask)]);
      }
      return [data.height, data.width, found];
    }""", frames)
    height, width, found = told
    pixels = np.frombuffer(b"".join(base64.b64decode(each[0]) for each in found), np.uint8)
    mask = np.frombuffer(b"".join(base64.b64decode(each[1]) for each in found), bool)
    return pixels.reshape(-1, height, width, 4)[..., :3], mask.reshape(-1, height, width)


def rendered(folder, *args):
    """What data_gen.py makes of the same: pixels and mask of all frames."""
    assert call("data_gen", "--data_path", folder, "--mode", "eval", "--device", "cpu",
                "--overwrite", "--crf", 0, *FLAGS, *args) == 0
    mask = video.read_video(folder / "eval_mask1.mp4")[..., 0] > 127
    return video.read_video(folder / "eval_render1.mp4"), mask


def set_randomly(tab, frames, seed):
    """Keyframes of a new path: random orbits, free moves and focal lengths at some frames."""
    rng = np.random.default_rng(seed)
    tab.click("#new")
    for frame in frames:
        values = {axis: rng.uniform(-most, most) for axis, most in MOVES.items()}
        values["zoom"] = rng.uniform(0.8, 1.3)
        tab.evaluate("([frame, values]) => change(() => setKey(path(), momentOf(frame), values))",
                     [frame, values])


# ---- what is shown is what is rendered -----------------------------------------------------------


@pytest.mark.parametrize("size, flags", [((75, 101), ()), ((64, 88), ("--edge_threshold", 0.1))])
def test_masks_equal_those_of_data_gen(size, flags, open_page, tmp_path):
    folder = make(tmp_path / "scene", np.float16, size, seed=5)
    tab = open_page(write_page(folder, *flags))
    frames = [0, 1, 3, 4, 5]
    set_randomly(tab, frames, seed=7)
    pixels, mask = views(tab, frames)
    file = saved(tab, tmp_path / "mine.json")
    assert " ".join(map(str, flags)) in tab.locator("#command").text_content()
    expected, known = rendered(folder, *flags, "--cameras", file)
    assert 0.05 < 1 - mask.mean() < 0.9
    np.testing.assert_array_equal(mask, known[frames])
    apart = np.abs(pixels.astype(int) - expected[frames])[mask]
    assert apart.mean() < 3


def test_depth_of_float32_is_rounded_so_little_that_masks_are_nearly_equal(open_page, tmp_path):
    folder = make(tmp_path / "fine", np.float32, seed=3)
    tab = open_page(write_page(folder))
    set_randomly(tab, [0, 5], seed=1)
    _, mask = views(tab, list(range(6)))
    _, known = rendered(folder, "--cameras", saved(tab, tmp_path / "mine.json"))
    assert (mask != known).mean() < 1e-3


def test_paths_given_are_those_of_trajectory(odd, formulas):
    seq = sequence.open_sequence(odd, intrinsics_file=sequence.INTRINSICS)
    paths = camera_paths.find_paths(f"{ROOT}/trajs,spiral:8,orbit_left:20+dolly_in:0.1@ease", None,
                                    seq.intrinsics, seq.size)
    found = formulas.evaluate("computed.map(({cameras}) => cameras)")
    assert len(found) == len(paths) == 6
    for got, (_, path) in zip(found, paths, strict=True):
        expected = camera_paths.cameras_of(path, seq.intrinsics, camera_paths.find_pivot(None, seq))
        np.testing.assert_allclose(got["c2w"], expected.c2w, atol=1e-7)
        np.testing.assert_allclose(got["intrinsics"], expected.intrinsics, atol=1e-9)


def test_the_spline_is_scipys(formulas):
    rng = np.random.default_rng(0)
    at = np.linspace(0, 1, 49)
    keys = [[0, 3, -8, 12, 0, 5]]
    for _ in range(150):
        steps = rng.normal(size=rng.integers(4, 30)) * 10 ** rng.uniform(-1, 2)
        keys.append(np.cumsum(steps).tolist())
    found = formulas.evaluate(
        "([all, at]) => all.map((keys) => spline(keys, at))", [keys, at.tolist()])
    for one, got in zip(keys, found, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = UnivariateSpline(np.linspace(0, 1, len(one)), one, k=3)(at)
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1, np.abs(one).max()))


def test_presets_added_on_the_page_are_those_joined_by_trajs(formulas):
    for item in ("spiral:8+orbit_right:5", "orbit_right:5+spiral:8+zoom_in:0.2+zoom_out:0.1"):
        parts = [part.split(":") for part in item.split("+")]
        got = formulas.evaluate("""(parts) => {
          const one = newPath("path");
          for (const [name, amount] of parts) {
            addPreset(one, data.presets.find((preset) => preset.name === name), +amount, 0);
          }
          return one;
        }""", parts)
        assert got["between"] == "spline"
        for axis, keys in camera_paths.preset_keyframes(item).items():
            expected = np.column_stack([np.linspace(0, 1, len(keys)), keys])
            np.testing.assert_allclose(got["tracks"][axis], expected, atol=1e-12)
    chosen = formulas.evaluate("""() => {
      const one = {...newPath("path"), tracks: {phi: [[0, 0], [0.2, 3], [0.5, 1], [1, 4]]}};
      addPreset(one, data.presets.find(({name}) => name === "orbit_right"), 5, 0);
      return [one.between, valuesAt(one, 0.5).phi];
    }""")
    assert chosen == ["lines", 3.5]


def test_the_first_and_last_camera_are_the_end_keys(formulas):
    found = formulas.evaluate("""() => {
      const one = fromTxt("a.txt", ["0 3 -8 12 0 5", 0, 0].join(String.fromCharCode(10)));
      return [0, 1].map((t) => valuesAt(one, t).phi);
    }""")
    assert found == [0, 5]
    for keys in ([2, 7], [0, 3, -8, 12, 0, 5]):
        of_one_frame = formulas.evaluate("""(keys) => {
          const track = keys.map((key, i) => [evenly(keys.length)[i], key]);
          return valuesOf(track, 0, "spline", moments(1, false));
        }""", keys)
        assert of_one_frame == trajectory.interpolate(keys, 1).tolist()


def test_a_picked_point_stays_in_place_as_a_camera_file_turns_about_it(formulas):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [10, 20, 5], degrees=True).as_matrix()
    turn[:3, 3] = 0.3, -0.2, 0.4
    point = [0.5, 0.2, 3]
    moved = formulas.evaluate("""([base, point]) => {
      const one = newPath("path");
      one.base = {c2w: data.k.map(() => base), intrinsics: data.k};
      one.pivot = {pixel: [0, 0], point};
      setKey(one, 0, {phi: 25, theta: -10});
      return cameras(one, source).c2w[0];
    }""", [turn.tolist(), point])
    at = [*point, 1]
    np.testing.assert_allclose(np.linalg.inv(moved) @ at, np.linalg.inv(turn) @ at, atol=1e-12)
    assert np.abs(np.array(moved) - turn).max() > 0.1


def test_half_turns_between_keys_are_scipys(formulas):
    rng = np.random.default_rng(4)
    turns = [Rotation.identity(), Rotation.from_matrix(np.diag([1.0, -1, -1])),
             Rotation.from_matrix(np.diag([-1.0, -1, 1])), *Rotation.random(3, rng=rng)]
    keys = np.tile(np.eye(4), (len(turns), 1, 1))
    keys[:, :3, :3] = [turn.as_matrix() for turn in turns]
    keys[:, :3, 3] = rng.normal(size=(len(turns), 3))
    got = formulas.evaluate("(keys) => betweenPoses(keys, 17)", keys.tolist())
    np.testing.assert_allclose(got, trajectory.between_keys(keys, 17), atol=1e-9)


# ---- drawing, saving, loading --------------------------------------------------------------------


def test_a_path_is_drawn_by_the_mouse_undone_and_rendered(odd, open_page, tmp_path):
    tab = open_page(odd / "design.html")
    tab.click("#new")
    to_frame(tab, 5)
    drag(tab, 120, -30)
    tab.mouse.wheel(0, -120)
    tab.wait_for_function("wheel")  # a change that follows ends its turn first
    end = tab.evaluate("valuesAt(path(), 1)")
    assert end["phi"] < -5 and end["theta"] < -1 and end["r"] == pytest.approx(0.04)
    to_frame(tab, 2)
    drag(tab, 60, 0, "Shift")
    assert tab.evaluate("steps.undo.length") == 4
    drag(tab, 0, 40, "Alt")
    middle = tab.evaluate("valuesAt(path(), momentOf(2))")
    assert middle["x"] < -0.02 and middle["pitch"] > 1
    assert middle["phi"] == pytest.approx(0.4 * end["phi"])
    assert tab.locator("#txt").is_disabled()
    assert "moves freely" in tab.locator("#why").text_content()
    for _ in range(2):
        tab.click("#undo")
    assert tab.evaluate("keyTimes(path())") == [0, 1] and tab.locator("#txt").is_enabled()
    tab.click("#redo")
    tab.click("#undo")
    txt = saved(tab, tmp_path / "mine.txt", "#txt")
    keys = camera_paths.read_keyframes(txt)
    assert keys["phi"] == [0, end["phi"]] and keys["r"] == [0, end["r"]]
    c2w = tab.evaluate("computed[state.chosen].cameras.c2w")
    assert call("data_gen", "--data_path", odd, "--mode", "eval", "--device", "cpu", *FLAGS[:2],
                "--trajs", txt) == 0
    k = sequence.open_sequence(odd, intrinsics_file=sequence.INTRINSICS).intrinsics
    cameras = camera_paths.read_cameras(odd / "eval_cameras1.npz", k)
    np.testing.assert_allclose(c2w, cameras.c2w, atol=1e-12)


def test_json_and_txt_return_as_they_were(odd, open_page, tmp_path):
    tab = open_page(odd / "design.html")
    set_randomly(tab, [0, 2, 3, 5], seed=3)
    tab.select_option("#anchor", "first")
    tab.select_option("#ease", index=1)
    first = saved(tab, tmp_path / "mine.json")
    k = sequence.open_sequence(odd, intrinsics_file=sequence.INTRINSICS).intrinsics
    cameras = camera_paths.read_cameras(first, k)
    told = json.loads(first.read_text())
    np.testing.assert_array_equal(cameras.c2w, told["c2w"])
    np.testing.assert_array_equal(cameras.intrinsics, told["intrinsics"])
    tab.locator("#file").set_input_files(first)
    tab.wait_for_function("state.paths.length === 8")
    assert tab.evaluate("keyTimes(path()).length") == 4
    again = saved(tab, tmp_path / "again.json").read_text()
    assert again.replace('"mine"', '"path"') == first.read_text()
    other = tmp_path / "other.json"  # of another program: its numbers are kept
    other.write_text(json.dumps({"c2w": told["c2w"], "intrinsics": told["intrinsics"]}))
    tab.locator("#file").set_input_files(other)
    tab.wait_for_function("state.paths.length === 9")
    back = json.loads(saved(tab, tmp_path / "back.json").read_text())
    assert back["c2w"] == told["c2w"] and back["intrinsics"] == told["intrinsics"]
    for name in ("traj1", "traj4"):
        tab.locator("#file").set_input_files(ROOT / "trajs" / f"{name}.txt")
        tab.wait_for_function(f"path().name === '{name}_2'")
        txt = saved(tab, tmp_path / f"{name}.txt", "#txt")
        assert camera_paths.read_keyframes(txt) == \
            camera_paths.read_keyframes(ROOT / "trajs" / f"{name}.txt")


def test_keys_shared_by_slerp_are_those_of_trajectory(odd, open_page, tmp_path):
    file = sorted((ROOT / "trajs" / "davis10").glob("*.json"))[0]
    tab = open_page(odd / "design.html")
    tab.locator("#file").set_input_files(file)
    tab.wait_for_function("state.paths.length === 7")
    k = sequence.open_sequence(odd, intrinsics_file=sequence.INTRINSICS).intrinsics
    np.testing.assert_allclose(tab.evaluate("computed[state.chosen].cameras.c2w"),
                               camera_paths.read_cameras(file, k).c2w, atol=1e-9)


def test_a_click_sets_what_the_camera_turns_about(odd, open_page, tmp_path):
    tab = open_page(odd / "design.html")
    tab.click("#pick")
    box = tab.locator("#view").bounding_box()
    tab.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.6 * box["height"])
    tab.wait_for_function("path().pivot")
    pivot = tab.evaluate("path().pivot")
    seq = sequence.open_sequence(odd, intrinsics_file=sequence.INTRINSICS)
    x, y = pivot["pixel"]
    np.testing.assert_allclose(pivot["point"], camera_paths.find_pivot(f"{x},{y}", seq), rtol=1e-6)
    tab.click("#txt")
    assert tab.locator("#command").text_content().endswith(f"--trajs traj1.txt --pivot {x},{y}")
    tab.locator("#file").set_input_files(saved(tab, tmp_path / "mine.txt", "#txt"))
    tab.wait_for_function("path().name === 'mine'")
    assert tab.evaluate("path().pivot") == pivot


def test_keys_move_in_time_and_are_copied_and_deleted(odd, open_page):
    tab = open_page(odd / "design.html")
    tab.click("#new")
    for frame, dx in ((0, 30), (2, -50), (5, 40)):
        to_frame(tab, frame)
        drag(tab, dx, 0)
    assert tab.evaluate("keyTimes(path())") == [0, 0.4, 1]
    key = tab.locator("#keys button").nth(1).bounding_box()
    strip = tab.locator("#keys").bounding_box()
    tab.mouse.move(key["x"] + key["width"] / 2, key["y"] + key["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(strip["x"] + 0.82 * strip["width"], key["y"])
    tab.mouse.up()
    assert tab.evaluate("keyTimes(path())") == [0, 0.8, 1]
    tab.click("#copy")
    to_frame(tab, 1)
    tab.click("#paste")
    assert tab.evaluate("valuesAt(path(), 0.2).phi === valuesAt(path(), 0.8).phi")
    assert tab.evaluate("path().between") == "smooth"  # four keys
    tab.click("#delete")
    assert tab.evaluate("keyTimes(path())") == [0, 0.8, 1]


def test_a_key_stops_before_its_neighbour(odd, open_page):
    tab = open_page(odd / "design.html")
    tab.click("#new")
    tab.select_option("#ease", index=1)
    for frame in (0, 2, 4, 5):
        tab.evaluate("([frame]) => change(() => setKey(path(), momentOf(frame), {phi: frame}))",
                     [frame])
    key = tab.locator("#keys button").nth(2).bounding_box()
    strip = tab.locator("#keys").bounding_box()
    tab.mouse.move(key["x"] + key["width"] / 2, key["y"] + key["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(strip["x"] + 0.9 * strip["width"], key["y"])
    tab.mouse.move(strip["x"], key["y"])
    tab.mouse.up()
    frames = tab.evaluate("keyTimes(path()).map(frameOf)")
    np.testing.assert_allclose(frames, [0, 2, 3, 5], atol=1e-9)
    assert tab.evaluate("computed[state.chosen].curves.phi.every(Number.isFinite)")


def test_a_key_between_frames_is_edited_and_deleted_at_the_next_one(odd, open_page, tmp_path):
    tab = open_page(odd / "design.html")
    (tmp_path / "three.txt").write_text("0 4 0\n0\n0\n")
    tab.locator("#file").set_input_files(tmp_path / "three.txt")
    tab.wait_for_function("path().name === 'three'")
    to_frame(tab, 2)
    assert tab.locator("#key-title").text_content() == "Camera at the key at 2.5"
    assert tab.locator("#field-phi").input_value() == "4"
    tab.locator("#field-phi").fill("6")
    tab.locator("#field-phi").blur()
    assert tab.evaluate("path().tracks.phi") == [[0, 0], [0.5, 6], [1, 0]]
    tab.click("#delete")
    assert tab.evaluate("keyTimes(path())") == [0, 1]


def test_holes_are_those_of_the_paths_as_they_are(odd, open_page):
    tab = open_page(odd / "design.html")
    apart = tab.evaluate("""async () => {
      const until = async (isTrue) => {
        while (!isTrue()) await new Promise((go) => setTimeout(go, 20));
      };
      await until(() => computed.every((one) => one.isCounted));
      change(() => setKey(path(), 1, {phi: 40}));
      choose(1);
      change(() => setKey(path(), 1, {theta: 25}));
      await until(() => computed.every((one) => one.isCounted));
      const apart = [];
      for (const {cameras: all, holes} of computed.slice(0, 2)) {
        for (let i = 0; i <= last; i++) {
          apart.push(Math.abs(holes[i] - await warp.ask("holes", camera(all, i))));
        }
      }
      return apart;
    }""")
    assert len(apart) == 12 and max(apart) == 0


def test_two_fingers_move_roll_and_bring_closer(odd, open_page):
    tab = open_page(odd / "design.html", has_touch=True)
    tab.click("#new")
    tab.locator("#view").scroll_into_view_if_needed()
    box = tab.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = tab.context.new_cdp_session(tab)

    def touch(kind, degrees=0, length=0):
        a = np.radians(degrees)
        ends = [(x - length * np.cos(a), y - length * np.sin(a)),
                (x + length * np.cos(a), y + length * np.sin(a))]
        points = [{"x": end[0], "y": end[1], "id": i} for i, end in enumerate(ends)]
        session.send("Input.dispatchTouchEvent",
                     {"type": kind, "touchPoints": points if length else []})

    touch("touchStart", 170, 60)
    touch("touchMove", 178, 70)
    touch("touchMove", 190, 80)  # past where the angle jumps by 360 degrees
    touch("touchEnd")
    tab.wait_for_function("steps.undo.length === 2")
    end = tab.evaluate("valuesAt(path(), 0)")
    assert end["roll"] == pytest.approx(-20, abs=1)
    assert end["r"] == pytest.approx(np.log(80 / 60) / 2, abs=0.02)
    assert abs(end["x"]) < 0.01 and end["phi"] == 0


def test_files_have_names_of_their_own_and_saving_all_counts(odd, open_page):
    tab = open_page(odd / "design.html")
    names = tab.evaluate("""() => {
      state.paths[0].name = "--a b";
      state.paths[1].name = "A_b";
      return state.paths.map((one) => fileName(one, "json"));
    }""")
    assert names[:2] == ["a_b.json", "A_b_2.json"] and len(set(names)) == 6
    tab.evaluate("remember()")
    assert "until saved" in tab.locator("#unsaved").text_content()
    for i in range(2):
        tab.evaluate("choose", i)
        with tab.expect_download():
            tab.click("#json")
    assert tab.locator("#unsaved").text_content() == ""
    assert tab.evaluate("localStorage.length") == 0


def test_a_video_of_one_frame(open_page, tmp_path):
    folder = make(tmp_path, np.float16, count=1)
    write_page(folder, "--trajs", f"{ROOT}/trajs/traj4.txt,orbit_left:5")
    tab = open_page(folder / "design.html")
    drag(tab, 30, 0)
    assert "NaN" not in tab.locator("#all").inner_html()
    assert tab.evaluate("computed[0].cameras.c2w.flat(2).every(Number.isFinite)")


def test_unsaved_work_is_there_after_a_reload(odd, open_page):
    tab = open_page(odd / "design.html")
    tab.click("#new")
    to_frame(tab, 5)
    drag(tab, 40, 0)
    before = tab.evaluate("path().tracks.phi")
    tab.reload()
    tab.wait_for_function("!document.getElementById('note').hidden")
    assert tab.evaluate("path().tracks.phi") == before
    tab.click("#note button")
    assert tab.evaluate("state.paths.length") == 6


def test_wrong_files_are_one_line_and_change_nothing(odd, open_page, tmp_path):
    tab = open_page(odd / "design.html")
    for name, text, words in (
        ("a.txt", "0 1\n2", "a.txt has 2 lines"), ("b.txt", "0\n0\nx", "b.txt, line 3"),
        ("c.json", "{", "c.json is no JSON"), ("d.json", "{}", "neither c2w nor keys"),
        ("e.json", json.dumps({"c2w": [[1, 2], [3, 4]]}), "c2w must be 4 x 4"),
        ("f.json", json.dumps({"c2w": np.eye(4).tolist(), "frames": [1, 0, 2, 3, 4, 5]}), "frames"),
        ("g.txt", "0 0x10\n0\n0", "got 0x10"), ("h.txt", "0\n,\n0", "h.txt has 2 lines"),
        ("i.txt", "0\n0\n" + "0 " * 1001, "has 1001 numbers"),
        ("j.json", json.dumps({"c2w": np.diag([2.0, 2, 2, 1]).tolist()}), "c2w 0 is no rotation"),
        ("k.json", json.dumps({"c2w": np.diag([1.0, 1, -1, 1]).tolist()}), "c2w 0 is no rotation"),
        ("l.json", json.dumps({"keys": [np.eye(4).tolist(), np.ones((4, 4)).tolist()]}), "key 1"),
        ("m.json", json.dumps({"c2w": np.eye(4).tolist(),
                               "intrinsics": np.diag([-5.0, 5, 1]).tolist()}), "0 is no K"),
        ("n.json", json.dumps({"c2w": np.eye(4).tolist(), "frames": [0.5] * 6}), "frames"),
    ):
        (tmp_path / name).write_text(text)
        tab.locator("#file").set_input_files(tmp_path / name)
        tab.wait_for_function("words => document.querySelector('#note span').textContent"
                              ".includes(words)", arg=words)
    assert tab.evaluate("state.paths.length") == 6
    odd_keys = {"phi": [[0, "x"], [0.3, 1], [0.6, 2], [1, 3]], "theta": 5}
    (tmp_path / "z.json").write_text(json.dumps(
        {"c2w": np.eye(4).tolist(), "design": {"between": "spline", "tracks": odd_keys}}))
    tab.locator("#file").set_input_files(tmp_path / "z.json")  # its design is left out
    tab.wait_for_function("path().name === 'z'")
    assert tab.evaluate("path().tracks") == {"phi": [[0, 0]], "theta": [[0, 0]], "r": [[0, 0]]}
    (tmp_path / "mac.txt").write_bytes(b"1,2\r0 # up\r0 0.5 1.\r")
    tab.locator("#file").set_input_files(tmp_path / "mac.txt")
    tab.wait_for_function("path().name === 'mac'")
    assert tab.evaluate("path().tracks.r") == [[0, 0], [0.5, 0.5], [1, 1]]


def test_a_browser_that_lacks_something_is_told_what_to_use(odd, open_page):
    tab = open_page(odd / "design.html", "delete window.DecompressionStream")
    told = tab.locator("#trouble").text_content()
    assert "has no DecompressionStream" in told and "data_gen.py --preview" in told
    assert not tab.locator("#all").is_visible()


# ---- the file ------------------------------------------------------------------------------------


def test_large_and_long_videos_are_made_smaller_and_the_page_says_so(open_page, tmp_path):
    info = video.VideoInfo(frames=120, height=20, width=900, fps=30)
    video.write_video(tmp_path / "gt_rgb.mp4", np.zeros((120, 20, 900, 3), np.uint8), info)
    sequence.save_array(tmp_path / sequence.DEPTH, np.full((120, 20, 900), 2.5, np.float32))
    assert call("toolbox.design_path", "--data_path", tmp_path, "--trajs", "orbit_left:5") == 0
    tab = open_page(tmp_path / "design.html")
    facts = tab.locator("#facts").text_content()
    assert "shown at 854 × 19" in facts and "one frame in 2" in facts
    assert tab.evaluate("data.pictures.length") == 60


def test_codes_of_depth_return_it():
    rng = np.random.default_rng(1)
    exact = np.exp(rng.uniform(-3, 5, (2, 9, 7))).astype(np.float16)
    assert "kind" not in design.encode_depth(exact)
    fine = exact.astype(np.float32) * 1.0001
    for depth, kind in ((fine, "log"), (fine.clip(1, 20), "inverse")):
        coded = design.encode_depth(depth)
        low, step = coded["low"], coded["step"]
        assert coded["kind"] == kind
        even = np.log(depth) if kind == "log" else 1 / depth.astype(np.float64)
        codes = (even - low) / step
        assert codes.min() >= 1 - 0.01 and codes.max() <= 65535 + 0.01
        assert step / 2 < 1e-4


def test_a_preview_writes_the_page_too(odd, capsys):
    assert call("data_gen", "--data_path", odd, "--mode", "eval", "--preview", "--device", "cpu",
                "--trajs", "dolly_in:0.1") == 0
    assert f"wrote {odd / 'design.html'}" in capsys.readouterr().out
    told = (odd / "design.html").read_text()
    assert '"name":"dolly_in:0.1"' in told and str(ROOT) not in told


def test_presets_are_lines_in_their_amount():
    for preset in design.presets():
        keys = trajectory.PRESETS[preset["name"]][2](0.37)
        for axis, key in keys.items():
            ends = np.array([preset["zero"][axis], preset["one"][axis]], float)
            if axis != "frozen":
                np.testing.assert_allclose(ends[0] + 0.37 * (ends[1] - ends[0]), key, atol=1e-12)
