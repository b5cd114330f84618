"""APOGEE DR17 from a copy of the SDSS archive: aspcapStar files and the allStar catalogue, cut as in the paper.

Two configs share stars, splits and pixels: `observed` (HDU 1, errors of HDU 2) and `synthetic` (HDU 3, ASPCAP's best
fit). The cuts are `selection.APOGEE_DR17_CUTS`; flux below 0.05 or above 1.2 is a bad pixel, as in the paper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..labels import LABELS
from ..readers.allstar import read_allstar
from ..readers.aspcapstar import PAPER_FLUX_RANGE, read_aspcapstar
from ..spectra import APOGEE_RESOLVING_POWER, apogee_wavelength
from .leak_audit import star_groups
from .rows import Column, Columns, Layout, WavelengthGrid, lsf_sigma_at_centre, published_error, published_label
from .selection import APOGEE_DR17_CUTS, CatalogueCut, SelectionReport, select_rows
from .spectra_builder import Plan, Rows, Skipped, SpectraBuilder, SpectraConfig, count_splits, digest_of, in_chunks
from .splits import SPLITS, paper_split, splits_of

SplitRule = Literal["name", "paper"]

ASPCAP_FOLDER = "dr17/apogee/spectro/aspcap/dr17/synspec_rev1"
CATALOGUE_FILE = f"{ASPCAP_FOLDER}/allStar-dr17-synspec_rev1.fits"
SPECTRUM_FILE = ASPCAP_FOLDER + "/{telescope}/{field}/aspcapStar-dr17-{apogee_id}.fits"
"""Relative to the archive's root, as data.sdss.org/sas lays it out."""

LABEL_NAMES = tuple(name for label in LABELS for name in (label.name, f"{label.name}_err"))

TELESCOPE = Column("telescope", "string", "", "apo25m, lco25m or apo1m")
FIELD = Column("field", "string", "", "field of the survey the star was observed in")


def splits_for(names: np.ndarray, ra: np.ndarray, dec: np.ndarray, rule: SplitRule, seed: int) -> np.ndarray:
    """Split of each star; those within an arcsecond of each other stay together.

    Args:
        names: Shape (n,).
        ra, dec: Shape (n,), degrees; NaN = none.
        rule: `name` (`splits.split_of`) or `paper` (`splits.paper_split`).
        seed: Of `paper_split`.

    Raises:
        ValueError: No such rule.
    """
    if rule not in ("name", "paper"):
        raise ValueError(f"the split rule must be 'name' or 'paper', got {rule!r}.")
    groups = star_groups(names, ra, dec)
    return splits_of(groups) if rule == "name" else paper_split(groups, seed)


PAPER_SPLITS_NOTE = (
    "Train (80 %) and test (20 %) were drawn at random over the stars with seed {seed}, as in Koblischke & Bovy 2024, "
    "for comparison with it. The paper's own permutation is not published, so these are not its very stars. There "
    "is no validation split. Stars within 1 arcsec of each other share a split."
)


def shuffled(names: np.ndarray) -> np.ndarray:
    """Row numbers in the order of a hash of the name: any run of rows is a fair sample, and every build agrees."""
    return np.argsort(
        np.array([hashlib.sha256(str(name).encode()).digest()[:8] for name in names], dtype="S8"), kind="stable"
    )


def label_columns(stars: Mapping[str, np.ndarray]) -> Columns:
    """Labels and errors of a catalogue with our names, cleaned: invalid values and errors become NaN."""
    columns: Columns = {}
    for label in LABELS:
        values = published_label(label.name, stars[label.name])
        columns[label.name] = values
        columns[f"{label.name}_err"] = published_error(stars[f"{label.name}_err"], values)
    return columns


def bad_by_flux(flux: np.ndarray) -> np.ndarray:
    """Pixels the paper leaves out: flux below 0.05 or above 1.2 of the continuum, or not finite; any shape."""
    low, high = PAPER_FLUX_RANGE
    with np.errstate(invalid="ignore"):
        return ~((flux >= low) & (flux <= high))


@lru_cache(maxsize=1)
def _selected(
    catalogue: str, rule: SplitRule, seed: int, cuts: Sequence[CatalogueCut]
) -> tuple[dict[str, np.ndarray], SelectionReport]:
    """Stars that pass the cuts, with their split, in the order of the rows; once per process for both configs."""
    stars = read_catalogue(Path(catalogue))
    rows, report = select_rows(stars, cuts)
    stars = {name: values[rows] for name, values in stars.items()}
    order = shuffled(stars["object_id"])
    stars = {name: values[order] for name, values in stars.items()}
    stars["split"] = splits_for(stars["object_id"], stars["ra"], stars["dec"], rule, seed)
    return stars, report


