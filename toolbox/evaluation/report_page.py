"""The page of toolbox/make_report.py: its words and tables, put into the places of report.html.

Words may come from anywhere, such as a score.json. element() makes text of them, never markup.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import functools
import html
import json
import math
import re

PLACE = re.compile(r"@([A-Z]+)@")
REGIONS = {"holes": "Holes", "known": "Known", "all": "All"}
COLUMNS = (  # of held-out pairs: region, measure, words, digits, what is best
    ("holes", "psnr", "PSNR, dB", 2, "high"),
    ("mirrored", "psnr", "PSNR mirrored, dB", 2, "high"),
    ("holes", "ssim", "SSIM", 3, "high"),
    ("holes", "lpips", "LPIPS", 3, "low"),
    ("holes", "energy", "Sharpness, truth is 1", 2, "one"),
    ("holes", "flicker", "Flicker, of 255", 1, "low"),
    ("known", "psnr", "PSNR of known pixels", 2, "high"),
    ("all", "psnr", "PSNR of all pixels", 2, "high"),
)
RATES = {"high": lambda x: x, "low": lambda x: -x, "one": lambda x: -abs(x - 1)}
HEADLINE = 130  # letters that are still read as one
REFERENCES = ("render", "truth")  # methods that compete with none


class Markup(str):
    """HTML that element() takes as it is."""


def element(name, *children, **attributes):
    """An HTML element. Children are text unless they are Markup. class_ is class, aria_x aria-x."""
    words = ""
    for key, value in attributes.items():
        words += f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    return Markup(f"<{name}{words}>{join(children)}</{name}>")


def join(parts):
    return Markup("".join(map(escaped, parts)))


def escaped(part):
    return part if isinstance(part, Markup) else html.escape(str(part))


def each(name, items):
    """An element around each item."""
    return join(map(functools.partial(element, name), items))


def pairs(rows):
    """Lines of (name, value)."""
    lines = [each("dt", row[:1]) + each("dd", row[1:]) for row in rows]
    return element("dl", each("div", map(Markup, lines)), class_="pairs numbers")


def table(heads, rows):
    """The first cell of a row names it."""
    lines = []
    for name, *cells in rows:
        lines.append(join([element("th", name, scope="row"), each("td", cells)]))
    head = join([element("th", words, scope="col") for words in heads])
    return element("table", element("thead", element("tr", head)),
                   element("tbody", each("tr", lines)), class_="numbers")


def notes(sentences):
    return element("ul", each("li", sentences), class_="notes") if sentences else Markup()


def panel(title, *content):
    return element("div", element("h3", title), *content, class_="panel")


def duration(seconds):
    """Such as 41 s, 14 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# ---- the places ----------------------------------------------------------------------------------


def top(title, facts, verdict, warnings, clips, stages):
    """What is said first. verdict: sentences, or [] if only the clips can tell."""
    facts = element("p", each("span", facts), class_="facts numbers")
    sentences = verdict or first_words(clips)
    size = "said" if len(sentences[0]) <= HEADLINE else "said long"
    said = element("div", each("p", sentences), class_=size)
    tiles = []
    for large, words in large_numbers(clips, stages):
        tiles.append(join([element("dt", words), element("dd", large)]))
    return join([element("header", element("h1", title), facts, said), notes(warnings),
                 element("dl", each("div", tiles), class_="tiles numbers")])


def mean_of(clips, against, region, layer):
    """The mean PSNR of a layer over clips that were compared with one thing; None if none was."""
    values = []
    for clip in clips:
        value = clip.get("means", {}).get(region, {}).get(layer)
        if value is not None and clip["against"] == against:
            values.append(value)
    return sum(values) / len(values) if values else None


def first_words(clips):
    """The sentences to begin with, by what the clips of the camera paths tell."""
    layers = set()
    for clip in clips:
        layers |= {layer["name"] for layer in clip["layers"]}
    if "Output" not in layers:
        return ["These are renders with their holes.", "demo.py will fill them."]
    filled = mean_of(clips, "Truth", "holes", "Output")
    black = mean_of(clips, "Truth", "holes", "Render")
    if filled is None or black is None:
        return ["There is no exact new view to compare with: judge the holes by eye.",
                "toolbox/score.py puts numbers to them, on held-out pairs of this video."]
    return [f"The outputs {'gain' if filled > black else 'lose'} {abs(filled - black):.1f} dB in "
            "the holes, against the exact new views."]


def large_numbers(clips, stages):
    """(number, words) for the head of the page."""
    tiles = []
    filled = mean_of(clips, "Truth", "holes", "Output")
    black = mean_of(clips, "Truth", "holes", "Render")
    if filled is not None and black is not None:
        tiles.append((f"{filled:.1f} dB", f"PSNR in holes; the renders have {black:.1f}"))
    for against, words in (("Truth", "exact views"), ("Render", "renders")):
        known = mean_of(clips, against, "known", "Output")
        if known is not None:
            tiles.append((f"{known:.1f} dB", f"PSNR of known pixels, against the {words}"))
            break
    holes = []
    for clip in clips:
        holes += clip.get("holes", [])
    if holes:
        tiles.append((f"{sum(holes) / len(holes):.0%}",
                      f"of the picture is holes, {max(holes):.0%} at most"))
    if stages:
        seconds = 0
        peak = 0
        for stage in stages:
            seconds += stage["seconds"]
            peak = max(peak, stage["mib"] or 0)
        words = f"to make, {peak / 1024:.1f} GiB of GPU memory at most" if peak else "to make"
        tiles.append((duration(seconds), words))
    return tiles


