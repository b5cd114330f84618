"""APOGEE, real: a hundred giants seen through a window of a hundred pixels, five labels.

The file is an .npz with `wavelength` (n_pixels,), vacuum Angstrom, `flux` (n_stars, n_pixels), `labels` (n_stars,
n_labels) with their `label_names` as APOGEE has them (FE_H must be there), and `apogee_id`. It does not come with the
package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..hub import load_pretrained
from ..labels import LABELS, get_label
from ..prediction import Observed
from .few_labels import LABEL, Task, sha256_of
from .synthetic_h_band import nature_of_theory, only_wavelengths, theory_stars

N_ANCHORS = 600
NEEDED = ("wavelength", "flux", "labels", "label_names", "apogee_id")


def read_window_stars(path: Path, extractor_names: list[str]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names, wavelength, flux and labels (n_stars, n_labels) in the order asked for, NaN = not there or not valid.

    Raises:
        ValueError: The file lacks an array, or no label of it is FE_H.
    """
    with np.load(path, allow_pickle=False) as stored:
        if missing := [name for name in NEEDED if name not in stored]:
            raise ValueError(f"{path.name} lacks {', '.join(missing)}; needed are {', '.join(NEEDED)}.")
        names = [str(name).upper() for name in stored["label_names"]]
        columns = {label.name: names.index(label.apogee_column) for label in LABELS if label.apogee_column in names}
        if LABEL not in columns:
            raise ValueError(f"{path.name} needs a label FE_H, its label_names are {', '.join(names)}.")
        labels = np.full((len(stored["labels"]), len(extractor_names)), np.nan)
        for place, name in enumerate(extractor_names):
            if name in columns:
                values, (low, high) = stored["labels"][:, columns[name]], get_label(name).valid
                labels[:, place] = np.where((values >= low) & (values <= high), values, np.nan)  # -9999 = none
        return [str(star) for star in stored["apogee_id"]], stored["wavelength"], stored["flux"], labels


def apogee_window_task(start: str, path: Path, output: Path) -> Task:
    """A hundred stars of the file are learned from, the others asked about; no stage 2, since there is no more light.

    Half of the stars, by their names, are the pool.

    Args:
        start: Pre-trained model.
        path: Of the stars.
        output: Folder of what is made once.

    Raises:
        ValueError: See `read_window_stars`.
    """
    model, extractor = load_pretrained(start)
    names, wavelength, flux, labels = read_window_stars(path, extractor.label_names)
    placed = [extractor.place(one, wavelength, ~(np.isfinite(one) & (one > 0))) for one in flux]
    everything = Observed(
        names, np.stack([p.flux for p in placed]), np.stack([p.good for p in placed]), labels,
        np.full(labels.shape, np.nan),
    )  # fmt: skip
    first = np.array([int(sha256_of([name])[:8], 16) % 2 == 0 for name in names])
    pool, test = (everything.chosen(np.flatnonzero(rows).tolist()) for rows in (first, ~first))
    anchors = only_wavelengths(
        extractor, nature_of_theory().stars(extractor, N_ANCHORS, 0.3, seed=5, prefix="anchor-"), wavelength[[0, -1]]
    )
    return Task(
        name="apogee_window",
        what=f"[Fe/H] of {len(test.flux)} APOGEE giants from {wavelength.size} pixels "
        f"({wavelength[0]:.0f}-{wavelength[-1]:.0f} vacuum Angstrom).",
        model=model,
        extractor=extractor,
        pool=pool,
        test=test,
        anchors=(anchors.flux, anchors.good),
        synthetic=theory_stars(extractor, wavelength[[0, -1]]),
        folder=output,
    )
