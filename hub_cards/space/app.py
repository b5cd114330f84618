"""The demo page: drop a spectrum, see the labels of its star, how far they can be trusted, and where the model looked.

    python hub_cards/space/app.py

It needs no network: the model and the example stars ship with the package, and so do all scripts and fonts of the page.
Files are read by `spectrafm_hf.sources`, labels are those of `spectrafm_hf.labelling`; here they are only shown.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import metadata
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported

import gradio as gr
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spectrafm_hf.checkpoints import located
from spectrafm_hf.examples import EXAMPLES, ExampleStar, example
from spectrafm_hf.explain import attention_by_wavelength, in_few_pixels
from spectrafm_hf.labelling import Labelled, Labeller, as_table, prepared
from spectrafm_hf.labels import LABELS, get_label
from spectrafm_hf.line_list import SpectralLine, read_line_list
from spectrafm_hf.sources import Conventions, Reading, read_source
from spectrafm_hf.spectra import PseudoContinuum, Spectrum

LARGEST_FILE = 50_000_000
"""Bytes; a star's spectra fill less than a tenth of it."""

MOST_PIXELS = 20_000
"""Drawn at most; of longer spectra neighbouring pixels are averaged, for the eye only."""

N_PLACES = 5
"""Patches that are marked, those with most of the attention."""

N_LINES = 3
"""Named in each of them, the deepest."""

MODEL = "spectrafm-small"

OPTICAL_END = 10_000.0
"""Angstrom: bluer spectra are like those of the real stars that the model was held against."""

TOLD = "What the file does not tell"
MEDIUM, UNIT, VELOCITY, POWER = "wavelengths in", "unit of the wavelengths", "radial velocity", "resolving power"
"""Fields of the page, as it names them."""

UNITS = ("Angstrom", "nm", "um", "log10(Angstrom)", "ln(Angstrom)")

IN_FIELDS = (
    # What came stands in the fields, and a flag of the command line is none.
    (r"[.,] [Gg]ot (?:medium|frame)=.*$", "."),
    (r"\(--[\w-]+; ", "("),
    (r"; --[\w-]+\)", ")"),
    (r"\s*\(--[^)]*\)", ""),
    (r", or put it in the place of the file's own with reader=\{.*?\}", ""),
    (r",? or redshift=", ""),
    (r"medium='vacuum' or (?:medium=)?'air'", f"\u201c{MEDIUM}\u201d (vacuum or air)"),
    (r"medium=(?=')", f"\u201c{MEDIUM}\u201d "),
    (r"medium=", f"\u201c{MEDIUM}\u201d"),
    (r"either frame='rest' \(.*?\) or velocity=|frame='rest' or velocity=", f"\u201c{VELOCITY}\u201d"),
    (r"velocity=(?=\d)", ""),
    (r"velocity=|(?<!\u201cradial )velocity(?= must)", f"\u201c{VELOCITY}\u201d"),
    (r"wavelength_unit=(?=')", f"\u201c{UNIT}\u201d "),
    (r"wavelength_unit(?:=|\b)", f"\u201c{UNIT}\u201d"),
    (r"resolving_power=(?=[\d'])", f"\u201c{POWER}\u201d "),
    (r"resolving_power(?:=|\b)", f"\u201c{POWER}\u201d"),
    (r"\b([Pp])ass (?=\u201c)", lambda found: f"{'Fill' if found[1] == 'P' else 'fill'} in "),
    (r"\bgot None\b", "got nothing"),
)
"""What messages of the package say of its options -> the same of the fields of the page."""

SYMBOLS = {label.name: label.symbol for label in LABELS}

TITLE = "SpectraFM: labels of a star from its spectrum"
BLUE, ORANGE, GREY = "#2c6fad", "#c8641b", "#707070"

