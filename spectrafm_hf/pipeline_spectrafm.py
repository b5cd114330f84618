"""Spectra -> labels in K and dex with their intervals: the transformers pipeline "stellar-labels".

    reader = pipeline("stellar-labels", model=REPOSITORY, trust_remote_code=True)
    reader({"flux": flux, "wavelength": wavelength})["teff"]  # value, sigma, interval68, interval95, unit

It travels with a checkpoint, where it takes arrays. Where this package is installed, it takes all that `predict` does,
with the same conventions: `reader("star.fits")`, `reader(spectrum, velocity=35.0)`, or a list of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Pipeline
from transformers.utils import cached_file

from .feature_extraction_spectrafm import SpectraFMFeatureExtractor, spoken_ranges
from .labels import get_label
from .spectra import highest_resolving_power

PIPELINE = "stellar-labels"
"""The task's name in `transformers.pipeline`."""

WIDTH_95 = 1.959964
"""Half the central 95 % interval of a Gaussian, in sigma."""

MOSTLY = 0.5
"""Of the good pixels of a spectrum: with fewer where a label was learned, its answer is no measurement."""

PER_PIXEL = ("flux", "wavelength", "bad_pixel", "flux_error")
KNOWN = (*PER_PIXEL, "resolving_power", "given", "given_errors")
PREPARED = ("flux", "wavelength", "attention_mask", "flux_error", "resolving_power")
CONVENTIONS = ("medium", "velocity", "redshift", "wavelength_unit", "resolving_power", "bad_pixel", "reader")
"""What may be told beside spectra, see `sources.Conventions`."""

BESIDE = ("held", "assumed")
"""What goes along with a prepared spectrum that the model does not read."""


ABSTAIN_NEEDS = (
    "abstain needs limits beside the weights (applicability.safetensors) and the package spectrafm_hf, since the code "
    "that travels with a model does not hold them; fit them with trust.fit_trust."
)


@dataclass(frozen=True)
class LabelAnswer:
    """One label of one spectrum; numbers are NaN where there is no answer.

    Attributes:
        value, sigma: In `unit`; `value` +- `sigma` is the central 68.27 % interval.
        low68, high68, low95, high95: Ends of the central 68.27 % and 95 % intervals.
        unit: `K` or `dex`.
        calibrated: The intervals were calibrated on stars that no training saw; else they are the network's own.
        learned: The label was learned at the wavelengths of this spectrum; None = not known.
    """

    value: float
    sigma: float
    low68: float
    high68: float
    low95: float
    high95: float
    unit: str
    calibrated: bool
    learned: bool | None


@dataclass(frozen=True)
class Told:
    """What a model tells of one spectrum.

    Attributes:
        labels: Name -> answer, in the order asked for.
        guesses: Why some of them are no measurement: one sentence for those that were learned in the same place.
    """

    labels: dict[str, LabelAnswer]
    guesses: list[str]


def asked_labels(extractor: SpectraFMFeatureExtractor, labels: Sequence[str] | str | None) -> list[str]:
    """The labels asked for, in order: their names, or names joined by commas (`teff,fe_h`); None = all of the model.

    Raises:
        ValueError: One that this model does not predict.
    """
    given = [labels] if isinstance(labels, str) else labels or ()
    names = [name.strip() for some in given for name in str(some).split(",") if name.strip()]
    if unknown := [name for name in names if name not in extractor.label_names]:
        raise ValueError(f"this model predicts {', '.join(extractor.label_names)}, not {', '.join(unknown)}.")
    return names or list(extractor.label_names)


def tell(
    extractor: SpectraFMFeatureExtractor,
    mean: Any,
    log_var: Any,
    noise: Any,
    good_wavelengths: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    silent: Sequence[bool] | None = None,
    abstain: bool = False,
) -> list[Told]:
    """The model's answers for n spectra, in K and dex, with their intervals: the only place where they are made.

    Args:
        mean, log_var: Of the model, shape (n, n_labels), scaled.
        noise: See `SpectraFMFeatureExtractor.noise`, shape (n,).
        good_wavelengths: Of the good pixels of each spectrum, vacuum Angstrom.
        labels: Those wanted; None = all.
        silent: Spectra without any answer, shape (n,); None = none of them.
        abstain: Give no answer for labels that were not learned where a spectrum lies.

    Raises:
        ValueError: See `asked_labels`.
    """
    names = asked_labels(extractor, labels)
    decoded = extractor.decode_labels(mean, log_var, noise)
    calibrated = {*extractor.sigma_factors, *(extractor.recalibration or {"label_names": ()})["label_names"]}
    found = []
    for row, good in enumerate(good_wavelengths):
        share = extractor.learned_share(good)
        answers = {}
        for name in names:
            learned = share[name] >= MOSTLY if name in share else None
            value, sigma, sigma95 = (float(decoded[name][key][row]) for key in ("value", "sigma", "sigma95"))
            if (silent is not None and silent[row]) or (abstain and learned is False):
                value = sigma = sigma95 = float("nan")
            answers[name] = LabelAnswer(
                value=value,
                sigma=sigma,
                low68=value - sigma,
                high68=value + sigma,
                low95=value - WIDTH_95 * sigma95,
                high95=value + WIDTH_95 * sigma95,
                unit=get_label(name).unit,
                calibrated=name in calibrated and learned is not False,
                learned=learned,
            )
        guessed = [name for name, answer in answers.items() if answer.learned is False]
        found.append(Told(answers, guesses(extractor, guessed, share)))
    return found


