"""What a model is, for whoever is about to use it: labels, wavelengths, limits, version.

All of it is read from the checkpoint itself, so that it is as true of a model that you have tuned as of the one that
ships.
"""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from .applicability import TrainedRange
from .labelling import Labeller
from .labels import get_label

PACKAGES = ("spectrafm_hf", "torch", "transformers", "datasets", "huggingface_hub", "accelerate", "numpy")


def describe(model: str = "spectrafm-small", revision: str | None = None) -> dict[str, Any]:
    """A model as plain numbers and text, ready for JSON.

    Args:
        model, revision: See `labelling.Labeller`.

    Returns:
        `model`, `revision`, `n_parameters`; `wavelength_range`, vacuum Angstrom; `labels`: name -> `unit`, `learned`
        (ranges of wavelength, vacuum Angstrom; None = not known) and `calibrated`; `limits`: ranges of wavelength in
        which spectra are held against those of training, each with `resolving_power` and `snr`, the least per pixel;
        None = the checkpoint has none; `versions` of the software here.

    Raises:
        ValueError, HubError: See `labelling.Labeller`.
    """
    labeller = Labeller(model, revision)
    extractor, limits = labeller.extractor, labeller.limits
    calibrated = {*extractor.sigma_factors, *(extractor.recalibration or {"label_names": ()})["label_names"]}
    return {
        "model": labeller.model_id,
        "revision": labeller.revision,
        "n_parameters": sum(one.numel() for one in labeller.model.parameters()),
        "wavelength_range": list(extractor.wavelength_range),
        "labels": {
            name: {
                "unit": get_label(name).unit,
                "learned": extractor.learned_ranges.get(name),
                "calibrated": name in calibrated,
            }
            for name in labeller.labels
        },
        "limits": None if limits is None else [_limits_of(one) for one in limits.ranges],
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def _limits_of(trained: TrainedRange) -> dict[str, Any]:
    return {
        "wavelength_range": [trained.low, trained.high],
        "resolving_power": None if trained.resolving_power is None else list(trained.resolving_power),
        "snr": 1 / trained.noise,
    }


def spoken_range(ends: list[float]) -> str:
    low, high = ends
    return f"{low:,.0f}-{high:,.0f}"


def table(told: dict[str, Any]) -> str:
    """The same for the terminal."""
    lines = [
        f"{told['model']}, revision {told['revision']}",
        f"{told['n_parameters'] / 1e6:.2f} M parameters; "
        f"reads {spoken_range(told['wavelength_range'])} vacuum Angstrom",
        "",
        f"{'label':8} {'unit':5} {'interval':12} learned at (vacuum Angstrom)",
    ]
    for name, one in told["labels"].items():
        where = "not told" if one["learned"] is None else ", ".join(map(spoken_range, one["learned"]))
        how = "calibrated" if one["calibrated"] else "its own"
        lines.append(f"{get_label(name).symbol:8} {one['unit']:5} {how:12} {where}")
    lines.append("")
    if told["limits"] is None:
        lines.append("it has no limits: nothing says where it can be trusted (`spectrafm calibrate` makes them)")
    for one in told["limits"] or ():
        power = one["resolving_power"]
        sharp = "" if power is None else f", resolving power {power[0]:,.0f} to {power[1]:,.0f}"
        where = spoken_range(one["wavelength_range"])
        lines.append(f"spectra of training: {where} vacuum Angstrom{sharp}, S/N per pixel {one['snr']:.2g} or more")
    return "\n".join([*lines, "", ", ".join(f"{name} {version}" for name, version in told["versions"].items())])
