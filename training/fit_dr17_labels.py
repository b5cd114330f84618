"""Maintainer's script: DR17 label vectors -> the Gaussian mixture in spectrafm_hf/synthesis/dr17_labels.safetensors.

    python training/fit_dr17_labels.py LABELS.npz

LABELS.npz holds `names` and `labels` (n_stars, 5) of the DR17 stars the published network was trained on (12,000 of
them here); the labels themselves are not shipped. The held-out likelihood per star decides the number of components.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.mixture import GaussianMixture

from spectrafm_hf.synthesis.cannon import BOUNDS
from spectrafm_hf.synthesis.dr17_sampler import MIXTURE_FILE

NAMES = ("teff", "logg", "fe_h", "mg_fe", "o_fe")
SCALE = np.array([1000.0, 1.0, 0.3, 0.1, 0.1])  # so that one regularisation fits all labels
N_COMPONENTS = 32  # BIC: 62,218 with 16, 59,905 with 24, 58,783 with 32, 58,992 with 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    with np.load(parser.parse_args().labels, allow_pickle=False) as stored:
        names = list(map(str, stored["names"]))
        labels = stored["labels"][:, [names.index(name) for name in NAMES]].astype(np.float64)
    inside = np.isfinite(labels).all(axis=1)
    for column, (low, high) in enumerate(BOUNDS["cool"].values()):
        inside &= (labels[:, column] >= low) & (labels[:, column] <= high)
    print(f"{inside.mean():.2%} of {len(labels)} stars are complete and inside the Cannon model")
    scaled = labels[inside] / SCALE
    mixture = GaussianMixture(N_COMPONENTS, random_state=0, reg_covar=1e-4, n_init=4).fit(scaled)
    print(f"BIC {mixture.bic(scaled):.0f}, log-likelihood per star {mixture.score(scaled):.3f}")
    cholesky = np.linalg.cholesky(mixture.covariances_) * SCALE[:, None]
    weight = mixture.weights_ / mixture.weights_.sum()
    save_file({"weight": weight, "mean": mixture.means_ * SCALE, "cholesky": cholesky}, MIXTURE_FILE)


if __name__ == "__main__":
    main()
