"""Your own spectra: a folder of files and a table that says which file is which star with which labels.

Any format that `readers.any_file.read_spectrum` knows. The table is CSV, Parquet, FITS or ECSV, one row per file, with
a column of file names, one of star names, and labels under our names or APOGEE's. Other columns are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from ..labels import LABELS
from ..readers.any_file import read_spectrum
from ..readers.label_table import read_label_table
from ..spectra import Spectrum
from .apogee_dr17 import reason_of, splits_for
from .rows import FILE, FLUX_SCALE, Layout, WavelengthGrid, columns_of_spectra, published_error, published_label
from .spectra_builder import Plan, Rows, Skipped, SpectraBuilder, SpectraConfig, count_splits, digest_of, in_chunks
from .splits import SPLITS, normalise_star_name

FILE_COLUMNS = ("file", "filename", "file_name", "path")
ID_COLUMNS = ("object_id", "star_id", "star", "name", "apogee_id", "target_id", "id")
"""Looked for in this order, in any case, when none is named."""


@dataclass
class FolderConfig(SpectraConfig):
    """Files and a table.

    Args:
        folder: Where the files lie; the table's names are relative to it.
        table: CSV, Parquet, FITS or ECSV.
        file_column, id_column: Names of the columns with file and star; None = the first known one.
        survey: Goes into every row.
        reader_options: For `readers.any_file.read_spectrum`, e.g. `medium`, `frame`, `file_format` for files that only
            specutils knows. A velocity (km/s) is taken from the table's column `velocity`, star by star.
        pretty_name, license: For the card.
    """

    name: str = "spectra"
    folder: str = ""
    table: str = ""
    file_column: str | None = None
    id_column: str | None = None
    survey: str = "own"
    pretty_name: str | None = None
    license: str | None = None
    reader_options: dict[str, Any] = field(default_factory=dict)
    dataset: ClassVar[str] = "folder"
    PLACES: ClassVar[tuple[str, ...]] = ("folder", "table")

    def facts(self) -> dict[str, Any]:
        given = {"pretty_name": self.pretty_name, "license": self.license}
        return {name: value for name, value in given.items() if value is not None}

    def plan(self) -> Plan:
        """Reads every file once, since the rows' layout hangs on whether all have the same pixels.

        Raises:
            ValueError: The table lacks a column, or no file can be read.
            FileNotFoundError: There is no such folder or table.
        """
        if not Path(self.folder).is_dir():
            raise FileNotFoundError(f"no folder at {self.folder!r}; give the one that holds the spectra.")
        stars = self.stars()
        grids: dict[bytes, Spectrum] = {}
        usable, skipped = [], []
        for row in tqdm(range(len(stars["file"])), desc="looking at files", unit="file", leave=False, disable=None):
            try:
                spectrum = self.spectrum(stars, row)
            except (ValueError, OSError) as error:
                skipped.append(Skipped(stars["file"][row], stars["object_id"][row], reason_of(error, self.folder)))
                continue
            usable.append(row)
            grids.setdefault(spectrum.wavelength.tobytes(), spectrum)
        if not usable:
            reasons = "; ".join(f"{one.file}: {one.reason}" for one in skipped[:3]) or "the table has no row"
            raise ValueError(f"no spectrum in {self.folder} can be read ({reasons}).")
        stars = {name: values[usable] for name, values in stars.items()}
        stars["split"] = splits_for(stars["object_id"], stars["ra"], stars["dec"], "name", 0)
        grid = None
        if len(grids) == 1:
            (first,) = grids.values()
            grid = WavelengthGrid.of_instrument(first.wavelength, self.survey, first.fwhm, first.resolving_power)
        stars["shared_grid"] = np.full(len(usable), grid is not None)
        return Plan(
            in_chunks(stars),
            count_splits(stars["split"], SPLITS),
            Layout(None if grid is None else grid.wavelength.size, (FLUX_SCALE, FILE)),
            None,
            grid,
            tuple(skipped),
            digest_of(*(stars[name] for name in sorted(stars))),
        )

    def stars(self) -> dict[str, np.ndarray]:
        """The table in our names: file, object_id, ra, dec, snr, velocity, labels and errors (NaN = none), each (n,).

        Raises:
            ValueError: The table lacks a column, or has no label we know.
            FileNotFoundError: There is no such table.
        """
        table = read_label_table(Path(self.table))
        lower = {name.lower(): name for name in table}
        files = table[self._column(lower, self.file_column, FILE_COLUMNS, "file names", "--file-column")]
        names = table[self._column(lower, self.id_column, ID_COLUMNS, "star names", "--id-column")]
        n_rows = len(files)
        stars: dict[str, np.ndarray] = {
            "file": np.array([_text(file) for file in files], dtype=object),
            "object_id": np.array([normalise_star_name(_text(name)) for name in names], dtype=object),
        }

        def numbers(*candidates: str) -> np.ndarray:
            name = next((lower[one] for one in candidates if one in lower), None)
            return np.full(n_rows, np.nan) if name is None else _numbers(table[name], name)

        for name in ("ra", "dec", "snr", "velocity"):
            stars[name] = numbers(name)
        for label in LABELS:
            values = published_label(label.name, numbers(label.name, label.apogee_column.lower()))
            errors = numbers(f"{label.name}_err", f"{label.apogee_column.lower()}_err")
            stars[label.name], stars[f"{label.name}_err"] = values, published_error(errors, values)
        self._check_labels(stars, lower)
        return stars

    def _check_labels(self, stars: Mapping[str, np.ndarray], lower: Mapping[str, str]) -> None:
        """Refuse a table without a single label; one that a star lacks is NaN, and the star is kept.

        Raises:
            ValueError: No column of labels, or none with a value that can be one.
        """
        if any(np.isfinite(stars[label.name]).any() for label in LABELS):
            return
        there = [label for label in LABELS if {label.name, label.apogee_column.lower()} & lower.keys()]
        if there:
            ranges = ", ".join(f"{one.name} {one.valid[0]:g} to {one.valid[1]:g} {one.unit}" for one in there)
            raise ValueError(
                f"{self.table} has columns of labels, but not one usable value in any row: needed are numbers of "
                f"{ranges}. A star may lack some labels, but not all stars all of them; look at units and blanks."
            )
        raise ValueError(
            f"{self.table} has no label we know: columns may be called "
            f"{', '.join(f'{label.name} or {label.apogee_column} [{label.unit}]' for label in LABELS)}; "
            f"it has {', '.join(lower.values())}."
        )

    def _column(self, lower: Mapping[str, str], given: str | None, usual: Sequence[str], what: str, option: str) -> str:
        name = next((lower[one] for one in ([given.lower()] if given else usual) if one in lower), None)
        if name is None:
            raise ValueError(
                f"{self.table} needs a column of {what}: {given or ', '.join(usual)}; it has "
                f"{', '.join(lower.values())}. Name it with {option}."
            )
        return name

    def spectrum(self, stars: Mapping[str, np.ndarray], row: int) -> Spectrum:
        """Of one row of `stars`.

        Raises:
            ValueError, OSError: See `readers.any_file.read_spectrum`.
        """
        path = Path(self.folder) / stars["file"][row]
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {stars['file'][row]}")
        options = dict(self.reader_options)
        if "medium" in options:  # files that specutils reads seldom name their star
            options.setdefault("star_id", stars["object_id"][row])
        if np.isfinite(stars["velocity"][row]):
            options.setdefault("velocity", float(stars["velocity"][row]))
        return read_spectrum(path, **options)

    def read(self, chunk: dict[str, np.ndarray]) -> Rows:
        rows, spectra, skipped = [], [], []
        for row, file in enumerate(chunk["file"]):
            try:
                spectra.append(self.spectrum(chunk, row))
            except (ValueError, OSError) as error:
                skipped.append(Skipped(file, chunk["object_id"][row], reason_of(error, self.folder)))
            else:
                rows.append(row)
        if not rows:
            return Rows(None, "train", tuple(skipped))
        stars = {name: values[rows] for name, values in chunk.items()}
        columns = columns_of_spectra(spectra, bool(stars["shared_grid"][0]))
        columns |= {"survey": self.survey, "object_id": stars["object_id"], "file": stars["file"]}
        for name in ("ra", "dec", "snr"):  # the table's word counts before the file's
            columns[name] = np.where(np.isfinite(stars[name]), stars[name], columns[name])
        for label in LABELS:
            for name in (label.name, f"{label.name}_err"):
                columns[name] = stars[name]
        return Rows(columns, stars["split"], tuple(skipped))


def _text(value: Any) -> str:
    return value.decode().strip() if isinstance(value, bytes) else str(value).strip()


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Text that is no number, and what is masked, is NaN."""
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    numbers = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        try:
            numbers[row] = float(_text(value))
        except ValueError:
            continue
    return numbers


class LabelledFolder(SpectraBuilder):
    """Your own spectra for `datasets`; see `FolderConfig`."""

    BUILDER_CONFIG_CLASS = FolderConfig
