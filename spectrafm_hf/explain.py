r"""Which lines does a label hang on? Where the network looks, and what really moves its answers.

Attention says where a label query looks (Fig. 5 of Koblischke & Bovy 2024, arXiv 2411.04750), not what it makes of it.
So three causal questions stand beside it, all asked of synthetic stars that no training drew:

* **Sensitivity.** By how much does the label y rise when one pixel darkens by its spread s over the training stars,
  :math:`-\langle \partial y / \partial (f / s) \rangle`? It is a property of the network alone and knows no line. A
  network that reads [Mg/Fe] as a spectroscopist does raises it where Mg absorbs and lowers it where Fe does. How well
  the pixels of an element come before all others is one number, the area under the ROC curve: 1 = all of them first,
  0.5 = chance, below = the label falls where the element absorbs.
* **Occlusion.** Hide the lines of an element; hide as many pixels, nearly as dark, elsewhere in the region.
* **Abundance response.** Change one abundance of the star alone; only its own label should follow, by as much.

The pixels of an element come from physics: the shipped list of lines (`line_list`), within half a FWHM of each. For
abundances that the synthesizer can change alone (not Fe: [Fe/H] scales all metals) the same area is also told for the
pixels that darken most with the abundance. The area that counts (`LineScore.sensitivity_auc`) uses the list.

All this is meant for resolved lines, as those of APOGEE are. Where a line-spread function is some Angstrom wide,
elements share their pixels, and no line list can say whose they are; the abundance response still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from .explanation import Explanation, LineScore, Occlusion, Peak
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .line_list import SpectralLine, line_pixels, lines_by_element, read_line_list
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import ask, combine_contexts
from .spectra import pixel_edges
from .synthesis.surveys import SURVEYS, Survey

Row = dict[str, np.ndarray]
Part = TypeVar("Part")

KINDS = {"giants": (1.0, 3.5), "dwarfs": (4.0, 5.5)}
"""Kind of star -> log g above the first and below the second, dex: those of the paper's figure."""

WITH_LINES = {"teff": (4000.0, 6000.0), "fe_h": (-1.0, 0.5)}
"""K and dex: stars in whose spectra all elements of the list have lines."""

OWN_ELEMENT = {"fe_h": "Fe", "mg_fe": "Mg", "o_fe": "O"}
"""Label -> the element that it is the abundance of."""

CONTROL_REACH = 150.0
"""Angstrom between a hidden line and its controls at most: they lie in the same region, mostly on one detector."""

CONTROL_CHOICES = 20
"""A control is drawn from so many places whose mean depth is nearest to that of the line."""

RESPONSIVE_SHARE = 0.01
"""Of all pixels: those that darken most with an abundance."""

PEAKS_APART = 3.0
"""Angstrom between the patches, or pixels, of two peaks of attention at least."""

FEW = 0.25
"""Of the pixels of a patch: with fewer good ones its attention crowds in these, and they would set the scale."""

# ---------------------------------------------------------------- stars


@dataclass(frozen=True)
class Stars:
    """Synthetic stars as a survey sees them, each a giant or a dwarf.

    Attributes:
        labels: Shape (n_stars, n), K and dex, columns as `Survey.label_names`.
        kind: Name in `KINDS` of each star.
        noise: Added to the flux of each, shape (n_stars, n_pixels of the survey).
        snr: Signal-to-noise ratio per pixel.
    """

    labels: np.ndarray
    kind: list[str]
    noise: np.ndarray
    snr: float


