"""What the tests share: a small model and a small synthetic sequence, by the project's programs."""

import importlib
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def call(script, *args):
    """Run a script's main() in this process as its user would: the exit code."""
    main = importlib.import_module(script).main
    from utils import cli

    before = sys.argv
    sys.argv = [script, *map(str, args)]
    try:
        cli.run(main)
        return 0
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random model of 17 x 64 x 96: base/ and cognvs_ckpt_inpaint/."""
    folder = tmp_path_factory.mktemp("model")
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder,
                "--frames", 17, "--height", 64, "--width", 96) == 0
    return folder


@pytest.fixture(scope="session")
def made_room(tmp_path_factory):
    """A synthetic sequence of 17 x 64 x 96, its depth at full size, its K not the default one."""
    folder = tmp_path_factory.mktemp("sequence") / "room"
    assert call("toolbox.synthetic.make_synthetic_sequence", "--output_dir", folder,
                "--frames", 17, "--height", 64, "--width", 96, "--focal", 100,
                "--depth_scale", 1, "--crf", 0) == 0
    return folder


@pytest.fixture
def room(made_room, tmp_path):
    """A fresh copy of the synthetic sequence."""
    return Path(shutil.copytree(made_room, tmp_path / "room"))


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a GPU."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not shutil.which("chromium"):
        pytest.skip("no chromium")
    with playwright.sync_playwright() as tools:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()
