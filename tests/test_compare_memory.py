import re

from conftest import call

from utils import pipeline


def test_every_mode_gets_a_curve_from_one_start(model, room, tmp_path, monkeypatch, capsys):
    encode, kept = pipeline.CogNVSPipeline.posterior, {}

    def encode_once(pipe, clip):  # in bf16 it takes most of the time
        key = round(clip.float().mean().item(), 2)
        kept[key] = kept.get(key) or encode(pipe, clip)
        return kept[key]

    monkeypatch.setattr("utils.pipeline.CogNVSPipeline.posterior", encode_once)
    assert call("data_gen", "--data_path", room, "--mode", "train", "--num_train_render", 2, "--device", "cpu") == 0
    assert call("compare_memory", "--data_path", room, "--model_path", model / "base", "--cognvs_ckpt_path",
                model / "cognvs_ckpt_inpaint", "--output_dir", tmp_path, "--learning_rates", 1e-3, "--steps", 10,
                "--seeds", 2, "--samples", 1) == 0  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in capsys.readouterr().out.splitlines() if re.match(r"\| 0.001 ", line)]  # fmt: skip
    assert [mode for _, mode, *_ in rows] == ["float32", "single", "single_fused", "not rounded"]
    assert len({before for _, _, before, *_ in rows}) == 1  # every mode begins with the same weights
    after = [[float(x) for x in row[3].split(",")] for row in rows]
    assert all(len(losses) == 2 and max(losses) < float(rows[0][2]) for losses in after)
    assert (tmp_path / "compare_memory.png").stat().st_size > 1000


def test_one_seed_has_no_range(model, made_room, tmp_path, capsys):
    assert call("compare_memory", "--data_path", made_room, "--model_path", model / "base", "--cognvs_ckpt_path",
                model / "cognvs_ckpt_inpaint", "--output_dir", tmp_path / "new", "--seeds", 1) == 2  # fmt: skip
    assert "two or more" in capsys.readouterr().err and not (tmp_path / "new").exists()