def draw_stars(survey: Survey, n_stars: int, seed: int, snr: float = 100.0) -> Stars:
    """`n_stars` giants and as many dwarfs of the survey with lines (`WITH_LINES`).

    Raises:
        ValueError: The survey draws next to no such stars.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for _ in range(1000 * n_stars):
        star = survey.draw(rng)
        drawn = dict(zip(survey.label_names, star, strict=True))
        if all(low <= drawn[name] <= high for name, (low, high) in WITH_LINES.items()):
            for kind, (low, high) in KINDS.items():
                if low < drawn["logg"] < high and len(found[kind]) < n_stars:
                    found[kind].append(star)
        if all(len(stars) == n_stars for stars in found.values()):
            break
    else:
        raise ValueError(
            f"{n_stars} giants and as many dwarfs with lines ({WITH_LINES}, K and dex) are needed, but the survey "
            f"{survey.name} draws too few; got {', '.join(f'{len(stars)} {kind}' for kind, stars in found.items())}."
        )
    noise = rng.standard_normal((len(KINDS) * n_stars, survey.wavelength.size)) / snr
    labels = np.concatenate([np.stack(stars) for stars in found.values()])
    return Stars(labels, [kind for kind in found for _ in range(n_stars)], noise, snr)


def rows_of(extractor: SpectraFMFeatureExtractor, survey: Survey, stars: Stars, labels: np.ndarray) -> list[Row]:
    """The stars' spectra for these labels (n_stars, n), with their own noise, as the model reads them.

    All rows share their wavelengths: a token is left out only if no star has a good pixel in it.
    """
    flux = np.clip(survey.synthesizer(labels), 0.0, 1.1) + stars.noise
    error = np.full(survey.wavelength.size, 1 / stars.snr)
    power = survey.resolving_power_at(np.ones(1))[0]
    placed = (extractor.place(one, survey.wavelength, flux_error=error, resolving_power=power) for one in flux)
    rows = [extractor.tokenise(pixels, keep_empty=True) for pixels in placed]
    seen = np.any([row["attention_mask"] for row in rows], axis=0).reshape(-1, extractor.patch_size).any(axis=1)
    kept = np.repeat(seen, extractor.patch_size)
    return [{name: values[kept] for name, values in row.items()} for row in rows]


# ---------------------------------------------------------------- running the model


def deal(rows: Iterable[Mapping[str, np.ndarray]], patch_size: int, context: int, seed: int = 0) -> Iterator[Row]:
    """Rows -> rows of at most `context` tokens each, as equal as can be, dealt at random; short rows stay one."""
    for row in rows:
        whole = {name: row[name] for name in ("given", "given_errors") if name in row}
        tokens = {
            name: np.asarray(values).reshape(-1, patch_size)
            for name, values in row.items()
            if np.shape(values) == np.shape(row["flux"])
        }
        n_tokens = len(tokens["flux"])
        dealt = np.random.default_rng(seed).permutation(n_tokens)
        for chosen in np.array_split(dealt, -(-n_tokens // context)):
            yield whole | {name: values[np.sort(chosen)].ravel() for name, values in tokens.items()}


def predict_rows(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    rows: Sequence[Row],
    context: int,
    batch_size: int,
) -> np.ndarray:
    """Labels (n_rows, n_labels), K and dex, of rows of one length; contexts are combined by `combine_contexts`."""
    parts = list(deal(rows, extractor.patch_size, context))
    mean, log_var, *_ = ask(model, extractor, parts, batch_size)
    shape = (len(rows), len(parts) // len(rows), -1)
    mean, log_var = (part.astype(float).reshape(shape).swapaxes(0, 1) for part in (mean, log_var))
    return combine_contexts(mean, log_var)[0] * extractor.label_scale + extractor.label_center


def in_batches(parts: Iterable[Part], batch_size: int) -> Iterator[list[Part]]:
    """`batch_size` at a time, read when they are asked for."""
    parts = iter(parts)
    while some := list(islice(parts, batch_size)):
        yield some


@contextmanager
def inspected(model: SpectraFMForLabelPrediction) -> Iterator[None]:
    """In evaluation mode and with eager attention, which alone returns its weights; then as it was."""
    was_training, implementation = model.training, model.config._attn_implementation
    model.eval()
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)


class MeanByWavelength:
    """A running mean of what pixels hold, in bins of wavelength; its size does not depend on the number of spectra.

    Args:
        wavelength: Bin centres, shape (n_bins,), increasing, vacuum Angstrom; bins reach half-way to their neighbours.
        n_values: Numbers per pixel.
    """

    def __init__(self, wavelength: np.ndarray, n_values: int):
        self._lower, self._upper = pixel_edges(wavelength)
        self._sum = np.zeros((n_values, wavelength.size))
        self._count = np.zeros(wavelength.size)

    def add(self, values: np.ndarray, row: Mapping[str, np.ndarray]) -> None:
        """Values (n_values, n_pixels or more) of the good pixels of a row; what is beyond them is padding."""
        wavelength = row["wavelength"]
        bins = np.minimum(np.searchsorted(self._upper, wavelength), self._upper.size - 1)
        inside = (self._lower[bins] <= wavelength) & (wavelength <= self._upper[bins])
        inside &= row["attention_mask"].astype(bool)
        np.add.at(self._sum.T, bins[inside], values[:, : wavelength.size][:, inside].T)
        np.add.at(self._count, bins[inside], 1)

    def mean(self) -> np.ndarray:
        """Shape (n_values, n_bins), NaN where no pixel fell."""
        with np.errstate(invalid="ignore"):
            return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)


# ---------------------------------------------------------------- where it looks


def attention_by_wavelength(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    rows: Iterable[Mapping[str, np.ndarray]],
    kinds: Iterable[str],
    wavelength: np.ndarray,
    context: int = 512,
    batch_size: int = 16,
    block: int = -1,
) -> dict[str, np.ndarray]:
    """Mean attention of each label query against wavelength, for each kind of star.

    As in the paper: the last decoder block, mean over its heads, without the learned key and the non-spectral inputs,
    renormalised over the spectrum. The attention to a token is shared equally by its good pixels. Rows are read one
    batch at a time, so that any number of them takes the same memory.

    Args:
        rows: Of `SpectraFMFeatureExtractor.tokenise`; a generator will do.
        kinds: What each row is, e.g. `giants` or `dwarfs`.
        wavelength: Where it is wanted, shape (n_bins,), increasing, vacuum Angstrom.
        context: Most tokens seen at once; longer spectra are dealt out (`deal`).
        block: Decoder block.

    Returns:
        Kind -> attention, shape (n_labels, n_bins), in units of an even spread: 1 = no more and no less than any other
        pixel. NaN where no pixel fell.
    """
    means: dict[str, MeanByWavelength] = {}
    parts = (
        (part, kind)
        for row, kind in zip(rows, kinds, strict=True)
        for part in deal([row], extractor.patch_size, context)
    )
    with inspected(model), torch.inference_mode():
        for some in in_batches(parts, batch_size):
            batch = extractor.pad([part for part, _ in some], return_tensors="pt").to(model.device)
            weights = model(**batch, output_attentions=True).cross_attentions[block].float().mean(dim=1)
            good = batch["attention_mask"]
            attention = shared_by_pixels(weights, good, extractor.patch_size) * good.sum(-1)[:, None, None]
            for values, (part, kind) in zip(attention.cpu().numpy(), some, strict=True):
                if kind not in means:
                    means[kind] = MeanByWavelength(wavelength, len(values))
                means[kind].add(values, part)
    return {kind: mean.mean() for kind, mean in means.items()}


def shared_by_pixels(weights: torch.Tensor, good: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Attention to tokens -> to their good pixels, in equal parts, with sum 1 over the spectrum.

    Args:
        weights: Shape (batch, n_labels, n_keys). Behind the spectrum's tokens stand those of the non-spectral inputs,
            then the learned key; they are dropped.
        good: Shape (batch, n_pixels), 1 = good.

    Returns:
        Shape (batch, n_labels, n_pixels).
    """
    pixels = good.unflatten(1, (-1, patch_size)).float()
    to_tokens = weights[..., : pixels.shape[1]]
    to_tokens = to_tokens / to_tokens.sum(-1, keepdim=True)
    return (to_tokens[..., None] * (pixels / pixels.sum(-1, keepdim=True).clamp_min(1))[:, None]).flatten(2)


