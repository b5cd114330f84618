"""APOGEE DR17 from the MultimodalUniverse catalogue on the Hub: HATS, i.e. Parquet by place on the sky.

Its rows hold a struct `spectrum` (`flux`, `ivar`, `lsf_sigma`, `lambda`, `mask`, each 7,514 pixels) and the columns of
allStar in lower case. Spectra divided by their continuum are `pseudo_continuum_flux` and `pseudo_continuum_ivar` where
the catalogue has them. Its float32 wavelengths are a formula that was rounded; ours are the formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..readers.aspcapstar import LARGEST_ERROR, PAPER_FLUX_RANGE
from ..spectra import APOGEE_RESOLVING_POWER, apogee_wavelength
from .apogee_dr17 import (
    FIELD,
    LABEL_NAMES,
    PAPER_SPLITS_NOTE,
    TELESCOPE,
    SplitRule,
    bad_by_flux,
    label_columns,
    splits_for,
)
from .parquet_layout import ROW_GROUP
from .rows import Columns, Layout, WavelengthGrid, lsf_sigma_at_centre
from .selection import APOGEE_DR17_CUTS, select_rows
from .spectra_builder import Plan, Rows, Skipped, SpectraBuilder, SpectraConfig, count_splits, digest_of
from .splits import SPLITS, normalise_star_name

REPOSITORY = "hf://datasets/hugging-science/mmu_apogee_dr17"
COLLECTION_FILE, PRIMARY_WORD = "collection.properties", "hats_primary_table_url"

NUMBERS = ("ra", "dec", "snr", "starflag", "aspcapflag", "vscatter", *LABEL_NAMES)
TEXTS = ("object_id", "telescope", "field")

FLUX_NAMES = (("pseudo_continuum_flux", "pseudo_continuum_ivar"), ("flux", "ivar"))
"""Fields of `spectrum` that may hold flux and its inverse variance, the best first."""


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """What goes wrong on the way to the Hub has many types; here it has one.

    Raises:
        OSError: The place cannot be reached.
    """
    try:
        yield
    except (ValueError, KeyError):
        raise
    except Exception as error:
        ours = isinstance(error, FileNotFoundError) and not place.startswith("hf://")
        if ours or not (isinstance(error, OSError) or type(error).__module__.startswith("httpx")):
            raise
        raise OSError(f"{place} cannot be read ({error}); is it there, and reachable?") from error


def catalogue_files(place: str, revision: str | None = None) -> list[str]:
    """Parquet files of a HATS catalogue, sorted: those of its main table, not of its margins.

    Args:
        place: A folder, or anything fsspec knows, e.g. `hf://datasets/<repository>`.
        revision: Of a Hub repository.

    Raises:
        FileNotFoundError: There is no such place, or nothing in it.
    """
    if place.startswith("hf://") and revision is not None:
        place = f"{place.rstrip('/')}@{revision}"
    with reaching(place):
        system, root = fsspec.core.url_to_fs(place)
        root = root.rstrip("/")
        if system.exists(f"{root}/{COLLECTION_FILE}"):
            text = system.cat_file(f"{root}/{COLLECTION_FILE}").decode()
            words = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            root = f"{root}/{words.get(PRIMARY_WORD, '').strip()}".rstrip("/")
        found = sorted(path for path in system.find(root) if _is_table(path, root))
    if not found:
        raise FileNotFoundError(f"no Parquet file of a HATS catalogue (Norder=*/Dir=*/Npix=*) in {place}.")
    return [system.unstrip_protocol(path) for path in found]


def _is_table(path: str, root: str) -> bool:
    parts = PurePosixPath(path.removeprefix(root)).parts
    return path.endswith(".parquet") and any(part.startswith("Npix=") for part in parts)


def open_parquet(place: str) -> pq.ParquetFile:
    """Open a local or remote file; only what is asked for is read."""
    system, path = fsspec.core.url_to_fs(place)
    return pq.ParquetFile(system.open(path, "rb"), pre_buffer=True)


@lru_cache(maxsize=1)
def _selected(place: str, revision: str | None, rule: SplitRule, seed: int) -> tuple[dict[str, np.ndarray], Any]:
    """Rows that pass the cuts, with the file, row group and row they stand in."""
    pieces: list[dict[str, np.ndarray]] = []
    for number, file in enumerate(catalogue_files(place, revision)):
        with reaching(file), open_parquet(file) as parquet:
            if absent := sorted({*NUMBERS, *TEXTS, "spectrum"} - set(parquet.schema_arrow.names)):
                raise ValueError(f"{file} lacks the columns {', '.join(absent)}; is it the APOGEE DR17 catalogue?")
            for group in range(parquet.num_row_groups):
                piece = _catalogue_columns(parquet.read_row_group(group, columns=[*NUMBERS, *TEXTS]))
                n_rows = len(piece["object_id"])
                piece |= {"file": np.full(n_rows, number), "group": np.full(n_rows, group), "row": np.arange(n_rows)}
                pieces.append(piece)
    stars = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    rows, report = select_rows(stars, APOGEE_DR17_CUTS)
    stars = {name: values[rows] for name, values in stars.items()}
    stars["split"] = splits_for(stars["object_id"], stars["ra"], stars["dec"], rule, seed)
    return stars, report


def _catalogue_columns(table: pa.Table) -> dict[str, np.ndarray]:
    columns = {}
    for name in NUMBERS:
        values = table[name]
        if pa.types.is_integer(values.type):
            values = pc.fill_null(values, -1)  # an unknown flag has all bits set: it fails the cuts
        columns[name] = values.to_numpy(zero_copy_only=False)
    for name in TEXTS:
        columns[name] = np.array([value or "" for value in table[name].to_pylist()], dtype=object)
    columns["object_id"] = np.array([normalise_star_name(name) for name in columns["object_id"]], dtype=object)
    return columns


@dataclass
class MmuApogeeDr17Config(SpectraConfig):
    """APOGEE DR17 from MultimodalUniverse.

    Args:
        catalogue: The repository on the Hub, or a copy of it in a folder.
        revision: Of the repository: a commit, so that the build can be repeated.
        split_rule: `name` = by the star's name, for ever; `paper` = 80/20 at random.
        seed: Of the `paper` split.
    """

    name: str = "observed"
    catalogue: str = REPOSITORY
    revision: str | None = None
    split_rule: SplitRule = "name"
    seed: int = 0
    dataset: ClassVar[str] = "mmu_apogee_dr17"
    PLACES: ClassVar[tuple[str, ...]] = ("catalogue",)

    def facts(self) -> dict[str, Any]:
        return {"splits_note": PAPER_SPLITS_NOTE.format(seed=self.seed)} if self.split_rule == "paper" else {}

    def plan(self) -> Plan:
        stars, report = _selected(self.catalogue, self.revision, self.split_rule, self.seed)
        files = catalogue_files(self.catalogue, self.revision)
        check_wavelengths(files[0])
        order = SPLITS if self.split_rule == "name" else ("train", "test")
        grid = WavelengthGrid.of_instrument(apogee_wavelength(), "apogee", resolving_power=APOGEE_RESOLVING_POWER)
        return Plan(
            _by_row_group(stars, files),
            count_splits(stars["split"], order),
            Layout(grid.wavelength.size, (TELESCOPE, FIELD)),
            report,
            grid,
            digest=digest_of(stars["object_id"], stars["snr"]),
        )

    def read(self, chunk: Mapping[str, Any]) -> Rows:
        """One row group: all of it is fetched, a few rows at a time are unpacked, the chosen ones are kept."""
        tables = []
        start = 0
        with reaching(chunk["file"]), open_parquet(chunk["file"]) as parquet:
            flux_name, ivar_name = _flux_names(parquet.schema_arrow.field("spectrum").type, chunk["file"])
            columns = [*NUMBERS, *TEXTS, *(f"spectrum.{name}" for name in (flux_name, ivar_name, "mask"))]
            for batch in parquet.iter_batches(ROW_GROUP, row_groups=[chunk["group"]], columns=columns):
                mine = chunk["row"][(chunk["row"] >= start) & (chunk["row"] < start + len(batch))] - start
                tables.append(pa.Table.from_batches([batch]).take(pa.array(mine)))
                start += len(batch)
        table = pa.concat_tables(tables).combine_chunks()
        spectrum = table["spectrum"].chunk(0)
        flux, ivar, bad = (_matrix(spectrum.field(name)) for name in (flux_name, ivar_name, "mask"))
        with np.errstate(invalid="ignore"):  # the same limit as for aspcapStar files
            known = (ivar >= LARGEST_ERROR**-2) & np.isfinite(ivar)
        bad = bad.astype(bool) | bad_by_flux(flux) | ~known
        stars = _catalogue_columns(table)
        file = PurePosixPath(chunk["file"]).name
        usable = ~bad.all(axis=1)
        if (~usable).mean() > 0.5:
            raise ValueError(
                f"{file}: `spectrum.{flux_name}` must be continuum-normalised, near 1, but most of its spectra have no "
                f"pixel between {PAPER_FLUX_RANGE[0]} and {PAPER_FLUX_RANGE[1]} (median {np.nanmedian(flux):.3g})."
            )
        skipped = tuple(
            Skipped(file, str(name), "no pixel of the spectrum can be trusted") for name in stars["object_id"][~usable]
        )
        columns_of = {name: stars[name][usable] for name in (*TEXTS, "ra", "dec", "snr")}
        columns_of |= {name: values[usable] for name, values in label_columns(stars).items()}
        columns_of |= {
            "flux": np.where(np.isfinite(flux), flux, 0.0)[usable].astype(np.float32),
            "ivar": np.where(bad, 0.0, ivar)[usable].astype(np.float32),
            "bad_pixel": bad[usable],
        }
        alike: Columns = {
            "survey": "apogee",
            "resolving_power": APOGEE_RESOLVING_POWER,
            "lsf_sigma": lsf_sigma_at_centre(apogee_wavelength(), None, APOGEE_RESOLVING_POWER),
        }
        return Rows(columns_of | alike, chunk["split"][usable], skipped)


def _by_row_group(stars: Mapping[str, np.ndarray], files: Sequence[str]) -> list[dict[str, Any]]:
    """Stars in the catalogue's order -> one chunk per row group: file, group, rows in it, and their splits."""
    place = np.stack([stars["file"], stars["group"]], axis=1)
    starts = np.flatnonzero(np.r_[True, (np.diff(place, axis=0) != 0).any(axis=1)]) if len(place) else np.empty(0, int)
    return [
        {
            "file": files[place[start, 0]],
            "group": int(place[start, 1]),
            "row": stars["row"][start:stop],
            "split": stars["split"][start:stop],
        }
        for start, stop in zip(starts, np.r_[starts[1:], len(place)], strict=True)
    ]


