"""Whether the gain that toolbox/score.py estimates from held-out pairs is there in exact new views.

    python toolbox/small_model/evaluate_score.py --model_path checkpoints/tiny/base \\
        --cognvs_ckpt_path checkpoints/tiny/cognvs_ckpt_inpaint --output_dir /tmp/evaluation

Ray-traced scenes, of a world like the trained one and of another, are finetuned on in several ways,
some of which do harm. Each time the gain in holes, over the weights before, is measured in the
exact views of the four shipped paths, on held-out pairs along them, and on these mirrored. Every
finetuning is a line of OUTPUT_DIR/score_{set}.jsonl; what is there is not done again. At the end
stand rank correlations (Spearman's) of each estimate with the exact gains.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.evaluation.gains import estimated_gain
from toolbox.small_model import evaluate_method
from toolbox.small_model.evaluate_method import FIRST_SEED
from toolbox.synthetic import clips
from utils import camera_paths, cli, metrics

RATES = (1e-5, 5e-5, 2e-4, 1e-3)  # the last does harm
STEPS = (25, 100)
SEEDS = (42, 43)  # of noise
ESTIMATES = {
    "as they are": lambda plain, mirrored: plain,
    "mirrored": lambda plain, mirrored: mirrored,
    "estimated": estimated_gain,
}


def parse_args():
    parser = evaluate_method.make_parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True)
    add("--set", choices=FIRST_SEED, default="report", help="of scenes")
    add("--scenes", type=int, default=6, help="of each world")
    add("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="do the I-th of N "
        "parts of the scenes, beside processes that do the others; run once more without it for "
        "the table")
    add("--num_inference_steps", type=int, nargs="+", default=[1, 10])
    args = parser.parse_args()
    if min(args.scenes, *args.num_inference_steps) < 1:
        raise cli.InputError(f"--scenes {args.scenes} --num_inference_steps "
                             f"{args.num_inference_steps}: expected at least 1 of each")
    if not 0 <= args.share[0] < args.share[1]:
        raise cli.InputError(f"--share {args.share[0]} {args.share[1]}: expected I from 0 to N - 1")
    return args


def finetunings():
    """{name: evaluate_method.Finetuning}, from gentle to harmful."""
    found = {}
    for steps in STEPS:
        for rate in RATES:
            found[f"{rate:g} x {steps}"] = evaluate_method.Finetuning(steps, rate)
    return found


def open_pairs(world, seed, shape, device):
    """(clip, {kind: [(render, mask, truth) of each shipped path]}), arrays on the host.

    kinds: exact, plain (held-out pairs as they are), mirrored.
    """
    clip = evaluate_method.film(world, seed, shape, device)
    pairs = {"exact": [], "plain": [], "mirrored": []}
    for path in sorted((evaluate_method.ROOT / "trajs").glob("*.txt")):
        cameras = clips.path_cameras(clip, camera_paths.read_keyframes(path))
        for kind, mode in (("exact", "eval"), ("plain", "train")):
            render, mask = clips.reproject(clip, cameras, mode)
            truth = clips.exact_view(clip, cameras) if kind == "exact" else clip.rgb
            pairs[kind].append([x.cpu().numpy() for x in (render, mask, truth)])
        flipped = [np.ascontiguousarray(x[:, :, ::-1]) for x in pairs["plain"][-1]]
        pairs["mirrored"].append(flipped)
    return clip, pairs


def holes_psnr(pipe, embedding, pairs, steps, seed):
    """{kind: mean PSNR in holes, dB} of what the pipeline makes of pairs {kind: list}."""
    found = {}
    for kind, of_kind in pairs.items():
        values = []
        for render, mask, truth in of_kind:
            picture = evaluate_method.inpaint(pipe, embedding, render, steps, seed)
            values.append(metrics.psnr(picture, truth / 255, ~mask))
        found[kind] = float(np.mean(values))
    return found


def run_scene(args, pipe, embedding, world, seed, done, add):
    """Do all that is missing of a scene; add(row) keeps a result."""
    original = pipe.transformer
    opened = None
    for name, settings in {"before": None, **finetunings()}.items():
        missing = [steps for steps in args.num_inference_steps
                   if (world, seed, name, steps) not in done]
        if not missing:
            continue
        opened = opened or open_pairs(world, seed, pipe.clip_shape, pipe.device)
        clip, pairs = opened
        if settings:
            pipe.transformer = evaluate_method.finetune(pipe, embedding, clip, settings)
        for steps in missing:
            each = [holes_psnr(pipe, embedding, pairs, steps, noise) for noise in SEEDS]
            psnr = {kind: float(np.mean([found[kind] for found in each])) for kind in pairs}
            add({"world": world, "scene": seed, "finetuning": name, "steps": steps, **psnr})
        pipe.transformer = original


def gains(rows, steps):
    """{kind: gains in dB [scenes, finetunings]} over the weights before."""
    psnr = {}
    for row in rows:
        if row["steps"] == steps:
            psnr[row["world"], row["scene"], row["finetuning"]] = row
    scenes = sorted({key[:2] for key in psnr})
    found = {}
    for kind in ("exact", "plain", "mirrored"):
        table = []
        for scene in scenes:
            before = psnr[*scene, "before"][kind]
            table.append([psnr[*scene, name][kind] - before for name in finetunings()])
        found[kind] = np.array(table)
    return found


def report(rows, steps):
    """Markdown: how the estimates agree with the exact gains, and the means of both."""
    found = gains(rows, steps)
    exact = found["exact"]
    lines = ["| held-out gain | rank correlation | within scenes | same sign | bias dB |",
             "| --- | --- | --- | --- | --- |"]
    means = [f"| exact | {row_of(exact)} |"]
    for name, estimate in ESTIMATES.items():
        told = estimate(found["plain"], found["mirrored"])
        within = np.mean([spearmanr(a, b).statistic for a, b in zip(told, exact, strict=True)])
        lines.append(f"| {name} | {spearmanr(told.ravel(), exact.ravel()).statistic:.2f} | "
                     f"{within:.2f} | {np.mean((told > 0) == (exact > 0)):.0%} | "
                     f"{np.mean(told - exact):+.2f} |")
        means.append(f"| {name} | {row_of(told)} |")
    head = f"| gain, dB | {' | '.join(finetunings())} |\n{'| --- ' * (1 + exact.shape[1])}|"
    return "\n".join([*lines, "", head, *means])


def row_of(table):
    return " | ".join(f"{value:+.2f}" for value in table.mean(0))


def main():
    args = parse_args()
    pipe, embedding, weights = evaluate_method.load(args)
    path = args.output_dir / f"score_{args.set}.jsonl"
    first = FIRST_SEED[args.set]
    scenes = []
    for world in ("rooms", "yards"):
        scenes += [(world, seed) for seed in range(first, first + args.scenes)]
    with evaluate_method.results_file(path, weights) as (rows, add):
        done = {(row["world"], row["scene"], row["finetuning"], row["steps"]) for row in rows}
        for world, seed in tqdm(scenes[args.share[0] :: args.share[1]], unit="scene"):
            run_scene(args, pipe, embedding, world, seed, done, add)
    if args.share[1] > 1:
        return
    for steps in args.num_inference_steps:
        print(f"\n{len(scenes)} scenes, {steps} denoising steps\n\n{report(rows, steps)}")


if __name__ == "__main__":
    cli.run(main)