def in_few_pixels(patch: np.ndarray, patch_size: int) -> np.ndarray:
    """Good pixels whose patch has few of them, see `FEW`; (n_pixels,), bool.

    Args:
        patch: Which patch each good pixel is in, shape (n_pixels,), from 0.
    """
    return np.bincount(patch)[patch] < FEW * patch_size


def peaks(
    wavelength: np.ndarray,
    attention: np.ndarray,
    depth: np.ndarray,
    lines: Sequence[SpectralLine],
    n_peaks: int = 6,
    line_reach: float = 0.4,
) -> list[Peak]:
    """The highest places of an attention curve, and which listed lines they hold.

    A patch is some Angstrom wide and often holds lines of several elements: the three with the deepest lines are named.

    Args:
        attention, depth: Shape (n_pixels,); depth is 1 - mean flux.
        line_reach: How far from the pixels of a peak its lines may lie, Angstrom.

    Returns:
        Centre in vacuum Angstrom and elements such as `Mg/Fe`, highest first; `?` where no listed line is.
    """
    left = np.where(np.isfinite(attention), attention, -np.inf)
    found: list[Peak] = []
    while len(found) < n_peaks and np.isfinite(left).any():
        first, last = _plateau(wavelength, attention, int(np.argmax(left)))
        low, high = wavelength[first], wavelength[last]
        there = [line for line in lines if low - line_reach <= line.wavelength <= high + line_reach]
        there.sort(key=lambda line: -float(np.interp(line.wavelength, wavelength, depth)))
        elements = list(dict.fromkeys(line.element for line in there))[:3]
        found.append((float(0.5 * (low + high)), "/".join(elements) or "?"))
        left[(wavelength > low - PEAKS_APART) & (wavelength < high + PEAKS_APART)] = -np.inf
    return found


