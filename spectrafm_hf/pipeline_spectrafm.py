"""Spectra -> labels in K and dex with their intervals: the transformers pipeline "stellar-labels".

    reader = pipeline("stellar-labels", model=REPOSITORY, trust_remote_code=True)
    reader({"flux": flux, "wavelength": wavelength})["teff"]  # value, sigma, interval68, interval95, unit

It travels with a checkpoint, so it takes arrays and nothing that would need a reader of files.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Pipeline
from transformers.utils import cached_file

from .feature_extraction_spectrafm import SpectraFMFeatureExtractor, spoken_ranges
from .labels import get_label

PIPELINE = "stellar-labels"
"""The task's name in `transformers.pipeline`."""

WIDTH_95 = 1.959964
"""Half the central 95 % interval of a Gaussian, in sigma."""

MOSTLY = 0.5
"""Of the good pixels of a spectrum: with fewer where a label was learned, its answer is no measurement."""

PER_PIXEL = ("flux", "wavelength", "bad_pixel", "flux_error")
KNOWN = (*PER_PIXEL, "resolving_power", "given", "given_errors")
PREPARED = ("flux", "wavelength", "attention_mask", "flux_error", "resolving_power")


class StellarLabelsPipeline(Pipeline):
    """Labels of stars from their spectra.

    A spectrum is a mapping: `flux` (n,) in any unit, `wavelength` (n,) in vacuum Angstrom and rest frame and, if known,
    `bad_pixel` (n,) True = do not trust, `flux_error` (n,) 1-sigma in the unit of the flux, `resolving_power`
    lambda / FWHM, `given` and `given_errors` (see `SpectraFMFeatureExtractor`). A list of them, of any lengths, gives a
    list; with `batch_size=64` many at once.

    Returns per label: `value`; `sigma`, half of the central 68.27 % interval; `interval68` and `interval95`, lowest and
    highest; `unit`. They are calibrated on stars that no training saw where `calibrated` says so, and the network's own
    otherwise. `learned` says whether the label was learned at the wavelengths of this spectrum, None = not known; if
    not, its answer is a guess from what goes along with it among the training stars, and not calibrated.

    Where limits lie beside the weights, and this package is installed, `flags` says in sentences why a spectrum is
    unlike those the model was made for, [] = it is not (see `applicability`; 20 ms per spectrum); with `abstain=True`
    such a spectrum gets NaN. Labels that were not learned there have a sentence in `flags`, too, without limits as
    well, unless `labels=[...]` leaves them out; with `abstain=True` they alone get NaN.

    Raises:
        ValueError: Not a mapping, flux or wavelength missing, a key that nobody knows; `abstain` without limits; or see
            `SpectraFMFeatureExtractor.place`.
    """

    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False
    _load_processor: Any = False
    _load_image_processor: Any = False

    feature_extractor: SpectraFMFeatureExtractor

    def _sanitize_parameters(
        self, labels: list[str] | None = None, abstain: bool | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], ...]:
        if unknown:
            raise ValueError(
                f"this pipeline takes labels=[...], abstain and batch_size beside spectra, got {', '.join(unknown)}."
            )
        told = {"labels": labels, "abstain": abstain}
        return {}, {}, {name: value for name, value in told.items() if value is not None}

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        if not isinstance(input_, Mapping):
            raise ValueError(
                'a spectrum must be a mapping {"flux": ..., "wavelength": ...} of arrays (vacuum Angstrom, at rest); '
                f"got {type(input_).__name__}. Files? Read them with spectrafm_hf.readers first."
            )
        missing = [name for name in ("flux", "wavelength") if input_.get(name) is None]
        unknown = [name for name in input_ if name not in KNOWN]
        if missing or unknown:
            raise ValueError(
                "a spectrum needs flux and wavelength, and may have "
                f"{', '.join(KNOWN[2:])}; got {', '.join(map(str, input_)) or 'nothing'}."
            )
        batch = self.feature_extractor(**input_, return_tensors="pt")
        # One set of keys for all spectra, so that they can share a batch: 0 and NaN say "not known".
        for name in ("flux_error", "resolving_power"):
            if name not in batch:
                batch[name] = torch.zeros_like(batch["flux"])
        return dict(batch)

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> Any:
        answer = self.model(**input_tensors)
        parts = {name: answer[name].float() for name in ("label_mean", "label_log_var", "label_features")}
        return input_tensors | parts

    def postprocess(self, model_outputs: Any, **parameters: Any) -> dict[str, Any]:
        extractor, labels = self.feature_extractor, parameters.get("labels")
        if unknown := [name for name in labels or () if name not in extractor.label_names]:
            raise ValueError(f"this model predicts {', '.join(extractor.label_names)}, not {', '.join(unknown)}.")
        mean, log_var = (model_outputs[name][:1] for name in ("label_mean", "label_log_var"))
        decoded = extractor.decode_labels(mean, log_var, extractor.noise(model_outputs))
        calibrated = {*extractor.sigma_factors, *(extractor.recalibration or {"label_names": ()})["label_names"]}
        good = model_outputs["wavelength"][0][model_outputs["attention_mask"][0] > 0].cpu().numpy()
        share = extractor.learned_share(good)
        flags = self._flags(model_outputs)
        if parameters.get("abstain") and flags is None:
            raise ValueError(
                "abstain needs limits beside the weights (applicability.safetensors) and the package spectrafm_hf, "
                "since the code that travels with a model does not hold them; fit them with trust.fit_trust."
            )
        silent = bool(parameters.get("abstain") and flags)
        answer: dict[str, Any] = {}
        for name in labels or extractor.label_names:
            told = (float(decoded[name][key][0]) for key in ("value", "sigma", "sigma95"))
            learned = share[name] >= MOSTLY if name in share else None
            unsaid = silent or bool(parameters.get("abstain") and learned is False)
            value, sigma, sigma95 = (np.nan, np.nan, np.nan) if unsaid else told
            answer[name] = {
                "value": value,
                "sigma": sigma,
                "interval68": [value - sigma, value + sigma],
                "interval95": [value - WIDTH_95 * sigma95, value + WIDTH_95 * sigma95],
                "unit": get_label(name).unit,
                "calibrated": name in calibrated and learned is not False,
                "learned": learned,
            }
        guesses = self._guesses([name for name in answer if answer[name]["learned"] is False], share)
        return answer if flags is None and not guesses else answer | {"flags": [*(flags or ()), *guesses]}

    def _guesses(self, names: list[str], share: Mapping[str, float]) -> list[str]:
        """Why these labels cannot be told from a spectrum: one sentence for those that were learned in the same place.

        Args:
            share: See `SpectraFMFeatureExtractor.learned_share`.
        """
        ranges = self.feature_extractor.learned_ranges
        together: dict[str, list[str]] = {}
        for name in names:
            together.setdefault(spoken_ranges(ranges[name]), []).append(name)
        others = any(share.get(name, 1.0) >= MOSTLY for name in self.feature_extractor.label_names)
        return [
            f"{', '.join(same)}: learned from {where} vacuum Angstrom only, this spectrum has {share[same[0]]:.0%} of "
            f"its pixels there; the answer is a guess{' from the other labels' if others else ''}"
            for where, same in together.items()
        ]

    def _flags(self, model_outputs: Mapping[str, torch.Tensor]) -> list[str] | None:
        """Why one spectrum is unlike those the model was made for; None = nobody has told what those were like."""
        if self._applicability is None:
            return None
        row = {name: model_outputs[name][0].cpu().numpy() for name in PREPARED}
        answers = [model_outputs[name][:1].cpu().numpy() for name in ("label_mean", "label_log_var", "label_features")]
        (verdict,) = self._applicability.check(self.feature_extractor, [row], answers)
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