def _flux_names(struct: pa.DataType, file: str) -> tuple[str, str]:
    """Which fields hold flux and its inverse variance.

    Raises:
        ValueError: None do.
    """
    fields = {field.name for field in struct}
    names = next((pair for pair in FLUX_NAMES if set(pair) <= fields), None)
    if names is None or "mask" not in fields:
        raise ValueError(f"{file}: `spectrum` must hold flux, ivar and mask, got {', '.join(sorted(fields))}.")
    return names


def check_wavelengths(file: str) -> None:
    """Look at the wavelengths of a file's first spectra; all others are of the same pipeline and length.

    Raises:
        ValueError: They are not the APOGEE pixels.
    """
    with reaching(file), open_parquet(file) as parquet:
        batch = next(parquet.iter_batches(8, row_groups=[0], columns=["spectrum.lambda"]))
    wavelength = _matrix(batch.column("spectrum").field("lambda"))
    if not np.allclose(wavelength, apogee_wavelength(), rtol=0, atol=0.05):
        raise ValueError(
            f"{file}: `spectrum.lambda` must be the 7,514 APOGEE pixels (vacuum Angstrom) to 0.05 Angstrom, a quarter "
            f"of a pixel, got {wavelength.min():.2f} to {wavelength.max():.2f}."
        )


def _matrix(lists: pa.Array) -> np.ndarray:
    """Lists of 7,514 -> shape (n_rows, 7514).

    Raises:
        ValueError: They have other lengths.
    """
    n_pixels = apogee_wavelength().size
    flat = lists.flatten()
    if len(flat) != len(lists) * n_pixels:
        raise ValueError(f"spectra must have {n_pixels} pixels, got {len(flat)} in {len(lists)} spectra.")
    return flat.to_numpy(zero_copy_only=False).reshape(len(lists), n_pixels)


class MmuApogeeDr17(SpectraBuilder):
    """APOGEE DR17 from MultimodalUniverse for `datasets`; see `MmuApogeeDr17Config`."""

    BUILDER_CONFIG_CLASS = MmuApogeeDr17Config