def _plateau(wavelength: np.ndarray, values: np.ndarray, top: int) -> tuple[int, int]:
    """First and last pixel of the neighbours of a peak, without a gap, that reach 95 % of it: those of its patch."""
    step = np.diff(wavelength)
    joined = (values >= 0.95 * values[top])[1:] & (values >= 0.95 * values[top])[:-1] & (step < 3 * np.median(step))
    first = last = top
    while first > 0 and joined[first - 1]:
        first -= 1
    while last < step.size and joined[last]:
        last += 1
    return first, last


# ---------------------------------------------------------------- what moves it


def sensitivity(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    rows: Iterable[Mapping[str, np.ndarray]],
    wavelength: np.ndarray,
    context: int = 512,
    batch_size: int = 16,
) -> np.ndarray:
    """How much a label rises when a pixel darkens by its own spread over the training stars; mean over spectra.

    The gradient of the label with respect to the scaled flux, with its sign turned: noise and the spread of stars
    average out what is true of one spectrum only. The continuum is held where it was.

    Args:
        rows, wavelength, context: See `attention_by_wavelength`.

    Returns:
        Shape (n_labels, n_bins), K and dex; NaN where no pixel fell.
    """
    mean = MeanByWavelength(wavelength, len(model.config.label_names))
    scale = np.asarray(extractor.label_scale)[:, None]
    with inspected(model):
        for some in in_batches(deal(rows, extractor.patch_size, context), batch_size):
            batch = extractor.pad(some, return_tensors="pt").to(model.device)
            flux = batch["flux"].requires_grad_(True)
            answers = model(**batch).label_mean.sum(dim=0)  # each spectrum's answer hangs on its own flux only
            gradients = [torch.autograd.grad(answer, flux, retain_graph=True)[0].cpu().numpy() for answer in answers]
            for number, part in enumerate(some):
                mean.add(np.stack([-gradient[number] for gradient in gradients]) * scale, part)
    return mean.mean()


def over_line_width(values: np.ndarray, wavelength: np.ndarray, resolving_power: float) -> np.ndarray:
    """Mean over the pixels within half a FWHM of each: values (..., n_pixels) at increasing wavelengths."""
    reach = wavelength * (0.5 / resolving_power + 1e-9)
    first, last = np.searchsorted(wavelength, wavelength - reach), np.searchsorted(wavelength, wavelength + reach)
    total = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.nancumsum(values, axis=-1)], axis=-1)
    count = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(np.isfinite(values), axis=-1)], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[..., last] - total[..., first]) / (count[..., last] - count[..., first])