def guesses(extractor: SpectraFMFeatureExtractor, names: Sequence[str], share: Mapping[str, float]) -> list[str]:
    """Why these labels cannot be told from a spectrum: one sentence for those that were learned in the same place.

    Args:
        share: See `SpectraFMFeatureExtractor.learned_share`.
    """
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(spoken_ranges(extractor.learned_ranges[name]), []).append(name)
    others = any(share.get(name, 1.0) >= MOSTLY for name in extractor.label_names)
    return [
        f"{', '.join(same)}: learned from {where} vacuum Angstrom only, this spectrum has {share[same[0]]:.0%} of "
        f"its pixels there; the answer is a guess{' from the other labels' if others else ''}"
        for where, same in together.items()
    ]


class StellarLabelsPipeline(Pipeline):
    """Labels of stars from their spectra.

    A spectrum is a mapping: `flux` (n,) in any unit, `wavelength` (n,) in vacuum Angstrom and rest frame and, if known,
    `bad_pixel` (n,) True = do not trust, `flux_error` (n,) 1-sigma in the unit of the flux, `resolving_power`
    lambda / FWHM, `given` and `given_errors` (see `SpectraFMFeatureExtractor`). A list of them, of any lengths, gives a
    list; with `batch_size=64` many at once. Where this package is installed, it is also a path, or anything else that
    `labelling.predict` takes, as long as it holds one spectrum: `medium`, `velocity`, `redshift`, `wavelength_unit`,
    `resolving_power`, `bad_pixel` and `reader` say what it does not tell itself, the answer what was `assumed`.

    Returns per label: `value`; `sigma`, half of the central 68.27 % interval; `interval68` and `interval95`, lowest and
    highest; `unit`. They are calibrated on stars that no training saw where `calibrated` says so, and the network's own
    otherwise. `learned` says whether the label was learned at the wavelengths of this spectrum, None = not known; if
    not, its answer is a guess from what goes along with it among the training stars, and not calibrated.

    Where limits lie beside the weights, and this package is installed, `flags` says in sentences why a spectrum is
    unlike those the model was made for, [] = it is not (see `applicability`; 20 ms per spectrum); with `abstain=True`
    such a spectrum gets NaN. Labels that were not learned there have a sentence in `flags`, too, without limits as
    well, unless `labels=[...]` leaves them out; with `abstain=True` they alone get NaN.

    Raises:
        ValueError: Nothing that can be read here, or not one spectrum; flux or wavelength missing, a key that nobody
            knows; `abstain` without limits; or see `SpectraFMFeatureExtractor.place`.
    """

    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False
    _load_processor: Any = False
    _load_image_processor: Any = False

    feature_extractor: SpectraFMFeatureExtractor

    def _sanitize_parameters(
        self, labels: Sequence[str] | str | None = None, abstain: bool | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], ...]:
        conventions = {name: unknown.pop(name) for name in CONVENTIONS if name in unknown}
        if unknown:
            raise ValueError(
                f"this pipeline takes labels=[...], abstain, batch_size, {', '.join(CONVENTIONS)} beside spectra, got "
                f"{', '.join(unknown)}."
            )
        told = {"labels": labels, "abstain": abstain}
        return conventions, {}, {name: value for name, value in told.items() if value is not None}

    def preprocess(self, input_: Any, **conventions: Any) -> dict[str, Any]:
        if conventions or not isinstance(input_, Mapping):
            return self._read(input_, conventions)
        missing = [name for name in ("flux", "wavelength") if input_.get(name) is None]
        unknown = [name for name in input_ if name not in KNOWN]
        if missing or unknown:
            raise ValueError(
                "a spectrum needs flux and wavelength, and may have "
                f"{', '.join(KNOWN[2:])}; got {', '.join(map(str, input_)) or 'nothing'}."
            )
        batch = self.feature_extractor(**input_, return_tensors="pt")
        return self._prepared(batch, np.asarray(input_["wavelength"], dtype=np.float64), ())

    def _read(self, source: Any, conventions: Mapping[str, Any]) -> dict[str, Any]:
        """A spectrum in whatever form, prepared.

        Raises:
            ValueError: It cannot be read, or not here; or there are none or several.
        """
        if __package__ != "spectrafm_hf":
            raise ValueError(
                'a spectrum must be a mapping {"flux": ..., "wavelength": ...} of arrays (vacuum Angstrom, at rest), '
                f"got {type(source).__name__}{' and ' if conventions else ''}{', '.join(conventions)}. For files and "
                "all else, install spectrafm_hf and leave trust_remote_code out."
            )
        sources = importlib.import_module(".sources", __package__)
        labelling = importlib.import_module(".labelling", __package__)
        readings = list(islice(sources.read_source(source, sources.Conventions(**conventions)), 2))
        if len(readings) != 1:
            raise ValueError(
                "one spectrum at a time is needed, or a list of them, got "
                f"{'several' if readings else 'none'}; for folders and surveys there is spectrafm_hf.predict."
            )
        (reading,) = readings
        if reading.spectrum is None:
            raise ValueError(f"{reading.name}: {reading.reason}")
        row = labelling.prepared(self.feature_extractor, reading.spectrum)
        assumed = (*reading.assumed, *labelling.unknown_sharpness(reading.spectrum))
        batch = self.feature_extractor.pad([row], return_tensors="pt")
        return self._prepared(batch, reading.spectrum.wavelength, assumed)

    @staticmethod
    def _prepared(batch: Mapping[str, Any], wavelength: np.ndarray, assumed: tuple[str, ...]) -> dict[str, Any]:
        """With one set of keys for all spectra, so that they can share a batch: 0 and NaN say "not known"."""
        blank = {name: torch.zeros_like(batch["flux"]) for name in ("flux_error", "resolving_power")}
        return blank | dict(batch) | {"held": highest_resolving_power(wavelength), "assumed": assumed}

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> Any:
        answer = self.model(**{name: part for name, part in input_tensors.items() if name not in BESIDE})
        parts = {name: answer[name].float() for name in ("label_mean", "label_log_var", "label_features")}
        return input_tensors | parts

    def postprocess(self, model_outputs: Any, **parameters: Any) -> dict[str, Any]:
        extractor, labels = self.feature_extractor, asked_labels(self.feature_extractor, parameters.get("labels"))
        mean, log_var = (model_outputs[name][:1] for name in ("label_mean", "label_log_var"))
        good = model_outputs["wavelength"][0][model_outputs["attention_mask"][0] > 0].cpu().numpy()
        noise, flags = extractor.noise(model_outputs)[:1], self._flags(model_outputs)
        if parameters.get("abstain") and flags is None:
            raise ValueError(ABSTAIN_NEEDS)
        abstain = bool(parameters.get("abstain"))
        (told,) = tell(extractor, mean, log_var, noise, [good], labels, [abstain and bool(flags)], abstain)
        answer: dict[str, Any] = {
            name: {
                "value": one.value,
                "sigma": one.sigma,
                "interval68": [one.low68, one.high68],
                "interval95": [one.low95, one.high95],
                "unit": one.unit,
                "calibrated": one.calibrated,
                "learned": one.learned,
            }
            for name, one in told.labels.items()
        }
        said = [*(flags or ()), *told.guesses]
        if flags is not None or said:
            answer["flags"] = said
        if assumed := model_outputs["assumed"]:
            answer["assumed"] = list(assumed)
        return answer

    def _flags(self, model_outputs: Mapping[str, torch.Tensor]) -> list[str] | None:
        """Why one spectrum is unlike those the model was made for; None = nobody has told what those were like."""
        if self._applicability is None:
            return None
        row = {name: model_outputs[name][0].cpu().numpy() for name in PREPARED}
        answers = [model_outputs[name][:1].cpu().numpy() for name in ("label_mean", "label_log_var", "label_features")]
        held = [model_outputs["held"]]
        (verdict,) = self._applicability.check(self.feature_extractor, [row], answers, all_scores=False, held=held)
        return [reason for _, reason in verdict.flags]

    @cached_property
    def _applicability(self) -> Any:
        """The limits beside the weights, in a folder or on the Hub; None = there are none.

        They are held against synthetic spectra, megabytes that do not travel with a checkpoint's code.
        """
        if __package__ != "spectrafm_hf" or not self.model.name_or_path:
            return None
        limits = importlib.import_module(".applicability", __package__)
        found = cached_file(
            self.model.name_or_path,
            limits.FILE_NAME,
            revision=getattr(self.model.config, "_commit_hash", None),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else limits.Applicability.load(Path(found).parent)
