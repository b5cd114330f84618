"""Maintainer's script: the Cannon models of `thedoppler` -> spectrafm_hf/synthesis/cannon_grid.safetensors.

    pip download --no-deps thedoppler==1.1.32 && python training/convert_cannon_grid.py thedoppler-1.1.32-*.whl

Run once; users only ever read the safetensors file. The published models are pickles, so they are opened here with an
unpickler that knows NumPy arrays and nothing else.

A Cannon model is linear: flux(pixel) = sum over terms of vectorizer(labels)[term] * theta[pixel, term], with 20 terms.
16-bit theta would err by 1e-3, because terms cancel. So the 20 spectra are first rotated to those that are uncorrelated
over the model's own training labels (an SVD), whose amplitudes fall from 1 to 0.005, and each is stored as
int16 with its own scale: the flux then errs by at most 6e-5, which this script checks before it writes.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from spectrafm_hf.synthesis.cannon import GRID_FILE, LABEL_NAMES, vectorize

PICKLES = {
    "cool": "cannongrid_3000_18000_coolstars_norm_cubic_model.pkl",
    "hot": "cannongrid_3000_18000_hotdwarfs_norm_cubic_model.pkl",
}
# Pixels (20 Angstrom) dropped at the red end: any line-spread function needs a margin there, and the file stays
# under 12 MB.
MARGIN = 200
TOLERANCE = 1e-4


class ArrayUnpickler(pickle.Unpickler):
    """Refuses every global that is not needed to rebuild a NumPy array."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is no NumPy array; refusing")
        return super().find_class(module, name)


def convert(name: str, published: dict[str, Any]) -> dict[str, np.ndarray]:
    """One published model -> the tensors of `spectrafm_hf.synthesis.cannon`, checked to `TOLERANCE` in flux."""
    if tuple(label.lower() for label in published["vectorizer"][1]["label_names"]) != ("teff", "logg", "feh"):
        raise ValueError(
            f"{name}: expected the labels TEFF, LOGG, FEH, got {published['vectorizer'][1]['label_names']}"
        )
    labels = np.asarray(published["training_set_labels"], dtype=np.float64)
    theta = published["theta"][:-MARGIN]
    powers = np.zeros((theta.shape[1], len(LABEL_NAMES)), dtype=np.int8)  # row 0 is the constant term
    for row, term in enumerate(published["vectorizer"][1]["terms"], start=1):
        for label, power in term:
            powers[row, label] = int(power)
    fiducial = np.median(labels, axis=0)
    scale = np.ptp(np.percentile(labels, [2.5, 97.5], axis=0), axis=0)

    design = vectorize(labels, fiducial, scale, powers)
    r = np.linalg.qr(design / np.sqrt(len(design)), mode="r")
    u, s, vt = np.linalg.svd(theta @ r.T, full_matrices=False)
    components, rotation = (u * s).T, np.linalg.solve(r, vt.T)  # flux = design @ rotation @ components
    component_scale = np.abs(components).max(axis=1) / 32767
    quantised = np.round(components / component_scale[:, None]).astype(np.int16)

    rebuilt = design @ rotation @ (quantised * component_scale[:, None])
    error = np.abs(rebuilt - design @ theta.T).max()
    print(f"{name}: {theta.shape[0]} pixels, {len(labels)} training labels, largest flux error {error:.1e}")
    if error > TOLERANCE:
        raise ValueError(f"{name}: largest flux error {error:.1e} exceeds {TOLERANCE:.0e}")
    tensors = {
        f"{name}.components": quantised,
        f"{name}.component_scale": component_scale,
        f"{name}.rotation": rotation,
        f"{name}.powers": powers,
        f"{name}.fiducial": fiducial,
        f"{name}.label_scale": scale,
    }
    return {
        key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()
    }  # safetensors stores the buffer as it lies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="thedoppler-1.1.32 wheel")
    wheel = zipfile.ZipFile(parser.parse_args().wheel)
    tensors: dict[str, np.ndarray] = {}
    for name, file in PICKLES.items():
        with wheel.open(f"doppler/data/{file}") as stream:
            published = ArrayUnpickler(stream, encoding="latin1").load()
        start, step = published["dispersion"][0], 0.1
        if (
            not np.allclose(published["dispersion"], start + step * np.arange(len(published["dispersion"])))
            or published["wavevac"]
        ):
            raise ValueError(f"{name}: expected air wavelengths every {step} Angstrom")
        tensors |= convert(name, published)
    metadata = {
        "wavelength_start": str(float(start)), "wavelength_step": str(step), "medium": "air", "unit": "Angstrom",
        "source": "thedoppler 1.1.32, doppler/data, (c) 2019 David Nidever, MIT licence: see LICENSE.cannon_grid",
    }  # fmt: skip
    save_file(tensors, GRID_FILE, metadata=metadata)
    print(f"wrote {GRID_FILE.name}: {GRID_FILE.stat().st_size / 1e6:.3f} MB")


if __name__ == "__main__":
    main()
