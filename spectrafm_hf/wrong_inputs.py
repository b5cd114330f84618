"""Inputs a model must not trust, made of good ones: is each kind told from the spectra it was trained for?

Six families, each made for one survey with seeds that no training uses:

| family | what it is |
|---|---|
| `m_dwarf` | below the 3,500 K at which the Cannon grid ends: its coolest dwarfs under bands of TiO, CaH and FeH |
| `hot_star` | 10,000-30,000 K, logg 3-4.8, from the grid's hot model |
| `noise` | half of them noise about a flat continuum, half galaxies: five stars each, lines 200 km/s wide (sigma) |
| `wrong_unit` | wavelengths in nm, in micron, as log10 or as pixel numbers; flux in magnitudes |
| `velocity_100` | good spectra, shifted by +100 or -100 km/s |
| `air_as_vacuum` | good spectra with their wavelengths in air, taken for vacuum: about -80 km/s |

All are observed as training spectra are, with the same noise, line-spread functions and missing pixels; galaxies at
the survey's own resolving power, since it is by their width that one knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .applicability import Applicability
from .collation import row_generator
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .metrics import auroc
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import ask
from .spectra import FWHM_TO_SIGMA, SPEED_OF_LIGHT, vacuum_to_air
from .synthesis.cannon import CannonSynthesizer
from .synthesis.surveys import Survey, SurveyConditions, observe_survey

RawSpectrum = dict[str, Any]
"""What `SpectraFMFeatureExtractor.place` takes: flux, wavelength, bad_pixel, flux_error, resolving_power."""

BANDHEADS = (
    *(4762.0, 4956.0, 5169.0, 5450.0, 5761.0, 5849.0, 6160.0, 6653.0, 7055.0),  # TiO
    *(6385.0, 6750.0, 6910.0),  # CaH
    *(15_835.0, 15_915.0, 16_250.0),  # FeH
)
"""Where bands of M dwarfs begin, vacuum Angstrom; they fade redward (TiO and CaH: Kirkpatrick, Henry & McCarthy 1991,
ApJS 77, 417, their Table 5; FeH: Cushing et al. 2003, ApJ 582, 1066)."""

BAND_LENGTH = 120.0
"""Angstrom over which a band fades by a factor e."""

GALAXY_DISPERSION = 200.0
"""km/s."""


def observed(survey: Survey, clean: np.ndarray, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    """Synthetic spectra (n_spectra, n_pixels) of the survey's resolution, as it would have handed them out."""
    seen = observe_survey(clean, survey, conditions, [row_generator(seed, row) for row in range(len(clean))])
    return [
        {
            "flux": seen.flux[row],
            "wavelength": survey.wavelength,
            "bad_pixel": ~seen.good[row],
            "flux_error": seen.flux_error[row],
            "resolving_power": seen.resolving_power[row],
        }
        for row in range(len(clean))
    ]


