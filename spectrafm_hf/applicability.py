"""Is this spectrum one that the model can be trusted with? Checks, each with a score, a limit and a reason in words.

A score of 0 is that of a usual spectrum, 1 the limit of a check: what the farthest 0.2 % of the calibration spectra
reach, which are observed as training spectra are and which no training saw. Limits belong to a range of wavelengths
that training covered (`TrainedRange`), the one in which most good pixels of a spectrum lie. A spectrum fails

| check | where |
|---|---|
| `coverage` | it has less than half as many good pixels as any had, or a tenth of them where training had none |
| `resolution`, `noise` | its resolving power as told, or its noise as the pixels show it, is that of none |
| `errors` | the errors it tells are not those that its pixels show |
| `features` | what the readouts see is far from all they saw (Mahalanobis distance; Lee et al. 2018, NeurIPS) |
| `labels`, `sigma` | an answer lies beyond all answers, or is less sure |
| `residual` | it is not like the synthetic spectrum of its labels |
| `velocity`, `wider`, `hot_star`, `no_lines` | that star on the move, wider lines, a hot star or none explain more |

The last two rows are `reconstruction`, which asks the Cannon grid and not the network. A model that does not predict
Teff, log g and [Fe/H] all three goes without them.

A window cut out of a good spectrum fails `coverage` as well: it need not be wrong, but limits that were fitted on
whole spectra cannot vouch for it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .labels import get_label
from .reconstruction import Explained, Reconstruction
from .synthesis.cannon import LABEL_NAMES

FILE_NAME = "applicability.safetensors"

FALSE_ALARMS = 0.002
"""Share of the calibration spectra that each limit leaves outside."""

FEWEST_SPECTRA = 500
"""Of a range of wavelengths: fewer have no farthest 0.2 %."""

N_AXES = 64
"""Principal axes of the features along which a distance is measured."""

GAP = 0.01
"""Of the wavelength: where training spectra had no pixels for more than that, one range ends and another begins."""

TOLERANCE = 1.1
"""Factor on the ends of a range of resolving powers or noises: both are known to 10 % only."""

INSIDE_OR_OUTSIDE = {"coverage", "resolution", "noise"}
"""Checks in which no spectrum that training might have seen is stranger than another."""

OTHER_EXPLANATIONS = ("wider", "hot_star", "no_lines")
"""Checks that compare likelihoods."""

UNLIKELY = 10.0
"""ln(L / L_star) that any other explanation must reach to be preferred, however rarely it does."""

TAKEN_FOR_VACUUM, TAKEN_FOR_AIR = (-90.0, -72.0), (72.0, 90.0)
"""km/s: how air wavelengths that are taken for vacuum move a star, and vacuum wavelengths that are taken for air."""

IMPLAUSIBLE = 400.0
"""km/s: hardly any star is faster, and where lines agree only then, they agree by chance."""

Row = Mapping[str, np.ndarray]
"""A prepared spectrum, of `SpectraFMFeatureExtractor.tokenise`."""

Answers = Sequence[np.ndarray]
"""Of `prediction.ask`: mean and log-variance (n, n_labels), scaled; features (n, n_labels, d); noise (n,), which is
measured anew where it is left out."""


# ---------------------------------------------------------------- what is looked at


@dataclass(frozen=True)
class Evidence:
    """What the checks look at: spectra of one range of wavelengths.

    Attributes:
        n_good, n_outside: Good pixels, and those of them in no trained range; shape (n,).
        sharpest, dullest: Highest and lowest resolving power told of a good pixel, shape (n,); NaN = not told.
        held: Highest resolving power that the sampling can hold, shape (n,); NaN = not known.
        flux_error: Median told of the good pixels, shape (n,); NaN = not told.
        noise: See `SpectraFMFeatureExtractor.noise`, shape (n,); NaN = not known.
        value, sigma: The network's own answers, K and dex, shape (n, n_labels); NaN = the label was given.
        features: Mean over the labels, shape (n, d).
        explained: Attributes of `reconstruction.Explained`, each (n,); NaN = not asked.
    """

    n_good: np.ndarray
    n_outside: np.ndarray
    sharpest: np.ndarray
    dullest: np.ndarray
    held: np.ndarray
    flux_error: np.ndarray
    noise: np.ndarray
    value: np.ndarray
    sigma: np.ndarray
    features: np.ndarray
    explained: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        extractor: SpectraFMFeatureExtractor,
        rows: Sequence[Row],
        answers: Answers,
        n_outside: np.ndarray,
        chosen: Sequence[int],
        reconstruction: Reconstruction | None,
        matters: tuple[float, float] | None = None,
        held: Sequence[float] | None = None,
    ) -> Evidence:
        """Of those `chosen` of all spectra, which lie in the range of the reconstruction; `matters`: see there."""
        rows, n_outside = [rows[number] for number in chosen], n_outside[chosen]
        mean, log_var, features = (np.asarray(part, dtype=np.float64)[chosen] for part in answers[:3])
        value = mean * extractor.label_scale + extractor.label_center
        if len(answers) > 3:
            noise = np.asarray(answers[3], dtype=np.float64)[chosen]
        else:
            noise = np.concatenate([extractor.noise({name: row[name][None] for name in row}) for row in rows])
        sharpest, dullest = told(rows, "resolving_power", np.max, np.min)
        (flux_error,) = told(rows, "flux_error", np.median)
        return cls(
            n_good=np.array([int(row["attention_mask"].sum()) for row in rows]),
            n_outside=n_outside,
            sharpest=sharpest,
            dullest=dullest,
            held=np.full(len(rows), np.nan) if held is None else np.asarray(held, dtype=np.float64)[chosen],
            flux_error=flux_error,
            noise=noise,
            value=value,
            sigma=np.exp(0.5 * log_var) * extractor.label_scale,
            features=features.mean(axis=1),
            explained=explain(reconstruction, extractor, rows, value, matters),
        )


def told(rows: Sequence[Row], name: str, *of: Callable[[np.ndarray], float]) -> np.ndarray:
    """Median, or the like, of what the good pixels of each spectrum tell, shape (len(of), n); NaN = nothing."""
    found = np.full((len(of), len(rows)), np.nan)
    for number, row in enumerate(rows):
        values = row[name][row["attention_mask"] > 0] if name in row else np.zeros(0)
        known = values[(values > 0) & (values < np.inf)]
        if known.size:
            same = known.min() == known.max()  # as of most surveys, and found faster than a median
            found[:, number] = [known[0] if same else one(known) for one in of]
    return found


def explain(
    reconstruction: Reconstruction | None,
    extractor: SpectraFMFeatureExtractor,
    rows: Sequence[Row],
    value: np.ndarray,
    matters: tuple[float, float] | None = None,
) -> dict[str, np.ndarray]:
    """Attributes of `reconstruction.Explained`, each (n,), of spectra and their labels (n, n_labels), K and dex."""
    found: list[Explained | None] = [None] * len(rows)
    if reconstruction is not None:
        stars = value[:, [extractor.label_names.index(name) for name in LABEL_NAMES]]
        found = reconstruction.explain_all(extractor, rows, stars, matters)
    return {
        one.name: np.array([np.nan if e is None else getattr(e, one.name) for e in found]) for one in fields(Explained)
    }


# ---------------------------------------------------------------- what training saw


@dataclass(frozen=True)
class TrainedRange:
    """A range of wavelengths in which training spectra lay, and what they were like there.

    Attributes:
        low, high: Vacuum Angstrom.
        resolving_power: Lowest and highest lambda / FWHM of a pixel; None = not known.
        n_good: Fewest good pixels of a spectrum.
        noise: Largest, per pixel, relative to the continuum.
        velocity: km/s that nine spectra of ten stay below.
        lowest, highest: Answers of all but the farthest `FALSE_ALARMS`, K and dex, shape (n_labels,).
        sigma: Median, likewise.
        center, axes: Of the features, shapes (d,) and (d, n_axes); along an axis they have unit spread.
        usual, limits: Check -> median of the spectra, and what the farthest `FALSE_ALARMS` of them reach, in the
            check's own unit.
    """

    low: float
    high: float
    resolving_power: tuple[float, float] | None
    n_good: float
    noise: float
    velocity: float
    lowest: np.ndarray
    highest: np.ndarray
    sigma: np.ndarray
    center: np.ndarray
    axes: np.ndarray
    usual: dict[str, float]
    limits: dict[str, float]

    @classmethod
    def of(cls, ends: tuple[float, float], resolving_power: tuple[float, float] | None, seen: Evidence) -> TrainedRange:
        center = seen.features.mean(axis=0)
        _, spread, axes = np.linalg.svd(seen.features - center, full_matrices=False)
        n_axes = min(N_AXES, len(spread))
        unit = spread[:n_axes] / np.sqrt(len(seen.features))
        farthest = 1 - FALSE_ALARMS
        velocity = np.abs(seen.explained["velocity"])
        described = cls(
            *ends,
            resolving_power,
            n_good=float(seen.n_good.min()),
            noise=float(np.nanquantile(seen.noise, farthest)),
            velocity=float(np.nanquantile(velocity, 0.9)) if np.isfinite(velocity).any() else np.nan,
            lowest=np.nanquantile(seen.value, FALSE_ALARMS, axis=0),
            highest=np.nanquantile(seen.value, farthest, axis=0),
            sigma=np.nanmedian(seen.sigma, axis=0),
            center=center,
            axes=axes[:n_axes].T / np.maximum(unit, 1e-6 * unit[0]),
            usual={},
            limits={},
        )
        raw = {name: values[np.isfinite(values)] for name, values in described.raw(seen).items()}
        usual = {name: float(np.median(values)) for name, values in raw.items() if values.size}
        limits = {name: float(np.quantile(raw[name], farthest)) for name in usual}
        limits |= {name: max(limits[name], math.log1p(UNLIKELY)) for name in OTHER_EXPLANATIONS if name in limits}
        hard = INSIDE_OR_OUTSIDE & usual.keys()
        return replace(described, usual=usual | dict.fromkeys(hard, 0.0), limits=limits | dict.fromkeys(hard, 1.0))

    def raw(self, seen: Evidence) -> dict[str, np.ndarray]:
        """What each check measures, (n,), larger = stranger; NaN = cannot be said."""
        found = seen.explained
        with np.errstate(invalid="ignore", divide="ignore"):
            middle, half = (self.highest + self.lowest) / 2, (self.highest - self.lowest) / 2
            return {
                "coverage": np.maximum(0.5 * self.n_good / seen.n_good, 10 * seen.n_outside / seen.n_good),
                "resolution": self._beyond(seen),
                "noise": seen.noise / self.noise / TOLERANCE,
                "errors": np.abs(np.log(seen.flux_error / seen.noise)),
                "features": np.sqrt((((seen.features - self.center) @ self.axes) ** 2).mean(axis=1)),
                "labels": np.nanmax(np.abs(seen.value - middle) / half, axis=1),
                "sigma": np.nanmax(seen.sigma / self.sigma, axis=1),
                "residual": np.sqrt(np.maximum(found["residual"] ** 2 - seen.noise**2, 0.0)),
                "velocity": np.abs(found["velocity"]) / np.hypot(self.velocity, 4 * found["velocity_error"]),
                **{name: np.sign(found[name]) * np.log1p(np.abs(found[name])) for name in OTHER_EXPLANATIONS},
            }

    def matters(self) -> tuple[float, float]:
        """Log-likelihood ratios of `wider` and `hot_star` at their limits; minus infinity without limit."""
        wider, hot_star = (self.limits.get(name, -np.inf) for name in ("wider", "hot_star"))
        return float(np.sign(wider) * np.expm1(abs(wider))), float(np.sign(hot_star) * np.expm1(abs(hot_star)))

    def _beyond(self, seen: Evidence) -> np.ndarray:
        """Factor by which a resolving power lies outside the trained ones, tolerance and all; below 1 inside."""
        if self.resolving_power is None:
            return np.full(seen.sharpest.shape, np.nan)
        least, most = self.resolving_power
        return np.fmax(np.maximum(least / seen.dullest, seen.sharpest / most), least / seen.held) / TOLERANCE

    def scores(self, seen: Evidence) -> dict[str, np.ndarray]:
        """Check -> score, (n,); 0 = usual, 1 = limit. NaN = cannot be said."""
        raw = self.raw(seen)
        scores = {
            name: np.maximum(raw[name] - self.usual[name], 0.0) / max(limit - self.usual[name], 1e-9)
            for name, limit in self.limits.items()
        }
        for name in INSIDE_OR_OUTSIDE & scores.keys():
            scores[name] = np.where(scores[name] <= 1, 0.0, scores[name])
        return scores


def trained_ranges(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Ranges of wavelengths, vacuum Angstrom, that hold good pixels of these spectra without a gap wider than `GAP`."""
    wavelength = np.unique(np.concatenate([good_wavelengths(row).round(1) for row in rows]))
    gaps = np.flatnonzero(np.diff(wavelength) > GAP * wavelength[:-1]) + 1
    return [(float(run[0]), float(run[-1])) for run in np.split(wavelength, gaps)]


