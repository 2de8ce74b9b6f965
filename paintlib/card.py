"""The certificate of a patch: what was measured, as text, metadata, picture and model card."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from paintlib.files import replacing

__all__ = ["metadata", "picture", "summary", "table", "write_card"]

Answer = Mapping[str, Any]  # of `paintlib.patch.choose`
PLACES = {"zero_shot": "zero-shot", "patched": "patched", "fine_tuned": "fine-tuned"}
COLOURS = ("#000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
SURE = 1.96  # standard errors


def summary(answer: Answer) -> str:
    """Return the answer as Markdown: alpha, why the search ended, what was measured, warnings."""
    goal = f"normalisation {answer['normalisation']}, solver {answer['solver']}"
    if len(set(answer["weights"].values())) > 1:
        goal += ", weights " + ", ".join(f"{x:g} {name}" for name, x in answer["weights"].items())
    errors = (_digits(answer[key]) for key in ("numerical_error", "stderr"))
    why = "{}: {}; numerical error {}, sampling error {}."
    why = why.format(answer["status"], answer["advice"], *errors)
    lines = [f"**alpha = {_alpha(answer)}** ({goal})", "", why]
    for task, (rise, highest, probability) in answer["ceilings"].items():
        said = f"Task {task!r} must not rise by more than {rise:.2%}: "
        said += f"it rises by {highest:.2%} at most"
        lines += ["", f"{said}, with a probability of {probability:.0%}."]
    held_out = answer["held_out"]
    for title, part in (("On the images of the choice", answer), ("On held-out images", held_out)):
        if part:
            gains = (_gain(end, *gain) for end, gain in part["gain"].items())
            lines += ["", f"## {title}", "", table(part["tasks"]), "", *gains]
    if answer["warnings"]:
        lines += ["", "## Warnings", "", *(f"- {warning}" for warning in answer["warnings"])]
    return "\n".join(lines)


def table(tasks: Mapping[str, Any]) -> str:
    """Return loss (nats) and accuracy (fraction) of each task at both ends and patched, Markdown.

    In parentheses is what the patch changes an end's number by, ± the standard error of that
    difference on the same images.
    """
    rows = [["task", "images", "", *PLACES.values()], ["---"] * 6]
    for name, task in tasks.items():
        for kind in ("loss", "accuracy"):
            row = [name.replace("|", r"\|"), str(task["images"]), kind]
            for place in PLACES:
                change, error = task[place]["change"][kind]
                told = error is not None and place != "patched"
                more = f" ({change:+.4f} ± {error:.4f})" if told else ""
                row.append(_digits(task[place][kind], ".4f") + more)
            rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def metadata(answer: Answer) -> dict[str, str]:
    """Return what a safetensors file says of itself: strings, most of them JSON."""
    keys = ("alpha", "stderr", "status", "solver", "normalisation", "weights", "ceilings",
            "bracket", "parents", "store", "versions")  # fmt: skip
    told = {key: answer[key] for key in keys if answer.get(key) is not None}
    told["scales"] = {name: task["scale"] for name, task in answer["tasks"].items()}
    text = {k: v if isinstance(v, str) else json.dumps(v, allow_nan=False) for k, v in told.items()}
    return {"format": "pt", **{f"paintlib.{key}": value for key, value in text.items()}}


def picture(answer: Answer) -> str:
    """Return as SVG the sum and each task along the path, evaluated or drawn, and alpha ± error."""
    alphas, *curves = np.array([(a, value, *parts) for a, value, parts in answer["trace"]]).T
    top, low = max(map(np.max, curves)), min(0.0, *map(np.min, curves))
    left, right = alphas[0], alphas[-1]

    def at(alpha: float, value: float) -> tuple[float, float]:
        x = 60 + 420 * (min(max(alpha, left), right) - left) / (right - left)
        return round(x, 1), round(260 - 220 * (value - low) / ((top - low) or 1.0), 1)

    def text(x: float, y: float, said: str, more: str) -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{html.escape(said)}</text>'

    star, band = answer["alpha"], SURE * (answer["stderr"] or 0.0)
    a, x, b = (at(star + d, low)[0] for d in (-band, 0.0, band))
    parts = [f'<path d="M{a} 40H{b}V260H{a}" fill="#ddd"/>', text(270, 294, "alpha", ""),
             f'<path d="M{x} 40V260M60 40V260H480" fill="none" stroke="#000"/>']  # fmt: skip
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        alpha, value = left + share * (right - left), low + share * (top - low)
        parts.append(text(at(alpha, low)[0], 276, f"{alpha:.3g}", 'text-anchor="middle"'))
        parts.append(text(54, at(left, value)[1] + 4, f"{value:.3g}", 'text-anchor="end"'))
    names, dense = ["sum", *answer["tasks"]], np.linspace(left, right, 101)
    for i, (name, curve) in enumerate(zip(names, curves, strict=True)):
        colour, points = COLOURS[i % len(COLOURS)], PchipInterpolator(alphas, curve)(dense)
        line = " ".join("{},{}".format(*at(*point)) for point in zip(dense, points, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        dots = (at(*point) for point in zip(alphas, curve, strict=True))
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
        parts.append(text(500, 50 + 18 * i, name, f'fill="{colour}"'))
    size = 'viewBox="0 0 640 300" font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'


def write_card(answer: Answer, folder: Path | str, parents: Sequence[str]) -> None:
    """Write `README.md`, a model card for the Hub, with `curve.svg` and `patch.json`.

    `parents` are both checkpoints as the user names them; what is no file is a name on the Hub.
    """
    tags = ["model-merging", "model-patching", "paintlib"]
    header: dict[str, Any] = {"library_name": "pytorch", "tags": tags}
    if base := [name for name in parents if not Path(name).exists()]:
        header |= {"base_model": base, "base_model_relation": "merge"}
    start, end = (name if name in base else Path(name).name for name in parents)
    # JSON is YAML
    made = f"(1 - alpha) · `{start}` + alpha · `{end}`; alpha is chosen by the sum of the"
    rows = (f"| {key} | `{value}` |" for key, value in metadata(answer).items())
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", "",
             f"# {end} patched into {start}", "", f"The weights are {made} normalised losses of "
             f"{', '.join(answer['tasks'])}.", "", summary(answer), "",
             "![Normalised losses against alpha](curve.svg)", "",
             "In parentheses: what the patch changes, ± the standard error on the same images.", "",
             "## Certificate", "", "| | |", "|---|---|", *rows, ""]  # fmt: skip
    files = {"README.md": "\n".join(lines), "curve.svg": picture(answer),
             "patch.json": json.dumps(answer, indent=1, allow_nan=False) + "\n"}  # fmt: skip
    for name, content in files.items():
        with replacing(Path(folder, name)) as part:
            part.write_text(content, encoding="utf-8")


def _alpha(answer: Answer) -> str:
    if (error := answer["stderr"]) is None:
        more = (
            "(alpha* is {1} {0:.3f}, at 95 %)".format(*answer["bound"]) if answer["bound"] else ""
        )
        return f"{answer['alpha']:.4f} {more}".strip()
    places = min(max(1 - math.floor(math.log10(error or 1e-5)), 1), 6)  # two digits of the error
    return f"{answer['alpha']:.{places}f} ± {error:.{places}f}"


def _digits(value: float | None, form: str = ".2g") -> str:
    return "unknown" if value is None else f"{value:{form}}"


def _gain(end: str, fall: float, error: float) -> str:
    """Say whether the patch beats an end by more than its error."""
    verdict = "better" if fall > SURE * error else "not better"
    said = f"the sum falls by {fall:.4f} ± {error:.4f}: {verdict} by more than 1.96 errors"
    return f"- against the {PLACES[end]} end, {said}"
