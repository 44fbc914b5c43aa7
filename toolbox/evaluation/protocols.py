"""Published evaluations: their sizes and scenes, and where these lie.

toolbox/eval_metrics.py says what is read of a scene. Its frames are in the order of their numbers;
those of a prediction and of its target may have other names.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from typing import NamedTuple

from toolbox.evaluation import correspondences, sources
from utils.cli import InputError, short


class Protocol(NamedTuple):
    """sizes: (height, width) that are allowed; scenes: () for those that are there;
    correspondences: whether a file may pair frames."""

    sizes: tuple
    scenes: tuple = ()
    correspondences: bool = False


PROTOCOLS = {
    "kubric4d": Protocol(((384, 576),)),
    "pardom4d": Protocol(((384, 576),)),
    "dycheck": Protocol(((480, 360), (960, 720)),
                        ("apple", "block", "paper-windmill", "spin", "teddy"), True),
}


def find_pairs(args):
    """(a Pair of each scene, notes in words) of the folders and the protocol in eval_metrics'
    arguments. Raises InputError as sources.make_pair does, and if no scene is there."""
    protocol = PROTOCOLS[args.protocol]
    roots = [args.pred, args.target] + [args.mask] * (args.mask is not None)
    scenes, notes = find_scenes(protocol, roots)
    pairs = []
    for scene, paths in scenes.items():
        pred, *others = map(sources.open_source, paths)
        place = None
        if protocol.correspondences:
            place = correspondences.find(scene, args.target, args.correspondences)
        if place:
            target = correspondences.read(place, scene)[1]
            others = [correspondences.pick(each, target, place) for each in others]
            notes.append(f"{scene}: frames are paired by {place}")
        pairs.append(sources.make_pair(scene, pred, *others, resize=args.resize, trim=args.trim,
                                       sizes=protocol.sizes))
    return pairs, notes


# ---- scenes --------------------------------------------------------------------------------------


def find_scenes(protocol, roots):
    """({scene: a path in each root}, notes) of the scenes that the first two roots both have.

    roots: of predictions, targets and perhaps masks, which have to be there then.
    """
    names = protocol.scenes or list(entries(roots[1]))
    found = [match(root, names) for root in roots]
    scenes = {}
    for name in names:
        paths = [there.get(name) for there in found]
        if all(paths[:2]):
            scenes[name] = paths
        if all(paths[:2]) and not all(paths):
            raise InputError(f"{roots[2]}: has no {name}; expected masks of every scene")
    if not scenes:
        raise InputError(f"{roots[0]} and {roots[1]}: no scene is in both; expected in each "
                         f"SCENE.mp4, SCENE/ or SCENE_*.mp4 of {short(', '.join(names))}")
    notes = [f"scenes in both folders ({len(scenes)}): {', '.join(scenes)}"]
    for root, there in zip(roots[:2], found, strict=False):
        missing = [name for name in names if name not in there]
        if missing:
            notes.append(f"not in {root}: {', '.join(missing)}")
    if not protocol.scenes:
        unknown = set(entries(roots[0]).values()) - set(found[0].values())
        if unknown:
            notes.append(f"not in {roots[1]}: {', '.join(sorted(map(str, unknown)))}")
    return scenes, notes


def entries(root):
    """{name: path} of a folder's videos and subfolders."""
    if not root.is_dir():
        raise InputError(f"{root}: is no folder; expected one that has SCENE.mp4, SCENE/ or "
                         "SCENE_*.mp4 of each scene")
    found = {}
    for path in sorted(root.iterdir(), key=sources.by_number):
        if path.name[0] != "." and (path.is_dir() or path.suffix.lower() in sources.VIDEOS):
            name = path.name if path.is_dir() else path.stem
            if name in found:
                raise InputError(f"{root}: has {found[name].name} and {path.name}; expected one "
                                 "of them")
            found[name] = path
    return found


def match(root, scenes):
    """{scene: path} of those scenes that a folder has."""
    there = entries(root)
    found = {}
    for scene in scenes:
        starts = (f"{scene}_", f"{scene}-", f"{scene}.")
        names = [name for name in there if name.startswith(starts) and name not in scenes]
        if scene in there:
            names = [scene]
        if len(names) > 1:
            raise InputError(f"{root}: {scene} may be {short(' or '.join(names))}; expected one of "
                             "them")
        for name in names:
            found[scene] = there[name]
    return found
