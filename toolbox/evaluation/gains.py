"""What finetuning gained, told from held-out pairs: averages, an estimate, a verdict."""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from dataclasses import dataclass

import numpy as np

from toolbox.evaluation.measures import MEASURES, REGIONS

# dB: on 12 scenes, of estimates beyond this 92% have the sign of the exact gain, of all 76%.
SURE = 0.5


@dataclass(frozen=True)
class Result:
    """A method on a pair. scores: as of measures.Comparison.result(). seed: None without noise."""

    pair: str
    mirrored: bool
    method: str
    seed: int | None
    scores: dict


def mean(values):
    """The mean of what is there; None of nothing."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def averaged(results):
    """The mean scores of some Results, measure by measure."""
    found = {}
    for region in REGIONS:
        found[region] = {}
        for name in MEASURES:
            found[region][name] = mean([each.scores[region][name] for each in results])
    return found


def of_method(results, method):
    """(scores on pairs as they are, on mirrored ones, spread over seeds in dB or None)."""
    plain = [each for each in results if each.method == method and not each.mirrored]
    mirrored = [each for each in results if each.method == method and each.mirrored]
    by_seed = []
    for seed in {each.seed for each in plain}:
        of_seed = averaged([each for each in plain if each.seed == seed])
        by_seed.append(of_seed["holes"]["psnr"])
    there = [value for value in by_seed if value is not None]
    spread = max(there) - min(there) if len(there) > 1 else None
    return averaged(plain), averaged(mirrored), spread


def estimated_gain(plain, mirrored):
    """What is gained on new views, dB, from what is gained on held-out pairs and on mirrored ones.

    Finetuning sees the whole video, so it learns by heart some of what belongs into held-out holes.
    That shows most in pairs as they are, less in mirrored ones, and least in views that nobody has
    filmed: the step from the first to the second is taken once more. Chosen on other scenes than
    those that small_model/evaluate_score.py measures it on.
    """
    return 2 * mirrored - plain


def gains(results, method, reference):
    """(as they are, mirrored, estimated) gains of a method over another in holes, dB, each a list
    with a number for every seed; empty lists if no pair has a hole."""
    psnr = {}
    for each in results:
        key = each.method, each.seed, each.mirrored, each.pair
        psnr[key] = each.scores["holes"]["psnr"]
    seeds = sorted({each.seed for each in results if each.method == method})
    pairs = sorted({each.pair for each in results if each.scores["holes"]["psnr"] is not None})
    if not pairs:
        return [], [], []
    found = []
    for mirrored in (False, True):
        of_seeds = []
        for seed in seeds:
            better = [psnr[method, seed, mirrored, pair] - psnr[reference, seed, mirrored, pair]
                      for pair in pairs]
            of_seeds.append(float(np.mean(better)))
        found.append(of_seeds)
    estimated = [estimated_gain(*both) for both in zip(*found, strict=True)]
    return *found, estimated


def verdict(method, reference, estimated):
    """One sentence on the estimated gains, dB, one for each seed.

    Better or worse is said only of what is beyond the seeds' differences and SURE.
    """
    if not estimated:
        return f"{method} against {reference}: the held-out pairs have no holes, so nothing is told"
    gain = float(np.mean(estimated))
    spread = max(estimated) - min(estimated)
    seeds = f"seeds differ by {spread:.2f} dB" if len(estimated) > 1 else "one seed"
    if abs(gain) > max(spread, SURE):
        better = "better" if gain > 0 else "worse"
        return f"{method} fills the holes of new views an estimated {abs(gain):.2f} dB {better} " \
               f"than {reference} ({seeds})"
    return f"{method} fills the holes of new views about as well as {reference}: an estimated " \
           f"{gain:+.2f} dB, where {SURE:g} dB or less tell nothing ({seeds})"