def ranges_of_labels(
    rows: Sequence[Row], labels: np.ndarray, label_names: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Where the spectra that have a label lie, see `trained_ranges`; a label that none has is not there.

    Args:
        rows: Prepared spectra.
        labels: Theirs, shape (n_spectra, n_labels), NaN = missing.
        label_names: Of the columns.
    """
    found = {}
    for name, column in zip(label_names, np.asarray(labels).T, strict=True):
        if having := [row for row, known in zip(rows, np.isfinite(column), strict=True) if known]:
            found[name] = trained_ranges(having)
    return found


def good_wavelengths(row: Row) -> np.ndarray:
    return row["wavelength"][row["attention_mask"] > 0]


def place(rows: Sequence[Row], ranges: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Number of the range that holds most good pixels of each spectrum, and how many of them lie in none; (n,) each."""
    low, high = (np.array(ranges) + np.array([-1.0, 1.0])).T[:, :, None]  # Angstrom
    wavelengths = [good_wavelengths(row) for row in rows]
    inside = np.array([np.count_nonzero((w >= low) & (w <= high), axis=1) for w in wavelengths])
    return inside.argmax(axis=1), np.array([w.size for w in wavelengths]) - inside.sum(axis=1)


# ---------------------------------------------------------------- the verdict


@dataclass(frozen=True)
class Verdict:
    """What the checks say of one spectrum.

    Attributes:
        scores: Check -> score, 1 = limit; a check that cannot be made is not there.
        flags: (check, reason) of those above 1, the largest score first.
        velocity, velocity_error: Of the star against the spectrum of its labels, km/s; NaN = not measured.
    """

    scores: dict[str, float]
    flags: list[tuple[str, str]]
    velocity: float
    velocity_error: float

    @property
    def score(self) -> float:
        """The largest score; above 1 the spectrum is unlike those the model was made for."""
        return max(self.scores.values())

    @property
    def applicable(self) -> bool:
        return not self.flags


def reason(check: str, trained: TrainedRange, seen: Evidence, row: int, label_names: Sequence[str]) -> str:
    """Why a spectrum fails a check, for people, with units."""
    found = {name: float(values[row]) for name, values in seen.explained.items()}
    n_good, noise = seen.n_good[row], seen.noise[row]
    where = f"{trained.low:.0f}-{trained.high:.0f} vacuum Angstrom"
    match check:
        case "coverage":
            said = []
            if 2 * n_good < trained.n_good:
                said.append(
                    f"{n_good} good pixels, where whole spectra had {trained.n_good:.0f} or more in {where}: a window "
                    "need not be wrong, but the limits are those of whole spectra and cannot vouch for it"
                )
            if 10 * seen.n_outside[row] > n_good:
                said.append(
                    f"{seen.n_outside[row]} of its {n_good} good pixels lie where no training spectrum had any, "
                    f"outside {where}"
                )
            return "; ".join(said)
        case "resolution":
            least, most = trained.resolving_power or (np.nan, np.nan)
            in_training = f"in training {least:,.0f} to {most:,.0f} in {where}"
            if seen.held[row] * TOLERANCE < least:
                return f"pixels too wide for a resolving power above {seen.held[row]:,.0f}, {in_training}"
            own = seen.sharpest[row] if seen.sharpest[row] > most else seen.dullest[row]
            return f"a resolving power of {own:,.0f}, {in_training}"
        case "noise":
            return f"a signal-to-noise ratio of {1 / noise:.3g} per pixel, in training {1 / trained.noise:.3g} or more"
        case "errors":
            return (
                f"flux_error tells a signal-to-noise ratio of {1 / seen.flux_error[row]:.3g} per pixel, the pixels "
                f"show {1 / noise:.3g}; is it a variance, or in another unit than the flux?"
            )
        case "features":
            return "what the network sees of it is far from all that it saw in training"
        case "labels":
            return _reason_labels(trained, seen.value[row], label_names)
        case "sigma":
            label = int(np.nanargmax(seen.sigma[row] / trained.sigma))
            times = seen.sigma[row, label] / trained.sigma[label]
            return f"sigma of {get_label(label_names[label]).symbol} is {times:.1f} times the usual one"
        case "residual":
            return (
                f"it differs from the spectrum of its labels by {found['residual']:.1%} of the continuum (rms), of "
                f"which noise is {noise:.1%}"
            )
        case "velocity":
            return _reason_velocity(found["velocity"], found["velocity_error"])
        case "wider":
            than = "told" if np.isfinite(seen.sharpest[row]) else "any in training"
            return f"its lines are {found['widening']:.1f} times as wide as {than}"
        case "hot_star":
            return f"a star of {found['hot_teff']:,.0f} K explains it better than the one of its labels"
        case "no_lines":
            return "a continuum without lines explains it better than the spectrum of its labels"
    raise ValueError(f"no check is called {check!r}.")


def _reason_labels(trained: TrainedRange, value: np.ndarray, label_names: Sequence[str]) -> str:
    outside = np.maximum(trained.lowest - value, value - trained.highest) / (trained.highest - trained.lowest)
    number = int(np.nanargmax(outside))
    label, digits = get_label(label_names[number]), 0 if label_names[number] == "teff" else 2
    low, high = trained.lowest[number], trained.highest[number]
    return (
        f"{label.symbol} of {value[number]:.{digits}f} {label.unit}, beyond nearly all answers for calibration "
        f"spectra, {low:.{digits}f} to {high:.{digits}f}"
    )


def _reason_velocity(velocity: float, error: float) -> str:
    if abs(velocity) > IMPLAUSIBLE:
        cause = "is it a star like those in training?"
    elif TAKEN_FOR_VACUUM[0] < velocity < TAKEN_FOR_VACUUM[1]:
        cause = "are its wavelengths in air?"
    elif TAKEN_FOR_AIR[0] < velocity < TAKEN_FOR_AIR[1]:
        cause = "were its vacuum wavelengths taken for air?"
    else:
        cause = "is it in its rest frame?"
    return f"it moves at {velocity:+.0f} +- {error:.2g} km/s against the spectrum of its labels; {cause}"


# ---------------------------------------------------------------- all ranges of a model


@dataclass(frozen=True)
class Applicability:
    """The limits of a model, saved beside it.

    Attributes:
        label_names: Of the model.
        ranges: Where training spectra lay; see `TrainedRange`.
    """

    label_names: list[str]
    ranges: list[TrainedRange]

    @classmethod
    def fit(
        cls,
        extractor: SpectraFMFeatureExtractor,
        rows: Sequence[Row],
        answers: Answers,
        resolving_power: tuple[float, float] | None = None,
    ) -> Applicability:
        """Limits from calibration spectra: observed as training spectra were, but seen by no training.

        Args:
            extractor: Of the model.
            rows: Prepared spectra.
            answers: The model's, for them.
            resolving_power: Lowest and highest lambda / FWHM where no spectrum tells any; None = not known, and
                nothing is reconstructed there.

        Raises:
            ValueError: A range of wavelengths has too few of them.
        """
        ends = trained_ranges(rows)
        number, n_outside = place(rows, ends)
        ranges = []
        for index, (low, high) in enumerate(ends):
            mine = np.flatnonzero(number == index).tolist()
            if len(mine) < FEWEST_SPECTRA:
                raise ValueError(
                    f"limits need {FEWEST_SPECTRA} calibration spectra or more in each range of wavelengths, got "
                    f"{len(mine)} in {low:.0f}-{high:.0f} vacuum Angstrom; make more, or leave that range out."
                )
            ends_told = told([rows[i] for i in mine], "resolving_power", np.min, np.max)
            anything = np.isfinite(ends_told).any()
            power = (float(np.nanmin(ends_told)), float(np.nanmax(ends_told))) if anything else resolving_power
            synthetic = reconstruction_of(extractor, (low, high), power)
            seen = Evidence.of(extractor, rows, answers, n_outside, mine, synthetic)
            ranges.append(TrainedRange.of((low, high), power, seen))
        return cls(list(extractor.label_names), ranges)

    def check(
        self,
        extractor: SpectraFMFeatureExtractor,
        rows: Sequence[Row],
        answers: Answers,
        all_scores: bool = True,
        held: Sequence[float] | None = None,
    ) -> list[Verdict]:
        """One verdict per prepared spectrum, from it and from the model's answer.

        Args:
            extractor: Of the model.
            rows: Prepared spectra.
            answers: The model's, for them.
            all_scores: False = scores of `wider` and `hot_star` may be left out where they lie below 1 beyond doubt,
                which takes half the time. Flags are the same.
            held: Highest resolving power that the sampling of each spectrum, as it came, can hold, shape (n,); see
                `spectra.highest_resolving_power`. None = not known.

        Raises:
            ValueError: The model has other labels than the one these limits were fitted for.
        """
        if list(extractor.label_names) != self.label_names:
            raise ValueError(
                f"these limits are of a model with the labels {', '.join(self.label_names)}, got one with "
                f"{', '.join(extractor.label_names)}; fit them anew with Applicability.fit."
            )
        if not rows:
            return []
        verdicts: list[Verdict | None] = [None] * len(rows)
        number, n_outside = place(rows, [(one.low, one.high) for one in self.ranges])
        for index, trained in enumerate(self.ranges):
            mine = np.flatnonzero(number == index).tolist()
            if not mine:
                continue
            synthetic = reconstruction_of(extractor, (trained.low, trained.high), trained.resolving_power)
            matters = None if all_scores else trained.matters()
            seen = Evidence.of(extractor, rows, answers, n_outside, mine, synthetic, matters, held)
            scores = trained.scores(seen)
            for row, star in enumerate(mine):
                own = {name: float(values[row]) for name, values in scores.items() if not np.isnan(values[row])}
                beyond = sorted((name for name, score in own.items() if score > 1), key=lambda name: -own[name])
                flags = [(name, reason(name, trained, seen, row, self.label_names)) for name in beyond]
                moves = (float(seen.explained[name][row]) for name in ("velocity", "velocity_error"))
                verdicts[star] = Verdict(own, flags, *moves)
        return [verdict for verdict in verdicts if verdict is not None]

    def save(self, folder: str | Path) -> None:
        """Write `applicability.safetensors` into a model's folder, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        numbers = []
        for index, one in enumerate(self.ranges):
            told_of = {part.name: getattr(one, part.name) for part in fields(one)}
            # Safetensors writes the memory as it lies, so that a transposed array would come back as another.
            arrays |= {
                f"{index}.{name}": np.ascontiguousarray(values, dtype=np.float32)
                for name, values in told_of.items()
                if isinstance(values, np.ndarray)
            }
            numbers.append({n: v for n, v in told_of.items() if not isinstance(v, np.ndarray)})
        described = json.dumps({"label_names": self.label_names, "ranges": numbers})
        path = Path(folder) / FILE_NAME
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(save(arrays, metadata={"applicability": described}))
        partial.replace(path)

    @classmethod
    def load(cls, folder: str | Path) -> Applicability:
        """Read it back.

        Raises:
            FileNotFoundError: The model has none.
            ValueError: The file does not hold what `save` writes.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {FILE_NAME}: nobody has told where this model can be trusted.")
        with safe_open(path, framework="np") as file:
            described = json.loads((file.metadata() or {}).get("applicability", "{}"))
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
        if set(described) != {"label_names", "ranges"}:
            raise ValueError(f"{path} was not written by Applicability.save; fit it anew.")
        ranges = []
        for index, numbers in enumerate(described["ranges"]):
            own = {name.split(".")[1]: values for name, values in arrays.items() if name.startswith(f"{index}.")}
            power = numbers.pop("resolving_power")
            ranges.append(TrainedRange(resolving_power=None if power is None else tuple(power), **numbers, **own))
        return cls(described["label_names"], ranges)


def reconstruction_of(
    extractor: SpectraFMFeatureExtractor, ends: tuple[float, float], resolving_power: tuple[float, float] | None
) -> Reconstruction | None:
    """Of a range of wavelengths; None where the model has no labels for it, or no line-spread function is known."""
    if resolving_power is None or not set(LABEL_NAMES) <= set(extractor.label_names):
        return None
    return _reconstruction(*ends, resolving_power)


_reconstruction = lru_cache(maxsize=8)(Reconstruction)  # its synthetic spectra take a second to prepare


def abstain(decoded: Mapping[str, Mapping[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, dict[str, np.ndarray]]:
    """Decoded labels with NaN for the spectra that fail a check.

    Args:
        decoded: Of `SpectraFMFeatureExtractor.decode_labels`, arrays of shape (n,).
        verdicts: One per spectrum.
    """
    trusted = np.array([verdict.applicable for verdict in verdicts])
    return {
        name: {key: np.where(trusted, values, np.nan) for key, values in told_of.items()}
        for name, told_of in decoded.items()
    }