def stars(survey: Survey, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, n_labels), K and dex, and noiseless flux (n, n_pixels) of stars as the survey has them."""
    drawn = np.stack([survey.draw(row_generator(seed + 1, row)) for row in range(n)])
    return drawn, np.clip(survey.synthesizer(drawn), 0.0, 1.1)


def good_stars(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    """What the model was trained for."""
    return observed(survey, stars(survey, n, seed)[1], seed, conditions)


@cache
def _grid(survey_name: str, model: str, wavelength: tuple[float, ...], resolving_power: float) -> CannonSynthesizer:
    return CannonSynthesizer(np.array(wavelength), resolving_power=resolving_power, model=model)


def _cannon(survey: Survey, model: str) -> CannonSynthesizer:
    return _grid(survey.name, model, tuple(survey.wavelength), survey.resolving_power)


def m_dwarfs(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    """Dwarfs of the coolest labels of the grid, 3,500-3,600 K, with bands that are 0.4 to 1.2 deep in ln flux."""
    rng = np.random.default_rng([seed, 0])
    labels = np.column_stack([rng.uniform(3500, 3600, n), rng.uniform(4.6, 5.0, n), rng.uniform(-0.5, 0.3, n)])
    distance = survey.wavelength[:, None] - np.array(BANDHEADS)
    shape = np.where(distance > 0, np.exp(-np.maximum(distance, 0) / BAND_LENGTH), 0.0)
    sharp = 0.5 * shape.sum(axis=1)
    pixel = float(np.median(np.diff(survey.wavelength)))
    soft = gaussian_filter1d(sharp, survey.wavelength.mean() / survey.resolving_power * FWHM_TO_SIGMA / pixel)
    depth = rng.uniform(0.8, 2.4, (n, 1))
    return observed(survey, _cannon(survey, "cool")(labels).clip(0, 1.1) * np.exp(-depth * soft), seed, conditions)


def hot_stars(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    rng = np.random.default_rng([seed, 1])
    teff = 10_000 * 3 ** rng.random(n)
    labels = np.column_stack([teff, rng.uniform(3.0, 4.8, n), rng.uniform(-1, 0.3, n)])
    return observed(survey, _cannon(survey, "hot")(labels).clip(0, 1.1), seed, conditions)


def galaxies(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    """Five stars each, their lines widened by the stars' motions; seen at the survey's own resolving power."""
    summed = stars(survey, 5 * n, seed)[1].reshape(n, 5, -1).mean(axis=1)
    own = SPEED_OF_LIGHT / survey.resolving_power * FWHM_TO_SIGMA
    blurred = survey.widen(summed, np.full(n, np.hypot(1, GALAXY_DISPERSION / own)))
    return observed(survey, blurred, seed, replace(conditions, wider=(1.0, 1.0), widened=0.0))


def noise_and_galaxies(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    flat = np.ones((n - n // 2, survey.wavelength.size), dtype=np.float32)
    return observed(survey, flat, seed, conditions) + galaxies(survey, n // 2, seed, conditions)


def moved(spectra: Sequence[RawSpectrum], velocity: np.ndarray) -> list[RawSpectrum]:
    """The same stars, receding by `velocity` (n,), km/s."""
    return [
        spectrum | {"wavelength": spectrum["wavelength"] * (1 + v / SPEED_OF_LIGHT)}
        for spectrum, v in zip(spectra, velocity, strict=True)
    ]


def shifted_100(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    sign = np.random.default_rng([seed, 2]).choice([-1, 1], n)
    return moved(good_stars(survey, n, seed, conditions), 100.0 * sign)


def air_as_vacuum(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    in_air = vacuum_to_air(survey.wavelength)
    return [spectrum | {"wavelength": in_air} for spectrum in good_stars(survey, n, seed, conditions)]


def wrong_units(survey: Survey, n: int, seed: int, conditions: SurveyConditions) -> list[RawSpectrum]:
    """Five mistakes, in turn."""
    wavelength = survey.wavelength
    taken_for_angstrom = [wavelength / 10, wavelength / 1e4, np.log10(wavelength), np.arange(1.0, wavelength.size + 1)]
    spectra = good_stars(survey, n, seed, conditions)
    for row, spectrum in enumerate(spectra):
        if (mistake := row % 5) < 4:
            spectrum["wavelength"] = taken_for_angstrom[mistake]
        else:
            spectrum["flux"] = 15 - 2.5 * np.log10(np.maximum(spectrum["flux"], 1e-3))
            spectrum["flux_error"] = 1.086 * spectrum["flux_error"]
    return spectra


Family = Callable[[Survey, int, int, SurveyConditions], list[RawSpectrum]]

FAMILIES: Mapping[str, Family] = {
    "m_dwarf": m_dwarfs,
    "hot_star": hot_stars,
    "noise": noise_and_galaxies,
    "wrong_unit": wrong_units,
    "velocity_100": shifted_100,
    "air_as_vacuum": air_as_vacuum,
}


def scores(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    applicability: Applicability,
    spectra: Sequence[RawSpectrum],
    batch_size: int = 64,
) -> np.ndarray:
    """How strange each spectrum is, shape (n,); see `applicability.Verdict.score`; infinite where refused."""
    rows, numbers = [], []
    for number, spectrum in enumerate(spectra):
        try:
            rows.append(extractor.tokenise(extractor.place(**spectrum)))
        except ValueError:
            continue
        numbers.append(number)
    found = np.full(len(spectra), np.inf)
    if rows:
        verdicts = applicability.check(extractor, rows, ask(model, extractor, rows, batch_size))
        found[numbers] = [verdict.score for verdict in verdicts]
    return found


def ood_auroc(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    applicability: Applicability,
    survey: Survey,
    n_spectra: int = 500,
    seed: int = 3_000_017,
    conditions: SurveyConditions | None = None,
) -> dict[str, float]:
    """Family -> how often a spectrum of it is the stranger one of it and a good spectrum (`metrics.auroc`).

    Args:
        survey: Whose spectra are imitated, the good ones too.
        n_spectra: Of each family, and of the good ones.
        seed: None that a training or a calibration uses.
        conditions: As in training; None = its defaults.
    """
    conditions = conditions or SurveyConditions()
    good = scores(model, extractor, applicability, good_stars(survey, n_spectra, seed, conditions))
    return {
        name: auroc(good, scores(model, extractor, applicability, family(survey, n_spectra, seed + 10, conditions)))
        for name, family in FAMILIES.items()
    }