def read_catalogue(path: Path) -> dict[str, np.ndarray]:
    """allStar -> columns that cuts, paths and rows need, shape (n_stars,) each; the star's name is `object_id`."""
    table = read_allstar(path)
    names = ("apogee_id", "telescope", "field", "ra", "dec", "snr", "starflag", "aspcapflag", "vscatter", *LABEL_NAMES)
    if absent := [name for name in names if name not in table]:
        raise ValueError(f"{path} lacks {', '.join(absent)}; the cuts need allStar-dr17-synspec_rev1.fits.")
    return {"object_id": table["star_id"]} | {name: table[name] for name in names}


@dataclass
class ApogeeDr17Config(SpectraConfig):
    """APOGEE DR17 from a local archive.

    Args:
        name: `observed` or `synthetic` (ASPCAP's best fit of the same stars).
        archive: Root of the archive; below it dr17/apogee/spectro/... as on data.sdss.org/sas.
        catalogue: allStar file; None = where the archive has it.
        split_rule: `name` = by the star's name, for ever; `paper` = 80/20 at random.
        seed: Of the `paper` split.
        n: Only the first stars of the (hashed) order, for trials; None = all.
    """

    name: str = "observed"
    archive: str = ""
    catalogue: str | None = None
    split_rule: SplitRule = "name"
    seed: int = 0
    n: int | None = None
    dataset: ClassVar[str] = "apogee_dr17"
    PLACES: ClassVar[tuple[str, ...]] = ("archive", "catalogue")

    @property
    def kind(self) -> Literal["observed", "synthetic"]:
        """What the config's name stands for.

        Raises:
            ValueError: Neither of the two.
        """
        if self.name == "observed":
            return "observed"
        if self.name == "synthetic":
            return "synthetic"
        raise ValueError(f"apogee_dr17 has the configs observed and synthetic, got {self.name!r}.")

    def facts(self) -> dict[str, Any]:
        return {"splits_note": PAPER_SPLITS_NOTE.format(seed=self.seed)} if self.split_rule == "paper" else {}

    def plan(self) -> Plan:
        if not Path(self.archive).is_dir():
            raise FileNotFoundError(
                f"no archive at {self.archive!r}; give the folder that holds {ASPCAP_FOLDER.split('/')[0]}/ (a copy of "
                "data.sdss.org/sas)."
            )
        self.kind  # noqa: B018  # refuses other names
        catalogue = Path(self.catalogue) if self.catalogue else Path(self.archive) / CATALOGUE_FILE
        stars, report = _selected(str(catalogue), self.split_rule, self.seed, APOGEE_DR17_CUTS)
        stars = {name: values[: self.n] for name, values in stars.items()}
        order = SPLITS if self.split_rule == "name" else ("train", "test")
        grid = WavelengthGrid.of_instrument(apogee_wavelength(), "apogee", resolving_power=APOGEE_RESOLVING_POWER)
        return Plan(
            in_chunks(stars),
            count_splits(stars["split"], order),
            Layout(grid.wavelength.size, (TELESCOPE, FIELD)),
            report,
            grid,
            digest=digest_of(stars["object_id"], stars["snr"], *(stars[name] for name in LABEL_NAMES)),
        )

    def read(self, chunk: dict[str, np.ndarray]) -> Rows:
        good, fluxes, ivars, bads, skipped = [], [], [], [], []
        for row, apogee_id in enumerate(chunk["apogee_id"]):
            place = SPECTRUM_FILE.format(
                telescope=chunk["telescope"][row], field=chunk["field"][row], apogee_id=apogee_id
            )
            try:
                spectrum = read_aspcapstar(Path(self.archive) / place, self.kind)
            except (ValueError, OSError) as error:
                skipped.append(Skipped(place, str(chunk["object_id"][row]), reason_of(error, self.archive)))
                continue
            bad = spectrum.bad_pixel | bad_by_flux(spectrum.flux)
            good.append(row)
            fluxes.append(np.where(np.isfinite(spectrum.flux), spectrum.flux, 0.0).astype(np.float32))
            bads.append(bad)
            if spectrum.ivar is not None:
                ivars.append(np.where(bad, 0.0, spectrum.ivar).astype(np.float32))
        if not good:
            return Rows(None, "train", tuple(skipped))
        stars = {name: values[good] for name, values in chunk.items()}
        columns: Columns = {
            name: stars[name] for name in ("object_id", "ra", "dec", "snr", "telescope", "field")
        } | label_columns(stars)
        columns |= {"flux": np.stack(fluxes), "bad_pixel": np.stack(bads), "survey": "apogee"}
        if ivars:
            columns["ivar"] = np.stack(ivars)
        columns["resolving_power"] = APOGEE_RESOLVING_POWER
        columns["lsf_sigma"] = lsf_sigma_at_centre(apogee_wavelength(), None, APOGEE_RESOLVING_POWER)
        return Rows(columns, stars["split"], tuple(skipped))


def reason_of(error: Exception, root: str) -> str:
    """The message without this machine's folders."""
    return " ".join(str(error).replace(f"{Path(root)}/", "").split())


class ApogeeDr17(SpectraBuilder):
    """APOGEE DR17 for `datasets`; see `ApogeeDr17Config`."""

    BUILDER_CONFIG_CLASS = ApogeeDr17Config