def card(clip):
    """The button that shows a clip."""
    holes = Markup()
    if clip.get("holes"):
        holes = element("small", f"{sum(clip['holes']) / len(clip['holes']):.0%} holes")
    picture = Markup(f'<img src="{clip["poster"]}" alt="">')
    return element("button", picture, element("span", element("b", clip["name"]), holes),
                   element("small", clip["about"]), type="button", aria_pressed="false")


def side(clip, depth):
    """What stands beside a clip; its cameras the script draws."""
    parts = [notes(clip["notes"])]
    if clip.get("cameras"):
        parts.append(panel("Cameras", element("div", class_="views")))
    if clip.get("means"):
        rows = {}
        for region in clip["means"].values():
            for name, value in region.items():
                rows.setdefault(name, [name]).append("–" if value is None else f"{value:.1f}")
        heads = ["", *map(REGIONS.get, clip["means"])]
        parts.append(panel("PSNR of all frames, dB", table(heads, rows.values())))
    if clip["numbers"]:
        parts.append(panel("By other measures", pairs(clip["numbers"])))
    if depth and clip["layers"][-1]["name"] == "Depth":
        ends = each("span", [f"near {depth['near']:.3g}", f"far {depth['far']:.3g}"])
        parts.append(panel("Depth of the source", element("div", class_="ramp"),
                           element("div", ends, class_="ends numbers")))
    return element("aside", *parts, hidden="", aria_label="About this clip")


def scores(methods, about):
    """The table of held-out pairs."""
    if not methods:
        return Markup()
    heads = ["In holes"]
    rows = [[method["method"]] for method in methods]
    for region, measure, words, digits, best in COLUMNS:
        values = [method[region][measure] for method in methods]
        if values.count(None) < len(values):
            heads.append(words)
            column(rows, methods, values, digits, RATES[best])
    spreads = [method["spread"] for method in methods]
    if spreads.count(None) < len(spreads):
        heads.append("Seeds differ by, dB")
        column(rows, methods, spreads, 2, None)
    scroll = element("div", table(heads, rows), class_="scroll", tabindex=0, role="region",
                     aria_label="Scores of each method")
    told = ("The video itself, with the holes that a camera move would leave, so that what belongs "
            "there is known. Finetuning has seen the video, if not these holes; mirrored, it knows "
            f"less by heart. {about and f'Means over {about}.'}")
    return element("section", element("h2", "Against the truth, on held-out pairs"),
                   element("p", told), element("div", scroll, class_="card table"))


def column(rows, methods, values, digits, rate):
    """Add a column of numbers to rows; the best of the methods that compete is bold.

    rate: of a number, higher is better; None if no number is better.
    """
    rivals = []
    for method, value in zip(methods, values, strict=True):
        competes = rate and value is not None and method["method"].lower() not in REFERENCES
        rivals.append(rate(value) if competes else -math.inf)
    for row, value, rival in zip(rows, values, rivals, strict=True):
        words = "–" if value is None else f"{value:.{digits}f}"
        row.append(element("b", words) if -math.inf < rival == max(rivals) else words)


def records(stages, settings, pictures):
    """How it was made: times, settings [title, rows], links to pictures [words, href]."""
    cards = []
    if stages:
        longest = max(stage["seconds"] for stage in stages)
        lines = []
        for stage in stages:
            memory = f", {stage['mib'] / 1024:.1f} GiB" if stage["mib"] else ""
            bar = element("i", style=f"width:{100 * stage['seconds'] / max(longest, 1e-9):.1f}%")
            lines.append(element("div", stage["name"], element("span", bar),
                                 duration(stage["seconds"]) + memory, class_="stage numbers"))
        cards.append(element("div", element("h3", "Time, and peak memory of a GPU"), *lines,
                             class_="card"))
    folded = []
    for title, rows in settings:
        folded.append(element("details", element("summary", title), pairs(rows)))
    for words, href in pictures:
        folded.append(element("p", element("a", words, href=href)))
    if folded:
        cards.append(element("div", element("h3", "Settings"), *folded, class_="card"))
    if not cards:
        return Markup()
    return element("section", element("h2", "How it was made"),
                   element("div", *cards, class_="columns"))


def fill(template, script, viewer, places):
    """The page. viewer: what the script needs, as JSON. places: {name: Markup}."""
    told = json.dumps(viewer, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = places | {"SCRIPT": script, "DATA": told}
    return PLACE.sub(lambda place: parts[place[1]], template)