# Names of fonts that every machine has; gradio's own themes would ask a server for theirs.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
STYLE = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
table.labels { width: 100%; border-collapse: collapse; border: none !important; font-variant-numeric: tabular-nums; }
table.labels th, table.labels td { border: none !important; padding: 0.45rem 0.6rem 0.45rem 0 !important; }
table.labels th, table.labels td { text-align: left; vertical-align: top; }
table.labels th { font-weight: 400; opacity: 0.75; }
table.labels tr { border: none !important; border-bottom: 1px solid var(--border-color-primary) !important; }
table.labels td.value { white-space: nowrap; font-weight: 600; }
table.labels td.interval { white-space: nowrap; }
ul.said { margin: 0.3rem 0 0.3rem 1.2rem; padding: 0; list-style: disc; }
.warning { border-left: 4px solid #c8641b; padding: 0.1rem 0 0.1rem 0.7rem; margin: 0.3rem 0; }
.model { font-size: 0.8rem; opacity: 0.75; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .gradio-container { padding: 0.5rem !important; }
  table.labels thead { display: none; }
  table.labels tr { display: block; padding: 0.3rem 0; }
  table.labels td { display: inline-block; padding: 0.1rem 0.6rem 0.1rem 0 !important; }
  table.labels td:first-child { min-width: 4rem; }
  table.labels td.interval { display: block; }
  table.labels td.interval::before { content: "68 %: "; }
  table.labels td.made:not(:empty)::before { content: "made with "; }
}
"""


@dataclass(frozen=True)
class Place:
    """A patch of pixels that a label looks at.

    Attributes:
        low, high: First and last pixel, vacuum Angstrom.
        attention: Share of the label's attention, 0 to 1.
        over_even: The same, as a multiple of what it would be if attention were even.
        lines: Of the list, the deepest first.
    """

    low: float
    high: float
    attention: float
    over_even: float
    lines: tuple[SpectralLine, ...]


@dataclass(frozen=True)
class Shown:
    """What the page draws of one star, for whatever label is chosen.

    Attributes:
        wavelength, flux: Of the file, vacuum Angstrom at rest; NaN where a pixel is bad.
        seen: Pixels of the model, vacuum Angstrom, (n_seen,).
        patch: Which patch each of them is in, (n_seen,).
        few: Whether few pixels of that patch are good, see `explain.in_few_pixels`; (n_seen,).
        attention: Label -> (n_seen,), 1 = an even share.
        depth: 1 - flux / pseudo-continuum in them, (n_seen,).
    """

    name: str
    wavelength: np.ndarray
    flux: np.ndarray
    seen: np.ndarray
    patch: np.ndarray
    few: np.ndarray
    attention: dict[str, np.ndarray]
    depth: np.ndarray


# ---------------------------------------------------------------- the model


@cache
def the_labeller() -> Labeller:
    """The model that ships, on the processor: one star takes it a moment."""
    return Labeller(MODEL, device="cpu")


@cache
def of_real_stars() -> str:
    """What the model's own record tells of its answers for real stars; empty = nothing."""
    record = json.loads((Path(located(MODEL)) / "stage.json").read_text(encoding="utf-8"))
    told = next((one for one in record["weaknesses"] if "MILES" in one), "")
    return told.partition(". ")[2]  # first comes that it saw none


def look(labeller: Labeller, spectrum: Spectrum) -> Shown:
    """Where each label looks in one spectrum.

    Raises:
        ValueError: The spectrum has no good pixel where the model works.
    """
    extractor = labeller.extractor
    row = prepared(extractor, spectrum)
    good = np.flatnonzero(row["attention_mask"] > 0)
    good = good[np.argsort(row["wavelength"][good], kind="stable")]
    seen, patch = row["wavelength"][good], good // extractor.patch_size
    (attention,) = attention_by_wavelength(labeller.model, extractor, [row], [spectrum.survey], seen).values()
    pixels = extractor.place(spectrum.flux, spectrum.wavelength, spectrum.bad_pixel)
    continuum = PseudoContinuum(pixels.wavelength, extractor.smoothing_length or 100.0)(pixels.flux, pixels.good)
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = np.where(pixels.good, 1 - pixels.flux / continuum, 0.0)
    return Shown(
        name=spectrum.star_id,
        wavelength=spectrum.wavelength,
        flux=np.where(spectrum.bad_pixel, np.nan, spectrum.flux),
        seen=seen,
        patch=patch,
        few=in_few_pixels(patch, extractor.patch_size),
        attention=dict(zip(extractor.label_names, attention, strict=True)),
        depth=np.interp(seen, pixels.wavelength, depth),
    )


def places(shown: Shown, label: str) -> list[Place]:
    """The patches a label looks at most, the one with most of its attention first, and the listed lines in them."""
    attention = shown.attention[label]
    patches = np.split(np.arange(shown.seen.size), np.flatnonzero(np.diff(shown.patch)) + 1)
    patches.sort(key=lambda patch: -float(attention[patch].sum()))
    found = []
    for patch in patches[:N_PLACES]:
        low, high = float(shown.seen[patch[0]]), float(shown.seen[patch[-1]])
        lines = [line for line in read_line_list() if low <= line.wavelength <= high]
        lines.sort(key=lambda line: -float(np.interp(line.wavelength, shown.seen, shown.depth)))
        share = float(attention[patch].sum() / attention.sum())
        found.append(Place(low, high, share, float(attention[patch[0]]), tuple(lines[:N_LINES])))
    return found


# ---------------------------------------------------------------- what is seen


def draw(shown: Shown, label: str) -> go.Figure:
    """The spectrum above the attention of one label, to be zoomed together; marks where it looks most."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.04)
    wavelength, flux = thinned(shown.wavelength, shown.flux)
    low, high = _range_of(flux)
    where = places(shown, label)
    hover = "%{x:.2f} \u00c5, %{y:.4g}<extra></extra>"
    figure.add_scatter(
        x=wavelength, y=flux, mode="lines", line={"width": 1, "color": BLUE}, hovertemplate=hover, row=1, col=1
    )
    lines = sorted((line for place in where for line in place.lines), key=lambda line: line.wavelength)
    figure.add_scatter(
        x=[line.wavelength for line in lines],
        y=[high] * len(lines),
        mode="markers+text",
        marker={"symbol": "triangle-down", "size": 8, "color": ORANGE},
        text=names_beside(where, lines, float(wavelength[-1] - wavelength[0])),
        textposition="top center",
        textfont={"size": 11, "color": ORANGE},
        customdata=[[line.species, line.source] for line in lines],
        hovertemplate="%{customdata[0]} %{x:.2f} \u00c5<br>%{customdata[1]}<extra></extra>",
        row=1,
        col=1,
    )
    x, y = _with_gaps(shown.seen, shown.attention[label])
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"width": 1.2, "color": ORANGE, "shape": "hvh"}, hovertemplate=hover, row=2, col=1
    )
    for place in where:
        figure.add_vrect(
            place.low, place.high, fillcolor=ORANGE, opacity=0.15, line_width=0, layer="below", row="all", col=1
        )
    figure.add_hline(1.0, line={"width": 1, "color": GREY, "dash": "dot"}, row=2, col=1)
    figure.update_yaxes(title_text="flux, as in the file", range=[low, high + 0.12 * (high - low)], row=1, col=1)
    figure.update_yaxes(title_text="attention (1 = even)", range=[0, top_of(shown, label)], row=2, col=1)
    figure.update_xaxes(title_text="vacuum wavelength at rest [\u00c5]", row=2, col=1)
    figure.update_layout(
        template="plotly_white",
        height=520,
        margin={"l": 62, "r": 12, "t": 16, "b": 48},
        showlegend=False,
        dragmode="zoom",
        uirevision=shown.name,  # another label keeps the zoom
        font={"family": "system-ui, sans-serif", "size": 12},
        hovermode="closest",
    )
    figure.update_xaxes(tickformat=",.0f", nticks=6, range=[float(wavelength[0]), float(wavelength[-1])])
    return figure


def top_of(shown: Shown, label: str) -> float:
    """Attention up to which it is drawn: that of all patches but those with few good pixels, which may stick out."""
    of_whole = shown.attention[label][~shown.few] if not shown.few.all() else shown.attention[label]
    return 1.1 * max(float(of_whole.max()), 1.0)


def names_beside(where: Sequence[Place], lines: Sequence[SpectralLine], width: float) -> list[str]:
    """The species of the deepest line of each place, where there is room; the pointer tells the others.

    Args:
        lines: Those to be marked, in order of wavelength.
        width: Of the picture, Angstrom.
    """
    deepest = {place.lines[0] for place in where if place.lines}
    names, last = [], -np.inf
    for line in lines:
        free = line in deepest and line.wavelength - last > 0.07 * width
        names.append(line.species if free else "")
        last = line.wavelength if free else last
    return names


def thinned(wavelength: np.ndarray, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_PIXELS` pixels, means of neighbours, with a NaN in every gap, so that no line is drawn across."""
    n = -(-wavelength.size // MOST_PIXELS)
    if n > 1:
        short = wavelength.size // n * n
        wavelength = wavelength[:short].reshape(-1, n).mean(axis=1)
        flux = flux[:short].reshape(-1, n).mean(axis=1)
    return _with_gaps(wavelength, flux)


def _with_gaps(wavelength: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if wavelength.size < 3:
        return wavelength, values
    step = np.diff(wavelength)
    wide = np.flatnonzero(step > 10 * np.median(step)) + 1
    return np.insert(wavelength, wide, wavelength[wide - 1]), np.insert(values, wide, np.nan)


def _range_of(flux: np.ndarray) -> tuple[float, float]:
    """From the deepest line to above the continuum; what lies far outside of both may leave the picture."""
    good = flux[np.isfinite(flux)]
    if not good.size:
        return 0.0, 1.0
    middle, most = np.quantile(good, [0.5, 0.995])
    low = max(float(good.min()), float(middle) - 1.2 * abs(float(middle)))
    high = min(float(good.max()), float(most) + 0.5 * max(float(most) - low, 0.0))
    room = 0.05 * max(high - low, 1e-12 + 0.01 * abs(high))
    return low - room, high + room


def table_html(labelled: Labelled, made_of: ExampleStar | None = None, real_optical: bool = False) -> str:
    """The labels with their error bars; for an example also what it was made with.

    Args:
        real_optical: The spectrum may be that of a real star, in the optical, where it is known what that does.
    """
    head = ["label", "value", "68 % interval", "what the interval rests on"] + (["made with"] if made_of else [])
    rows = []
    for name, answer in labelled.labels.items():
        symbol = escape(get_label(name).symbol)
        if not np.isfinite(answer.value):
            cells = [f"<td>{symbol}</td>", "<td class='value'>no answer</td>", "<td></td>", "<td></td>"]
        else:
            digits = digits_of(answer.sigma)
            told = [f"{number:,.{digits}f}" for number in (answer.value, answer.sigma, answer.low68, answer.high68)]
            unit = escape(answer.unit)
            cells = [
                f"<td>{symbol}</td>",
                f"<td class='value'>{told[0]} \u00b1 {told[1]} {unit}</td>",
                f"<td class='interval'>{told[2]} to {told[3]} {unit}</td>",
                f"<td class='rests'>{escape(rests_on(answer.calibrated, answer.learned, real_optical))}</td>",
            ]
        if made_of:
            value = made_of.labels.get(name)
            cells.append(f"<td class='made'>{'' if value is None else f'{value:,g} {escape(answer.unit)}'}</td>")
        rows.append(f"<tr data-label='{escape(name)}'>{''.join(cells)}</tr>")
    return (
        f"<table class='labels'><thead><tr>{''.join(f'<th>{escape(word)}</th>' for word in head)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def digits_of(sigma: float) -> int:
    """Decimals that show a sigma to two figures, three at most."""
    return int(np.clip(1 - np.floor(np.log10(sigma)), 0, 3)) if np.isfinite(sigma) and sigma > 0 else 3


def rests_on(calibrated: bool, learned: bool | None, real_optical: bool = False) -> str:
    """What an interval can be trusted for, in words."""
    if learned is not None and not learned:
        return "a guess: not learned at these wavelengths"
    if not calibrated:
        return "the network's own estimate, not calibrated"
    return "calibrated on synthetic stars" + (", too narrow for real ones" if real_optical else "")


def is_optical(labelled: Labelled) -> bool:
    """Whether most of its wavelengths are."""
    return labelled.wavelength_range is not None and sum(labelled.wavelength_range) / 2 < OPTICAL_END


def real_stars_html(labelled: Labelled) -> str:
    """What synthetic stars cannot vouch for, of a spectrum that is none of the examples."""
    if is_optical(labelled):
        said = (
            f"<b>Real optical stars differ by more than the intervals of this model say.</b> {escape(of_real_stars())}"
        )
    else:
        said = (
            "<b>This model never saw a real star</b>, and no real spectrum of the H band was at hand to hold it "
            "against. Real optical stars differ by more than its intervals say: they cover noise, not what theory gets "
            "wrong."
        )
    return f"<div class='warning' id='real-stars'><p>{said}</p></div>"


def model_html(labeller: Labeller) -> str:
    """Which model answered."""
    return (
        f"<p class='model'>Model {escape(labeller.model_id)} of spectrafm_hf {metadata.version('spectrafm_hf')}, "
        f"SHA-256 of its weights {labeller.revision}</p>"
    )


def sentences_html(labelled: Labelled, made_of: ExampleStar | None = None, told: Sequence[str] = ()) -> str:
    """What was read, what was told and assumed, and what speaks against the answer."""
    about = [f"<b>{escape(labelled.name)}</b>"]
    if made_of:
        about.append(f"a synthetic {escape(made_of.what)}, made for this page: no telescope saw it")
    if labelled.wavelength_range is not None:
        low, high = labelled.wavelength_range
        about.append(f"{low:,.0f} to {high:,.0f} \u00c5")
    if labelled.snr is not None and np.isfinite(labelled.snr):
        about.append(f"signal-to-noise ratio {labelled.snr:.0f} per pixel")
    said = f"<p>{'; '.join(about)}.</p>"
    if labelled.flags:
        said += f"<div class='warning'><p><b>Be careful:</b></p>{_listed(labelled.flags)}</div>"
    elif np.isfinite([answer.value for answer in labelled.labels.values()]).all():
        said += "<p>Nothing was found that sets this spectrum apart from the synthetic ones the model learned from.</p>"
    if told:
        said += f"<p>Told by you:</p>{_listed(told)}"
    if labelled.assumed:
        said += f"<p>Taken for granted:</p>{_listed(labelled.assumed)}"
    return said


def places_html(shown: Shown, label: str) -> str:
    """Where a label looks, in words."""
    items = []
    for place in places(shown, label):
        lines = ", ".join(f"{line.species} {line.wavelength:,.1f}" for line in place.lines) or "none of the list"
        items.append(
            f"{place.low:,.0f} to {place.high:,.0f} \u00c5: {place.attention:.0%} of its attention, "
            f"{place.over_even:.1f} times an even share; deepest lines: {lines}"
        )
    symbol = escape(get_label(label).symbol)
    said = (
        f"<p>{symbol} looks most at these patches of pixels (shaded):</p>{_listed(items)}"
        "<p>Attention tells where the model looks, not what it makes of it. A patch is much wider than a line. "
        f"Triangles mark the deepest listed lines in it, {N_LINES} at most, and the deepest is named where there is "
        "room; a shaded patch without a triangle holds no line of the list.</p>"
    )
    out = shown.few & (shown.attention[label] > top_of(shown, label))
    for patch in np.unique(shown.patch[out]):
        there = shown.patch == patch
        low, high = shown.seen[there][[0, -1]]
        said += (
            f"<p>At {low:,.0f} to {high:,.0f} \u00c5 attention rises out of the picture, to "
            f"{shown.attention[label][there][0]:.1f}: that patch has {there.sum()} good pixels only, and what "
            "is drawn is attention per pixel.</p>"
        )
    return said


def in_symbols(name: re.Match[str]) -> str:
    """A label's name as plots write it: `mg_fe` -> `[Mg/Fe]`; another word stays."""
    return SYMBOLS.get(name[0], name[0])


def in_fields(said: str) -> str:
    """A message of the package, with the fields of the page in the place of its options."""
    for option, field in IN_FIELDS:
        said = re.sub(option, field, said, flags=re.DOTALL)
    return said


def _listed(sentences: Sequence[str]) -> str:
    written = (re.sub(r"\w+", in_symbols, in_fields(one)) for one in sentences)
    items = (f"<li>{escape(one[:1].upper() + one[1:])}</li>" for one in written)
    return f"<ul class='said'>{''.join(items)}</ul>"


# ---------------------------------------------------------------- what happens


def read_one(path: Path, conventions: Conventions) -> Reading:
    """The spectrum of a file.

    Raises:
        ValueError: Too large, or empty.
    """
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(
            f"the file has {size / 1e6:,.0f} MB, this page reads up to {LARGEST_FILE / 1e6:.0f} MB. For a survey "
            "install the package: spectrafm_hf.predict(path) reads files of any size."
        )
    if not size:
        raise ValueError("the file is empty (0 bytes); fetch or copy it again.")
    return next(read_source(path, conventions))


def number_in(field: str, unit: str, text: str | None) -> float | None:
    """What was typed into a field; None = nothing, which is not 0.

    Raises:
        ValueError: It is no number.
    """
    typed = (text or "").strip()
    if not typed:
        return None
    try:
        number = float(typed.replace("\u2212", "-"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"\u201c{field}\u201d must be one number, {unit}, got \u201c{typed[:40]}\u201d; correct it, or leave it "
            "empty if you do not know it."
        )
    return number


def told_by_user(told: Conventions) -> list[str]:
    """What the fields hold, in sentences."""
    said = []
    if told.medium is not None:
        said.append(f"wavelengths are in {told.medium}")
    if told.wavelength_unit is not None:
        said.append(f"their unit is {told.wavelength_unit}")
    if told.velocity is not None:
        said.append(f"radial velocity {told.velocity:+g} km/s" if told.velocity else "radial velocity 0 km/s, at rest")
    if told.resolving_power is not None:
        said.append(f"resolving power {told.resolving_power:,g}")
    return said


def friendly(error: Exception, path: Path, told: bool = False) -> str:
    """A sentence about a file that cannot be used; where it lay on the server is nobody's business.

    Args:
        told: Something stands in the fields, which may be what is wrong.
    """
    said = in_fields(str(error).replace(str(path), path.name).replace(f"{path.parent}{os.sep}", ""))
    hint = ""
    if other := re.search(r"\b([a-z_]+)=", said):
        hint = (
            f"<p>This page has no field for {other[1]}; the package takes it: "
            f"spectrafm_hf.predict(path, reader={{&quot;{other[1]}&quot;: ...}}).</p>"
        )
    elif "\u201c" in said:
        hint = f"<p>You can tell it under \u201c{TOLD}\u201d.</p>"
    elif told:
        hint = f"<p>What you told stands under \u201c{TOLD}\u201d.</p>"
    return (
        f"<div class='warning' id='refused'><p><b>{escape(path.name)} could not be read.</b></p><p>{escape(said)}</p>"
        f"{hint}</div>"
    )


def answer(file, star, medium, unit, velocity, resolving_power, label):
    """What the page shows of a file, or of the example of that name, and of what the user knows of it.

    Args:
        medium, unit: As `Conventions` have them; empty = not told.
        velocity, resolving_power: As they were typed; empty = not told.

    Returns:
        For `page`'s parts: sentences, whether there are results, table, CSV, ECSV, `Shown`, picture, words about it.
    """
    if not file and not star:
        return only("<p>Choose an example star, or drop a file.</p>")
    path = Path(file) if file else example(star)
    made_of = None if file else EXAMPLES[star]
    told = any((medium, unit, velocity, resolving_power))
    try:
        conventions = Conventions(
            medium=medium or None,
            wavelength_unit=unit or None,
            velocity=number_in(VELOCITY, "in km/s and positive = receding", velocity),
            resolving_power=number_in(POWER, "wavelength / FWHM", resolving_power),
        )
        reading = read_one(path, conventions)
        if reading.spectrum is None:
            raise ValueError(reading.reason or "it holds no spectrum.")
        (labelled,) = the_labeller().label([reading])
        if not labelled.readable:
            raise ValueError(labelled.flags[0])
        shown = look(the_labeller(), reading.spectrum)
        csv, ecsv = written(labelled)
    except (ValueError, TypeError, OSError) as error:
        return only(friendly(error, path, told))
    except Exception:
        # A page for everybody shows no traceback; whoever runs it finds it in the log.
        logging.exception("%s", path.name)
        surprise = ValueError("something about it was not foreseen here. Please report it, with the file.")
        return only(friendly(surprise, path))
    table = table_html(labelled, made_of, real_optical=made_of is None and is_optical(labelled))
    table += ("" if made_of else real_stars_html(labelled)) + model_html(the_labeller())
    results = (gr.update(visible=True), table, csv, ecsv, shown)
    return sentences_html(labelled, made_of, told_by_user(conventions)), *results, *looked(shown, label)


def only(sentences: str):
    """Sentences, and no results."""
    return sentences, gr.update(visible=False), "", None, None, None, None, ""


def looked(shown: Shown | None, label: str):
    """Picture and words for a label."""
    return (None, "") if shown is None else (draw(shown, label), places_html(shown, label))


@cache
def for_download() -> tempfile.TemporaryDirectory:
    """Removed when the process ends; gradio serves copies, from a cache that it empties."""
    return tempfile.TemporaryDirectory(prefix="labels-")


def written(labelled: Labelled) -> tuple[str, str]:
    """The labels as files to be downloaded, CSV and ECSV."""
    table = as_table([labelled], the_labeller())
    folder = Path(tempfile.mkdtemp(dir=for_download().name))
    paths = folder / "labels.csv", folder / "labels.ecsv"
    for path in paths:
        table.write(path, format=f"ascii.{path.suffix[1:]}")
    return str(paths[0]), str(paths[1])


# ---------------------------------------------------------------- the page


def page() -> gr.Blocks:
    """The page, to be launched."""
    first = next(iter(EXAMPLES))
    names = the_labeller().labels
    # Uploads and downloads are kept for an hour.
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(
            f"# {TITLE}\nDrop a file of a stellar spectrum: FITS of APOGEE, SDSS-V, LAMOST, IRTF or whatever specutils "
            "reads, or columns of text. The model that ships with the package answers; it learned from synthetic stars "
            "alone."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                star = gr.Dropdown(
                    [(f"{star.what}", name) for name, star in EXAMPLES.items()],
                    value=first,
                    label="An example star (synthetic)",
                    elem_id="example",
                )
                file = gr.File(label="Or a file of yours, up to 50 MB", height=170, elem_id="file")
                with gr.Accordion(TOLD, open=False, elem_id="conventions"):
                    gr.Markdown("Leave empty what the file tells itself, or what you do not know.")
                    medium = gr.Dropdown(
                        [("the file tells", ""), ("vacuum", "vacuum"), ("air", "air")],
                        value="",
                        label=MEDIUM,
                        elem_id="medium",
                    )
                    unit = gr.Dropdown([("the file tells", ""), *UNITS], value="", label=UNIT, elem_id="unit")
                    # No gr.Number: it shows 0 where nothing was typed, and 0 km/s would be believed.
                    velocity = gr.Textbox(
                        label=f"{VELOCITY} of the star [km/s]", placeholder="0 = at rest", elem_id="velocity"
                    )
                    power = gr.Textbox(label=f"{POWER}, wavelength / FWHM", elem_id="power")
                    again = gr.Button("Read again", elem_id="again")
                said = gr.HTML(elem_id="said")
            with gr.Column(scale=2, min_width=300, visible=False) as results:
                table = gr.HTML(elem_id="labels")
                with gr.Row():
                    csv = gr.DownloadButton("Table as CSV", size="sm", min_width=120, elem_id="csv")
                    ecsv = gr.DownloadButton("as ECSV, with units", size="sm", min_width=120, elem_id="ecsv")
                label = gr.Radio(
                    [(get_label(name).symbol, name) for name in names],
                    value=names[0],
                    label="Show where the model looks for",
                    elem_id="label",
                )
                picture = gr.Plot(show_label=False, elem_id="picture")
                words = gr.HTML(elem_id="places")
        shown = gr.State(None, time_to_live=3600)

        inputs = [file, star, medium, unit, velocity, power, label]
        outputs = [said, results, table, csv, ecsv, shown, picture, words]
        # One at a time: a second pass through the model would only make both slower.
        one = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "show_progress": "minimal",
            "api_visibility": "private",
        }
        blocks.load(answer, inputs, outputs, **one)
        gr.on([again.click, velocity.submit, power.submit], answer, inputs, outputs, **one)
        file.upload(lambda: None, None, star, api_visibility="private").then(answer, inputs, outputs, **one)
        file.clear(answer, inputs, outputs, **one)
        # Examples tell all themselves; what was told of another star is not true of them.
        others = [file, medium, unit, velocity, power]
        star.input(lambda: (None, "", "", "", ""), None, others, api_visibility="private").then(
            answer, inputs, outputs, **one
        )
        label.input(looked, [shown, label], [picture, words], show_progress="hidden", api_visibility="private")
    return blocks


def launch(**more) -> None:
    """Serve the page; `more` goes to gradio."""
    answer(None, next(iter(EXAMPLES)), *[None] * 4, next(iter(the_labeller().labels)))  # loads what loads slowly
    page().launch(
        theme=gr.themes.Base(**FONTS),
        css=STYLE,
        max_file_size=LARGEST_FILE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        **more,
    )


if __name__ == "__main__":
    launch()
