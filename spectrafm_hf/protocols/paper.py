"""The paper's own protocol on APOGEE DR17, for whoever has it; none of it comes with the package.

    stage 2    training stars, observed, pixels 0 to 3756 (15,152-16,029 vacuum Angstrom), all labels
    stage 3    100 other training stars with [Fe/H] > -1, pixels 4107 to 4618 (16,106-16,220), [Fe/H]
    asked      all test stars, in the pixels of stage 3; those with [Fe/H] < -1 apart

Cuts, pixels and labels are those of Koblischke & Bovy 2024 (arXiv 2411.04750): 128,485 stars, four fifths of them for
training. Three things differ. The permutation that parts training and test stars is not published, so ours is another
one. Stage 2 sees a sample of the training stars, and synthetic spectra in turns with them, so that the rest of the band
is not forgotten. And no star of stage 3 was in stage 2: its left-out answers tell how large sigma must be, and would be
too good otherwise.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import datasets
import numpy as np

from ..baselines import MLPPretraining
from ..builders.apogee_dr17 import ASPCAP_FOLDER, ApogeeDr17Config, shuffled
from ..builders.build import MANIFEST_FILE, build_dataset
from ..builders.grids import read_wavelength_grid
from ..builders.mmu_apogee_dr17 import REPOSITORY, MmuApogeeDr17Config, catalogue_files
from ..builders.parquet_layout import whole_file
from ..builders.spectra_builder import SpectraConfig
from ..feature_extraction_spectrafm import SpectraFMFeatureExtractor
from ..hub import HubError, attempt, check_dataset, explained, load_pretrained, revision_of
from ..labels import LABELS
from ..loading import numbers
from ..prediction import Observed
from ..pretraining import grid_columns
from ..spectra import apogee_wavelength
from ..synthesis.surveys import SURVEYS
from .few_labels import LABEL, N_SYNTHETIC, Drawn, Task, only_tokens
from .synthetic_h_band import (
    FEW_SHOT_PIXELS,
    FIRST_HALF,
    N_ANCHORS,
    nature_of_theory,
    only_pixels,
    stage_folder,
    theory_stars,
    tune,
)

logger = logging.getLogger(__name__)

N_POOL, N_OBSERVED = 2000, 6000
"""Training stars of which the few are drawn, and of stage 2, at most: of all, those whose names hash lowest."""

N_SPECTRA = 24_000
"""Shown in stage 2: each of its stars twice, and as many synthetic ones."""

CATALOGUE_ID = REPOSITORY.removeprefix("hf://datasets/")
NEEDED = (
    "the protocol `paper` needs APOGEE DR17 as one of three: a dataset that `spectrafm build apogee-dr17 --archive SAS "
    f"--split paper` made; a copy of the SDSS archive, the folder that holds {ASPCAP_FOLDER}/ with the allStar and "
    f"aspcapStar files of https://data.sdss.org/sas; or MultimodalUniverse's catalogue, {CATALOGUE_ID} on the Hub or a "
    "copy of it"
)


@dataclass(frozen=True)
class Dr17Stars:
    """Stars of one split, on some of the APOGEE pixels.

    Attributes:
        star_ids: Shape (n_stars,).
        labels, label_errors: Shape (n_stars, len(LABELS)), in the order of `labels.LABELS`, K and dex; NaN = missing.
        pixels: Which of the 7,514 pixels, shape (n_pixels,).
        flux, good: Shape (n_stars, n_pixels); continuum-normalised; True = use.
    """

    star_ids: np.ndarray
    labels: np.ndarray
    label_errors: np.ndarray
    pixels: np.ndarray
    flux: np.ndarray
    good: np.ndarray

    def chosen(self, rows: np.ndarray | slice) -> Dr17Stars:
        """Some of the stars, by their places."""
        per_star = {each.name: getattr(self, each.name)[rows] for each in fields(self) if each.name != "pixels"}
        return replace(self, **per_star)

    def lowest(self, n_stars: int) -> Dr17Stars:
        """The stars whose names hash lowest, in that order: a fair sample, in whatever order the stars came."""
        return self.chosen(shuffled(self.star_ids)[:n_stars])

    def on_grid(self, extractor: SpectraFMFeatureExtractor, pixels: slice) -> Observed:
        """Those of `pixels` (of the 7,514) on the extractor's grid; stars without a good one there are left out.

        Raises:
            ValueError: The extractor's grid does not hold these pixels.
        """
        columns = columns_of(extractor, pixels)
        held = np.isin(self.pixels, np.r_[pixels])
        stars = self.chosen(np.flatnonzero(self.good[:, held].any(axis=1)))
        shape = (len(stars.flux), extractor.wavelength_grid.size)
        flux, good = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
        flux[:, columns], good[:, columns] = stars.flux[:, held], stars.good[:, held]
        order = [[label.name for label in LABELS].index(name) for name in extractor.label_names]
        return Observed(stars.star_ids.tolist(), flux, good, stars.labels[:, order], stars.label_errors[:, order])


# ---------------------------------------------------------------- DR17, from wherever it is


def with_paper_split(dr17: str, output: Path, num_proc: int) -> str:
    """A built dataset: the one given, or one built below `output` of the archive or catalogue given.

    Raises:
        ValueError: There is no DR17 there.
        OSError: It cannot be read, or the built dataset not be written.
    """
    place = Path(dr17)
    if (place / MANIFEST_FILE).is_file():
        return dr17
    config = source(dr17)
    if config is not None:
        where = str(place.absolute()) if place.exists() else dr17
        folder = output / f"dr17-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
        if not (folder / MANIFEST_FILE).is_file():  # to look whether all is as it was takes a catalogue of 4 GB
            logger.info("  building the dataset with the paper's cuts and split; this is done once")
            build_dataset([config], folder, num_proc=num_proc)
        return str(folder)
    if place.exists() or dr17.count("/") != 1:
        there = sorted(path.name for path in place.iterdir())[:5] if place.is_dir() else []
        found = f"which holds {', '.join(there) or 'nothing'}" if place.is_dir() else "which is no folder"
        raise ValueError(f"{NEEDED}; got {dr17}, {found}.")
    return dr17


def source(dr17: str) -> SpectraConfig | None:
    """What the dataset is to be built from; None = neither an archive nor the catalogue is there."""
    if (Path(dr17) / ASPCAP_FOLDER).is_dir():
        return ApogeeDr17Config(archive=dr17, split_rule="paper")
    if dr17 in (CATALOGUE_ID, REPOSITORY):
        return MmuApogeeDr17Config(split_rule="paper")
    if Path(dr17).is_dir():
        try:
            catalogue_files(dr17)
        except FileNotFoundError:
            return None
        return MmuApogeeDr17Config(catalogue=dr17, split_rule="paper")
    return None


def open_splits(dataset: str, revision: str | None) -> Mapping[str, datasets.IterableDataset]:
    """Training and test stars of a built dataset, streamed.

    Raises:
        ValueError: It has other splits or pixels; HubError: it cannot be had.
    """
    with explained(f"streaming {dataset}"):
        check_dataset(dataset, revision)
        try:
            splits = attempt(lambda: datasets.load_dataset(dataset, "observed", streaming=True, revision=revision))
        except ValueError as error:
            raise ValueError(f"{NEEDED}; got {dataset}, whose config `observed` cannot be opened: {error}") from error
        wavelength = attempt(lambda: read_wavelength_grid(dataset, revision))
    if set(splits) != {"train", "test"}:
        raise ValueError(
            f"the paper has training and test stars only, {dataset} has the splits {', '.join(splits)}; build it with "
            "--split paper."
        )
    pixels = apogee_wavelength()
    if wavelength is None or wavelength.shape != pixels.shape or np.abs(wavelength - pixels).max() > 0.05:
        raise ValueError(
            f"spectra of {dataset} must be on the 7,514 APOGEE pixels, {pixels[0]:.2f} to {pixels[-1]:.2f} vacuum "
            "Angstrom; build it with `spectrafm build apogee-dr17`."
        )
    return splits


def read_stars(stream: datasets.IterableDataset, pixels: Sequence[slice], n_stars: int | None = None) -> Dr17Stars:
    """Stars with a published [Fe/H], in the order of `Dr17Stars.lowest`; hardly more than twice the wanted are held.

    Args:
        stream: A split of a built dataset.
        pixels: Runs of the 7,514 pixels that are kept.
        n_stars: How many; None = all.

    Raises:
        ValueError: No star is left.
    """
    parts: list[Dr17Stars] = []
    for block in read_blocks(stream, np.r_[tuple(pixels)]):
        parts.append(block)
        if n_stars is not None and sum(len(part.flux) for part in parts) > 2 * n_stars:
            parts = [joined(parts).lowest(n_stars)]
    if not sum(len(part.flux) for part in parts):
        raise ValueError(f"{NEEDED}; got one without a star that has [Fe/H].")
    stars = joined(parts)
    return stars.lowest(len(stars.flux) if n_stars is None else n_stars)


def read_blocks(stream: datasets.IterableDataset, pixels: np.ndarray) -> Iterator[Dr17Stars]:
    names = [label.name for label in LABELS]
    wanted = ["object_id", "flux", "bad_pixel", *names, *(f"{name}_err" for name in names)]
    for columns in stream.select_columns(wanted).with_format("numpy").iter(256):
        n = len(columns["object_id"])
        labels, errors = (
            np.column_stack([numbers(columns[name + suffix], n) for name in names]) for suffix in ("", "_err")
        )
        flux, bad = (np.stack(columns[name])[:, pixels] for name in ("flux", "bad_pixel"))
        block = Dr17Stars(np.asarray(columns["object_id"], dtype=str), labels, errors, pixels, flux, ~bad)
        yield block.chosen(np.flatnonzero(np.isfinite(labels[:, names.index(LABEL)])))


def joined(parts: Sequence[Dr17Stars]) -> Dr17Stars:
    """All stars of several parts on the same pixels."""
    names = [each.name for each in fields(Dr17Stars) if each.name != "pixels"]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def kept(path: Path, read: Callable[[], Dr17Stars]) -> Dr17Stars:
    """Stars that were read once."""
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return Dr17Stars(**stored)
    stars = read()
    with whole_file(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **{each.name: getattr(stars, each.name) for each in fields(stars)})
    return stars


def read_dr17(dr17: str, output: Path, num_proc: int) -> tuple[Dr17Stars, Dr17Stars]:
    """A sample of the training stars on the pixels of stages 2 and 3; all test stars on those of stage 3.

    Raises:
        ValueError, OSError: See `with_paper_split` and `open_splits`.
    """
    dataset = with_paper_split(dr17, output, num_proc)
    try:
        revision = revision_of(dataset, kind="dataset")
    except HubError as error:
        raise ValueError(f"{NEEDED}; got {dr17}, which is no folder here, and of the Hub: {error}") from error
    content = revision.encode() if revision else (Path(dataset) / MANIFEST_FILE).read_bytes()

    def read(split: str, pixels: Sequence[slice], n_stars: int | None = None) -> Dr17Stars:
        key = hashlib.sha256(content + repr((pixels, n_stars)).encode()).hexdigest()[:8]
        path = output / f"stars-{split}-{key}.npz"
        return kept(path, lambda: read_stars(open_splits(dataset, revision)[split], pixels, n_stars))

    return read("train", (FIRST_HALF, FEW_SHOT_PIXELS), N_POOL + N_OBSERVED), read("test", (FEW_SHOT_PIXELS,))


# ---------------------------------------------------------------- the stages


def columns_of(extractor: SpectraFMFeatureExtractor, pixels: slice) -> np.ndarray:
    """Places of some of the 7,514 pixels on the extractor's grid.

    Raises:
        ValueError: It does not hold them.
    """
    return grid_columns(extractor, replace(SURVEYS["apogee"], wavelength=apogee_wavelength()[pixels]))


def narrowed(extractor: SpectraFMFeatureExtractor, pixels: slice) -> tuple[SpectraFMFeatureExtractor, slice]:
    """The extractor with no tokens but those of these pixels (`few_labels.only_tokens`), and their place on its grid.

    A task narrows itself, but there are 25,681 test stars: they do not fit into memory on the whole grid.

    Args:
        extractor: One with `pixel_segments`.
        pixels: Of the 7,514, on one detector.
    """
    patch, columns = extractor.patch_size, columns_of(extractor, pixels)
    tokens = slice(int(columns[0]) // patch * patch, (int(columns[-1]) // patch + 1) * patch)
    return only_tokens(extractor, tokens), tokens


def roles(train: Dr17Stars, n_observed: int) -> tuple[Dr17Stars, Dr17Stars]:
    """The pool, at most half of the training stars, and the stars of stage 2: no star is in both."""
    n_pool = min(N_POOL, len(train.flux) // 2)
    return train.chosen(slice(n_pool)), train.chosen(slice(n_pool, n_pool + n_observed))


def check_leaks(train: Dr17Stars, test: Dr17Stars) -> None:
    """No star of stages 2 and 3 is asked about.

    Raises:
        ValueError: One is; the message names it.
    """
    if leaked := sorted(set(train.star_ids) & set(test.star_ids)):
        raise ValueError(
            f"paper: {len(leaked)} stars are in the training and in the test split, {leaked[0]} for one; build the "
            "dataset anew with `spectrafm build apogee-dr17 --split paper`, which makes sure that none is."
        )


def after_stage_2(start: str, output: Path, observed: Dr17Stars, n_spectra: int) -> Path:
    """The pre-trained model after stage 2, in a folder named by all it hangs on; trained if it is not there yet."""
    found = hashlib.sha256()
    for array in (observed.flux, observed.labels):
        found.update(np.ascontiguousarray(array).tobytes())
    folder = stage_folder(start, output, str(n_spectra), *observed.star_ids, found.hexdigest())
    return tune(start, folder, lambda extractor: observed.on_grid(extractor, FIRST_HALF), n_spectra, "paper, stage 2")


def paper_task(start: str, output: Path, dr17: str, budget: float = 1.0, num_proc: int = 1) -> Task:
    """The paper's protocol.

    Args:
        start: Pre-trained model: a folder or a Hub repository. It needs the APOGEE pixels in its `pixel_segments`.
        output: Folder of all that is made once: the dataset (5 GB, where `dr17` is none yet), the stars (0.25 GB),
            stage 2. What comes of another `dr17` or `start` lies beside it; an archive that changes is not built anew.
        dr17: A dataset built with the paper's split (a folder, or a repository on the Hub); a copy of the SDSS
            archive; or MultimodalUniverse's catalogue (`hugging-science/mmu_apogee_dr17`, or a copy).
        budget: Factor on the stars and spectra of stage 2 (`N_OBSERVED`, `N_SPECTRA`); below 1 for a trial.
        num_proc: Processes that build the dataset.

    Raises:
        ValueError: `dr17` is none of these, a star is in both splits, or the model has other pixels.
        OSError: It cannot be read, or `output` not be written.
    """
    train, test = read_dr17(dr17, output, num_proc)
    check_leaks(train, test)
    n_observed, n_spectra = (max(round(budget * n), 60) for n in (N_OBSERVED, N_SPECTRA))
    pool, observed = roles(train, n_observed)
    model, whole = load_pretrained(after_stage_2(start, output, observed, n_spectra))
    extractor, tokens = narrowed(whole, FEW_SHOT_PIXELS)
    asked = test.on_grid(extractor, FEW_SHOT_PIXELS)
    anchors = only_pixels(
        whole, nature_of_theory().stars(whole, N_ANCHORS, 0.5, seed=4, prefix="anchor-"), FEW_SHOT_PIXELS
    )
    return Task(
        name="paper",
        what=f"[Fe/H] of {len(asked.flux)} test stars of APOGEE DR17 from 512 pixels (16,106-16,220 vacuum Angstrom), "
        f"after stage 2 on {len(observed.flux)} training stars below 16,029; labelled stars are others, with "
        "[Fe/H] > -1.",
        model=model,
        extractor=extractor,
        pool=pool.on_grid(extractor, FEW_SHOT_PIXELS),
        test=asked,
        anchors=(anchors.flux[:, tokens], anchors.good[:, tokens]),
        fe_h_above=-1.0,
        synthetic=narrow_theory(whole, tokens),
        folder=output,
        n_synthetic=max(round(budget * N_SYNTHETIC), MLPPretraining.CHUNK),
    )


def narrow_theory(whole: SpectraFMFeatureExtractor, tokens: slice) -> Callable[[range], Drawn]:
    """`theory_stars` in the window, on the grid of `narrowed`."""
    stars = theory_stars(whole, apogee_wavelength()[FEW_SHOT_PIXELS][[0, -1]])

    def drawn(rows: range) -> Drawn:
        labels, flux, good = stars(rows)
        return labels, flux[:, tokens], good[:, tokens]

    return drawn
