"""Spectra -> labels in K and dex with their intervals: the transformers pipeline "stellar-labels".

    reader = pipeline("stellar-labels", model=REPOSITORY, trust_remote_code=True)
    reader({"flux": flux, "wavelength": wavelength})["teff"]  # value, sigma, interval68, interval95, unit

It travels with a checkpoint, so it takes arrays and nothing that would need a reader of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline

from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .labels import get_label

PIPELINE = "stellar-labels"
"""The task's name in `transformers.pipeline`."""

WIDTH_95 = 1.959964
"""Half the central 95 % interval of a Gaussian, in sigma."""

PER_PIXEL = ("flux", "wavelength", "bad_pixel", "flux_error")
KNOWN = (*PER_PIXEL, "resolving_power", "given", "given_errors")


class StellarLabelsPipeline(Pipeline):
    """Labels of stars from their spectra.

    A spectrum is a mapping: `flux` (n,) in any unit, `wavelength` (n,) in vacuum Angstrom and rest frame and, if known,
    `bad_pixel` (n,) True = do not trust, `flux_error` (n,) 1-sigma in the unit of the flux, `resolving_power`
    lambda / FWHM, `given` and `given_errors` (see `SpectraFMFeatureExtractor`). A list of them, of any lengths, gives a
    list; with `batch_size=64` many at once.

    Returns per label: `value`; `sigma`, half of the central 68.27 % interval; `interval68` and `interval95`, lowest and
    highest; `unit`. They are calibrated on stars that no training saw where `calibrated` says so, and the network's own
    otherwise.

    Raises:
        ValueError: Not a mapping, flux or wavelength missing, a key that nobody knows; or see
            `SpectraFMFeatureExtractor.place`.
    """

    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False
    _load_processor: Any = False
    _load_image_processor: Any = False

    feature_extractor: SpectraFMFeatureExtractor

    def _sanitize_parameters(self, labels: list[str] | None = None, **unknown: Any) -> tuple[dict[str, Any], ...]:
        if unknown:
            raise ValueError(
                f"this pipeline takes labels=[...] and batch_size beside spectra, got {', '.join(unknown)}."
            )
        return {}, {}, {} if labels is None else {"labels": labels}

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
        return {"label_mean": answer.label_mean.float(), "label_log_var": answer.label_log_var.float()}

    def postprocess(self, model_outputs: Any, **parameters: Any) -> dict[str, dict[str, Any]]:
        extractor, labels = self.feature_extractor, parameters.get("labels")
        if unknown := [name for name in labels or () if name not in extractor.label_names]:
            raise ValueError(f"this model predicts {', '.join(extractor.label_names)}, not {', '.join(unknown)}.")
        decoded = extractor.decode_labels(model_outputs["label_mean"][0], model_outputs["label_log_var"][0])
        answer = {}
        for name in labels or extractor.label_names:
            value, sigma, sigma95 = (float(decoded[name][key]) for key in ("value", "sigma", "sigma95"))
            answer[name] = {
                "value": value,
                "sigma": sigma,
                "interval68": [value - sigma, value + sigma],
                "interval95": [value - WIDTH_95 * sigma95, value + WIDTH_95 * sigma95],
                "unit": get_label(name).unit,
                "calibrated": name in extractor.sigma_factors,
            }
        return answer