def area_under_roc(values: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a pixel of `positive` has the larger value than one that is not; ties count half.

    NaN where either is empty; pixels whose value is NaN are left out.
    """
    known = np.isfinite(values)
    values, positive = values[known], positive[known]
    n_positive = int(positive.sum())
    n_others = positive.size - n_positive
    if not n_positive or not n_others:
        return float("nan")
    ranks = rankdata(values)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_others))


def occlusion(
    predict: Callable[[Sequence[Row]], np.ndarray],
    rows: Sequence[Row],
    hidden: Mapping[str, np.ndarray],
    depth: np.ndarray,
    n_draws: int,
    seed: int,
) -> Occlusion:
    """Hide the lines of each element, and matched controls `n_draws` times.

    Args:
        predict: Rows -> labels (n_rows, n_labels), K and dex.
        rows: Spectra on common wavelengths.
        hidden: Element -> its pixels, shape (n_pixels,) of a row, bool.
        depth: Mean 1 - flux of each pixel, same shape.
    """
    rng = np.random.default_rng(seed)
    wavelength = rows[0]["wavelength"]
    plain = predict(rows)

    def moved(pixels: np.ndarray) -> np.ndarray:
        without = [row | {"attention_mask": np.where(pixels, 0, row["attention_mask"])} for row in rows]
        return np.abs(predict(without) - plain)

    own, controls, control_depth = [], [], []
    for pixels in hidden.values():
        drawn = [control_pixels(rng, wavelength, depth, pixels) for _ in range(n_draws)]
        own.append(moved(pixels))
        controls.append([moved(control).mean(axis=0) for control in drawn])
        control_depth.append(np.mean([depth[control].mean() for control in drawn]))
    each, every = np.array(own), np.array(controls)  # (n_elements, n_stars or n_draws, n_labels)
    return Occlusion(
        elements=list(hidden),
        n_stars=len(rows),
        moved=each.mean(axis=1).T,
        moved_spread=each.std(axis=1).T,
        control=every.mean(axis=1).T,
        control_spread=every.std(axis=1, ddof=1).T,
        n_pixels=np.array([pixels.sum() for pixels in hidden.values()]),
        depth=np.array([depth[pixels].mean() for pixels in hidden.values()]),
        control_depth=np.array(control_depth),
    )


def control_pixels(
    rng: np.random.Generator, wavelength: np.ndarray, depth: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """For each run of hidden pixels another as long: nearby, none of it hidden, and nearly as deep.

    One of the `CONTROL_CHOICES` places nearest in mean depth within `CONTROL_REACH` is drawn; two never overlap. Where
    there is no such place left, a run has no control.

    Args:
        wavelength, depth: Shape (n_pixels,), vacuum Angstrom, 0 = no pixel there; 1 - flux.
        hidden: Same shape, bool.

    Returns:
        Shape (n_pixels,), bool.
    """
    free = ~hidden & (wavelength > 0)
    step = float(np.median(np.diff(wavelength[wavelength > 0])))
    chosen = np.zeros_like(hidden)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
    runs = edges.reshape(-1, 2)
    places = np.lib.stride_tricks.sliding_window_view
    for start, stop in runs[rng.permutation(len(runs))]:
        length = stop - start
        near = np.flatnonzero(np.abs(wavelength - wavelength[start]) < CONTROL_REACH)
        first, last = near[0], near[-1] + length  # all that a place near enough may cover
        there = places(wavelength[first:last], length)
        whole = places(free[first:last], length).all(axis=1)
        whole &= there[:, -1] - there[:, 0] < 2 * length * step  # no gap
        whole &= np.abs(there[:, 0] - wavelength[start]) < CONTROL_REACH
        candidates = np.flatnonzero(whole)
        if candidates.size == 0:
            continue
        deep = places(depth[first:last], length).mean(axis=1)[candidates]
        mismatch = np.abs(deep - depth[start:stop].mean())
        place = first + rng.choice(candidates[np.argsort(mismatch)[:CONTROL_CHOICES]])
        chosen[place : place + length] = True
        free[place : place + length] = False
    return chosen


def changed(survey: Survey, labels: np.ndarray, name: str, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n_stars, n) with one of them lower and higher by `step`, inside the synthesizer's bounds; the change."""
    column, (low, high) = survey.label_names.index(name), survey.synthesizer.bounds[name]
    less, more = labels.copy(), labels.copy()
    less[:, column] = np.clip(labels[:, column] - step, low, high)
    more[:, column] = np.clip(labels[:, column] + step, low, high)
    return less, more, more[:, column] - less[:, column]


def abundance_response(
    predict: Callable[[Sequence[Row]], np.ndarray],
    rows_for: Callable[[np.ndarray], list[Row]],
    survey: Survey,
    labels: np.ndarray,
    step: float = 0.2,
) -> np.ndarray:
    """Change of each predicted label per dex of each abundance, changed alone by +-`step`; mean over stars.

    Args:
        predict: Rows -> labels (n_rows, n_labels), K and dex.
        rows_for: Labels of the stars -> their rows, with the same noise every time.
        labels: Of the stars, shape (n_stars, n), columns as `survey.label_names`.

    Returns:
        Shape (n_labels, n_abundances); abundances are `abundances(survey)`. K or dex per dex; the identity is best.
    """
    slopes = []
    for name in abundances(survey):
        less, more, change = changed(survey, labels, name, step)
        difference = predict(rows_for(more)) - predict(rows_for(less))
        slopes.append((difference / change[:, None]).mean(axis=0))
    return np.array(slopes).T


def abundances(survey: Survey) -> list[str]:
    """What of a star can be changed beside Teff and log g: [Fe/H], then the ratios to Fe."""
    return [name for name in survey.label_names if name not in ("teff", "logg")]


def responsive_pixels(survey: Survey, labels: np.ndarray, name: str, wavelength: np.ndarray) -> np.ndarray:
    """The `RESPONSIVE_SHARE` of the pixels that darken most with an abundance: -d ln flux / d abundance, mean of stars.

    Args:
        labels: Shape (n_stars, n), columns as `survey.label_names`.
        wavelength: Shape (n_pixels,), vacuum Angstrom.

    Returns:
        Shape (n_pixels,), bool.
    """
    less, more, change = changed(survey, labels, name, 0.1)
    darkening = -(np.log(survey.synthesizer(more) / survey.synthesizer(less)) / change[:, None]).mean(axis=0)
    there = np.interp(wavelength, survey.wavelength, darkening)
    return there > np.quantile(there, 1 - RESPONSIVE_SHARE)


# ---------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Scene:
    """What a model is shown, and where in it which element absorbs.

    Attributes:
        rows: Of the stars, all with the same wavelengths.
        seen: Pixels of a row that are good in any star, numbers, in order of wavelength; the following are theirs.
        wavelength: Shape (n_seen,), vacuum Angstrom.
        depth: Mean 1 - flux of the stars without noise, (n_seen,).
        lines: Those of the list in range.
        pixels: Element -> pixels of its lines, (n_seen,), bool; the element with the most lines first.
    """

    survey: Survey
    stars: Stars
    rows: list[Row]
    seen: np.ndarray
    wavelength: np.ndarray
    depth: np.ndarray
    lines: list[SpectralLine]
    pixels: dict[str, np.ndarray]

    @classmethod
    def of(cls, extractor: SpectraFMFeatureExtractor, survey: Survey, stars: Stars) -> Scene:
        rows = rows_of(extractor, survey, stars, stars.labels)
        seen = np.flatnonzero(np.any([row["attention_mask"] for row in rows], axis=0))
        wavelength = rows[0]["wavelength"][seen]
        depth = 1 - np.clip(survey.synthesizer(stars.labels), 0.0, 1.1).mean(axis=0)
        lines = [line for line in read_line_list() if np.abs(wavelength - line.wavelength).min() < 0.5]
        elements = lines_by_element(lines)
        pixels = {name: line_pixels(wavelength, some, survey.resolving_power) for name, some in elements.items()}
        pixels = {name: some for name, some in pixels.items() if some.any()}
        return cls(
            survey, stars, rows, seen, wavelength, np.interp(wavelength, survey.wavelength, depth), lines, pixels
        )

    def on_row(self, values: np.ndarray) -> np.ndarray:
        """Values of the seen pixels -> of all pixels of a row, 0 elsewhere."""
        spread = np.zeros(self.rows[0]["wavelength"].size, dtype=values.dtype)
        spread[self.seen] = values
        return spread

    def score(self, label: str, sensitivity: np.ndarray, attention: np.ndarray) -> LineScore:
        """How well a label's own element stands out in its sensitivity and its attention, both (n_seen,)."""
        element, labels = OWN_ELEMENT[label], self.stars.labels
        own, of_any = self.pixels[element], np.any(list(self.pixels.values()), axis=0)
        responsive = np.zeros_like(own)
        if label != "fe_h" and label in self.survey.label_names:  # [Fe/H] scales all metals
            responsive = responsive_pixels(self.survey, labels, label, self.wavelength)
        return LineScore(
            label=label,
            element=element,
            n_lines=sum(line.element == element for line in self.lines),
            n_pixels=int(own.sum()),
            sensitivity_auc=area_under_roc(sensitivity, own),
            among_lines_auc=area_under_roc(sensitivity[of_any], own[of_any]),
            responsive_auc=area_under_roc(sensitivity, responsive),
            attention_auc=area_under_roc(attention, own),
        )


def explain(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    survey: Survey | None = None,
    n_stars: int = 32,
    snr: float = 100.0,
    seed: int = 2024,
    n_draws: int = 5,
    n_hidden: int | None = None,
    context: int = 512,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Explanation:
    """Look at a model from all sides, on synthetic giants and dwarfs of a survey.

    Args:
        survey: None = APOGEE.
        n_stars: Giants, and as many dwarfs.
        snr: Signal-to-noise ratio per pixel.
        seed: Of stars, noise and controls; rows of a training set come from generators of another kind.
        n_draws: Of control pixels, at least 2.
        n_hidden: Giants, and as many dwarfs, in whose spectra lines are hidden, which takes most of the time; None =
            all. The other answers are of all stars in any case.
        context: Most tokens seen at once; longer spectra are dealt out.
        batch_size: Contexts at once.
        progress: Show a bar; None = on a terminal.

    Raises:
        ValueError: Fewer than 2 draws or no star of a kind; the survey draws too few stars with lines; or it has no
            pixel in the model's range.
    """
    survey = survey or SURVEYS["apogee"]
    n_hidden = n_stars if n_hidden is None else min(n_hidden, n_stars)
    if n_draws < 2 or n_hidden < 1:
        raise ValueError(f"at least 2 draws of controls and 1 star of a kind are needed, got {n_draws} and {n_hidden}.")
    stars = draw_stars(survey, n_stars, seed, snr)
    scene = Scene.of(extractor, survey, stars)
    some = [row for number, row in enumerate(scene.rows) if number % n_stars < n_hidden]  # of each kind the first
    hidden = {element: scene.on_row(pixels) for element, pixels in scene.pixels.items()}
    asked = len(some) * (1 + len(hidden) * (1 + n_draws)) + len(scene.rows) * (2 + 2 * len(abundances(survey)))
    with tqdm(total=asked, unit="spectra", disable=None if progress is None else not progress) as bar:

        def predict(rows: Sequence[Row]) -> np.ndarray:
            answers = predict_rows(model, extractor, rows, context, batch_size)
            bar.update(len(rows))
            return answers

        def rows_for(labels: np.ndarray) -> list[Row]:
            return rows_of(extractor, survey, stars, labels)

        def shown() -> Iterator[Row]:
            for row in scene.rows:
                yield row
                bar.update()

        where = (scene.wavelength, context, batch_size)
        attention = attention_by_wavelength(model, extractor, shown(), stars.kind, *where)
        darker = sensitivity(model, extractor, shown(), *where)
        occluded = occlusion(predict, some, hidden, scene.on_row(scene.depth), n_draws, seed)
        response = abundance_response(predict, rows_for, survey, stars.labels)
    darker = over_line_width(darker, scene.wavelength, survey.resolving_power)
    attention_of_all = np.nanmean(list(attention.values()), axis=0)
    names = list(model.config.label_names)
    return Explanation(
        label_names=names,
        survey=survey.name,
        n_stars=len(scene.rows),
        wavelength=scene.wavelength,
        depth=scene.depth,
        lines=scene.lines,
        pixels=scene.pixels,
        attention=attention,
        sensitivity=darker,
        element_auc={
            element: np.array([area_under_roc(of_label, pixels) for of_label in darker])
            for element, pixels in scene.pixels.items()
        },
        scores=[
            scene.score(label, *curves)
            for label, *curves in zip(names, darker, attention_of_all, strict=True)
            if OWN_ELEMENT.get(label) in scene.pixels
        ],
        occlusion=occluded,
        abundances=abundances(survey),
        response=response,
        peaks={
            kind: [peaks(scene.wavelength, of_label, scene.depth, scene.lines) for of_label in curves]
            for kind, curves in attention.items()
        },
    )
