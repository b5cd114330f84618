"""Maintainer's script: Synspec spectra that `training/train_response.py` learns from, and the ones it never sees.

    python -m spectrafm_hf.synthesis.synspec_install SYNSPEC_FOLDER
    python training/synspec_spectra.py SYNSPEC_FOLDER OUTPUT_FOLDER --groups 500 --processes 2

Spectra come in groups that share Teff, log g and [Fe/H]: first with solar abundance ratios, then with others, so that
each group gives flux ratios directly. Every fifth group is a test group: one spectrum with the abundances of DR17
stars beside the solar one. The others are for training: two spectra each, half of the groups with abundances, and
places in the Kiel diagram, beyond those of DR17, so that the network is not asked to extrapolate.

A group is a function of (seed, number) and is written when it is done, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spectrafm_hf.synthesis.dr17_sampler import Dr17LabelSampler
from spectrafm_hf.synthesis.sampler import LabelSampler
from spectrafm_hf.synthesis.synspec import LABEL_NAMES, Synspec, SynspecError

TEST_EVERY = 5
WIDE = {"mg_fe": (-0.4, 0.8), "o_fe": (-0.4, 0.8), "c_fe": (-0.8, 0.5), "n_fe": (-0.5, 1.0), "alpha_fe": (-0.4, 0.7)}
"""Range of each abundance in half of the training groups, dex."""


def is_test(group: int) -> bool:
    return group % TEST_EVERY == 0


def group_labels(seed: int, group: int) -> np.ndarray:
    """Labels of one group, (2 or 3, 8): row 0 has solar abundance ratios, all share teff, logg and fe_h."""
    rng = np.random.Generator(np.random.Philox(key=[seed, group]))
    if is_test(group) or group % 2:
        rows = Dr17LabelSampler(metal_poor_share=0.15, extra_scatter=0.1).draw(rng, 1 if is_test(group) else 2)
    else:
        rows = np.empty((2, len(LABEL_NAMES)))
        rows[:, :3] = LabelSampler(teff=(3500.0, 7500.0)).draw(rng)
        for name, (low, high) in WIDE.items():
            rows[:, LABEL_NAMES.index(name)] = rng.uniform(low, high, size=2)
    rows[:, :3] = rows[0, :3]
    solar = rows[:1].copy()
    solar[:, 3:] = 0.0
    return np.concatenate([solar, rows])


def make_group(synspec: Synspec, seed: int, group: int, destination: Path) -> str | None:
    """Compute and write one group; returns why not, if it failed."""
    labels = group_labels(seed, group)
    try:
        flux = np.stack([synspec.one(star) for star in labels])
    except SynspecError as error:  # a group is of use only when it is complete
        return str(error)
    partial = destination.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, labels=labels, flux=flux.astype(np.float16))
    partial.replace(destination)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("synspec", type=Path, help="folder made by spectrafm_hf.synthesis.synspec_install")
    parser.add_argument("output", type=Path)
    parser.add_argument("--groups", type=int, default=500)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    synspec = Synspec(arguments.synspec)
    paths = {group: arguments.output / f"group-{arguments.seed}-{group:05d}.npz" for group in range(arguments.groups)}
    # Test groups first: what is there when a run is stopped can be judged.
    todo = sorted((group for group, path in paths.items() if not path.exists()), key=lambda group: not is_test(group))
    with ThreadPoolExecutor(arguments.processes) as pool, tqdm(total=len(todo), unit="group") as bar:
        tasks = {group: pool.submit(make_group, synspec, arguments.seed, group, paths[group]) for group in todo}
        for group, task in tasks.items():
            if problem := task.result():
                print(f"group {group} failed: {problem}", file=sys.stderr)
            bar.update()


if __name__ == "__main__":
    main()
