"""One row per spectrum: the columns every dataset shares, and arrays -> Arrow without a Python list in between.

`COLUMNS` is the table that features, Parquet schema and card are read from. Names are those MultimodalUniverse users
know, flattened: their `spectrum.mask` is our `bad_pixel` (same sign, True = bad).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from ..labels import LABELS
from ..spectra import FWHM_TO_SIGMA, Spectrum

Columns = dict[str, Any]
"""Column name -> one value per row: 1-D array, 2-D array (n_rows, n_pixels), or a list of 1-D arrays (ragged)."""


@dataclass(frozen=True)
class Column:
    """One column of a row.

    Attributes:
        name: As in Parquet.
        dtype: Of `datasets.Value`; of one pixel, for columns that hold one value per pixel.
        unit: Empty = dimensionless or text.
        meaning: One line for the card.
        nullable: Whether a row may have none.
        per_pixel: One value per pixel rather than per row.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    nullable: bool = True
    per_pixel: bool = False


def _label_columns() -> tuple[Column, ...]:
    columns: list[Column] = []
    for label in LABELS:
        columns.append(Column(label.name, "float32", label.unit, f"{label.symbol}; null = missing"))
        columns.append(Column(f"{label.name}_err", "float32", label.unit, "its published 1-sigma error; null = none"))
    return tuple(columns)


LABEL_COLUMNS = _label_columns()

COLUMNS: tuple[Column, ...] = (
    Column("object_id", "string", "", "name of the star, one spelling per star; the split hangs on it", nullable=False),
    Column("survey", "string", "", "survey or library the spectrum comes from", nullable=False),
    Column("ra", "float64", "deg", "right ascension, ICRS"),
    Column("dec", "float64", "deg", "declination, ICRS"),
    Column("snr", "float32", "", "signal-to-noise ratio per pixel, as published"),
    Column("restframe", "bool", "", "wavelengths are in the star's rest frame: always true", nullable=False),
    Column("lsf_sigma", "float32", "Angstrom", "Gaussian sigma of the line-spread function at the grid's centre"),
    Column("resolving_power", "float32", "", "lambda / FWHM, where that is what is constant"),
    *LABEL_COLUMNS,
)

WAVELENGTH = Column("wavelength", "float64", "Angstrom", "pixel centres, vacuum, rest frame", False, per_pixel=True)
FLUX = Column("flux", "float32", "", "flux; whatever stands in a bad pixel means nothing", False, per_pixel=True)
IVAR = Column(
    "ivar", "float32", "", "inverse variance of `flux`, 0 = no information; null = not published", True, per_pixel=True
)
BAD_PIXEL = Column("bad_pixel", "bool", "", "True = do not trust this pixel", False, per_pixel=True)

FLUX_SCALE = Column(
    "flux_scale", "float64", "as published", "median of |flux| over good pixels; `flux` times this is as published"
)
FILE = Column("file", "string", "", "file the row was read from")
"""Columns of datasets whose flux comes in units of its own, file by file."""

CENTRE_OF = np.median
"""A grid's centre, for `lsf_sigma` where lambda / FWHM is constant."""


@dataclass(frozen=True, eq=False)
class WavelengthGrid:
    """Pixels shared by all spectra of a dataset.

    Attributes:
        wavelength: Pixel centres, shape (n_pixels,), vacuum Angstrom, rest frame, float64, increasing.
        survey: Who observes on it.
        lsf_sigma: Gaussian sigma of the line-spread function, shape (n_pixels,), Angstrom (None = unknown).
        resolving_power: lambda / FWHM, where constant (None = unknown, or not constant).
    """

    wavelength: np.ndarray
    survey: str
    lsf_sigma: np.ndarray | None = None
    resolving_power: float | None = None

    @classmethod
    def of_instrument(
        cls, wavelength: np.ndarray, survey: str, fwhm: float | None = None, resolving_power: float | None = None
    ) -> WavelengthGrid:
        """A grid whose line-spread function is constant in Angstrom (`fwhm`) or in lambda / FWHM."""
        sigma = None
        if fwhm is not None:
            sigma = np.full(wavelength.size, FWHM_TO_SIGMA * fwhm)
        elif resolving_power is not None:
            sigma = FWHM_TO_SIGMA * wavelength / resolving_power
        return cls(wavelength, survey, sigma, resolving_power)

    def table(self) -> pa.Table:
        """The one row of the config `wavelength_grid`."""
        n = self.wavelength.size
        features = Features(
            {
                "survey": Value("string"),
                "medium": Value("string"),
                "frame": Value("string"),
                "unit": Value("string"),
                "resolving_power": Value("float32"),
                "wavelength": List(Value("float64"), length=n),
                "lsf_sigma": List(Value("float32"), length=n),
            }
        )
        sigma = None if self.lsf_sigma is None else self.lsf_sigma.astype(np.float32)
        row = {
            "survey": [self.survey],
            "medium": ["vacuum"],
            "frame": ["rest"],
            "unit": ["Angstrom"],
            "resolving_power": [self.resolving_power],
            "wavelength": [self.wavelength.astype(np.float64)],
            "lsf_sigma": [sigma],
        }
        return pa.Table.from_pydict(row, schema=features.arrow_schema)


@dataclass(frozen=True)
class Layout:
    """Which columns a dataset has.

    Attributes:
        n_pixels: Of every spectrum; None = they differ, and each row brings its `wavelength`.
        extra: Columns of this dataset alone, one value per row.
    """

    n_pixels: int | None
    extra: tuple[Column, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns in their order: scalars first, so that a viewer shows them."""
        pixels = (FLUX, IVAR, BAD_PIXEL) if self.n_pixels is not None else (WAVELENGTH, FLUX, IVAR, BAD_PIXEL)
        return (*COLUMNS, *self.extra, *pixels)

    @property
    def features(self) -> Features:
        """For `datasets`: what `load_dataset` shows."""
        length = -1 if self.n_pixels is None else self.n_pixels
        return Features(
            {
                column.name: List(Value(column.dtype), length=length) if column.per_pixel else Value(column.dtype)
                for column in self.columns
            }
        )

    @property
    def schema(self) -> pa.Schema:
        """For Parquet: the same with the `huggingface` metadata, and non-nullable where nothing may be missing.

        Elements that cannot be null need no definition levels, which makes reading a quarter faster.
        """
        plain = self.features.arrow_schema
        fields = []
        for column in self.columns:
            kind = plain.field(column.name).type
            if column.per_pixel:
                item = pa.field("item", kind.value_type, nullable=False)
                kind = pa.list_(item) if self.n_pixels is None else pa.list_(item, self.n_pixels)
            fields.append(pa.field(column.name, kind, nullable=column.nullable))
        return pa.schema(fields, metadata=plain.metadata)


def to_table(columns: Mapping[str, Any], layout: Layout) -> pa.Table:
    """Arrays -> one Arrow table in the layout's schema.

    Args:
        columns: See `Columns`; `flux` is required, since it says how many rows there are. A nullable column that is
            left out is null in every row; NaN in a scalar column becomes null; a scalar is repeated.
        layout: What the table must look like.

    Raises:
        ValueError: A column is missing or unknown, or its shape is not that of the layout.
    """
    known = {column.name for column in layout.columns}
    if unknown := sorted(set(columns) - known):
        raise ValueError(f"the layout has no column {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    n_rows = len(columns["flux"])
    schema = layout.schema
    arrays = []
    for column in layout.columns:
        field = schema.field(column.name)
        values = True if column.name == "restframe" else columns.get(column.name)
        if values is None:
            if not column.nullable:
                raise ValueError(f"column {column.name} is required.")
            arrays.append(pa.nulls(n_rows, field.type))
        elif column.per_pixel:
            arrays.append(_pixel_array(column, values, field.type, n_rows, layout.n_pixels))
        else:
            arrays.append(_scalar_array(column, values, field.type, n_rows))
    return pa.Table.from_arrays(arrays, schema=schema)


def _scalar_array(column: Column, values: Any, kind: pa.DataType, n_rows: int) -> pa.Array:
    if isinstance(values, (str, bool, int, float, np.generic)):
        return pa.repeat(pa.scalar(values, kind), n_rows)
    values = np.asarray(values)
    if values.shape != (n_rows,):
        raise ValueError(f"column {column.name} needs one value for each of {n_rows} rows, got shape {values.shape}.")
    if np.issubdtype(values.dtype, np.floating):
        # NaN means missing; as null it does not spoil the statistics that filters rely on.
        return pa.array(values.astype(kind.to_pandas_dtype()), kind, from_pandas=True)
    return pa.array(values.tolist() if values.dtype.kind in "USO" else values, kind)


def _pixel_array(column: Column, values: Any, kind: pa.DataType, n_rows: int, n_pixels: int | None) -> pa.Array:
    """2-D array, or 1-D arrays, -> lists. The numbers are not touched, only their buffer handed on; None = null."""
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    if len(values) != n_rows:
        raise ValueError(f"column {column.name} needs one array for each of {n_rows} rows, got {len(values)}.")
    missing = None
    if not isinstance(values, np.ndarray):
        absent = np.array([one is None for one in values], dtype=bool)
        if absent.any() and not column.nullable:
            raise ValueError(f"column {column.name} needs an array in every row, {absent.sum()} rows have none.")
        filler = np.zeros(n_pixels or 0, dtype)
        values = [filler if one is None else np.asarray(one, dtype) for one in values]
        missing = pa.array(absent) if absent.any() else None
    if n_pixels is None:
        offsets = np.zeros(n_rows + 1, dtype=np.int32)
        np.cumsum([len(one) for one in values], out=offsets[1:])
        flat = np.concatenate(values) if n_rows else np.empty(0, dtype)
        return pa.ListArray.from_arrays(pa.array(offsets), _flat_array(flat, kind.value_type), type=kind, mask=missing)
    matrix = np.ascontiguousarray(values, dtype)
    if matrix.shape != (n_rows, n_pixels):
        raise ValueError(f"column {column.name} must have shape ({n_rows}, {n_pixels}), got {matrix.shape}.")
    return pa.FixedSizeListArray.from_arrays(_flat_array(matrix.ravel(), kind.value_type), type=kind, mask=missing)


def _flat_array(flat: np.ndarray, kind: pa.DataType) -> pa.Array:
    if flat.dtype == bool:  # Arrow keeps eight to a byte
        bits = np.packbits(flat, bitorder="little")
        return pa.Array.from_buffers(kind, flat.size, [None, pa.py_buffer(bits)])
    return pa.Array.from_buffers(kind, flat.size, [None, pa.py_buffer(flat)])


# ---------------------------------------------------------------- spectra -> columns


def lsf_sigma_at_centre(wavelength: np.ndarray, fwhm: float | None, resolving_power: float | None) -> float:
    """Gaussian sigma at the grid's centre, Angstrom; NaN if neither is known."""
    if fwhm is not None:
        return float(FWHM_TO_SIGMA * fwhm)
    if resolving_power is not None:
        return float(FWHM_TO_SIGMA * CENTRE_OF(wavelength) / resolving_power)
    return float("nan")


def published_label(name: str, values: np.ndarray) -> np.ndarray:
    """Values outside the label's valid range, sentinels among them, become NaN; any shape, float64."""
    (low, high) = next(label.valid for label in LABELS if label.name == name)
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where((values >= low) & (values <= high), values, np.nan)


def published_error(values: np.ndarray, label_values: np.ndarray) -> np.ndarray:
    """Errors that are not positive and finite, or belong to a missing label, become NaN: never "perfectly known"."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values) & (values > 0) & np.isfinite(label_values), values, np.nan)


def columns_of_spectra(spectra: Sequence[Spectrum], shared_grid: bool) -> Columns:
    """Spectra as a reader hands them over -> columns.

    A flux in physical units is divided by its median over good pixels, one number per spectrum kept in `flux_scale`,
    so that it is near 1 and fits float32; the continuum stays. See `scale_of`.

    Args:
        spectra: At least one.
        shared_grid: All have the same pixels, so `wavelength` is left to the config `wavelength_grid`.
    """
    scales = np.array([scale_of(spectrum) for spectrum in spectra])
    fluxes, bads = [], []
    ivars: list[np.ndarray | None] = []
    for spectrum, scale in zip(spectra, scales, strict=True):
        bad = spectrum.bad_pixel | ~np.isfinite(spectrum.flux)
        fluxes.append(np.where(np.isfinite(spectrum.flux), spectrum.flux / scale, 0.0).astype(np.float32))
        bads.append(bad)
        if spectrum.ivar is None:
            ivars.append(None)
        else:
            usable = np.isfinite(spectrum.ivar) & (spectrum.ivar > 0) & ~bad
            ivars.append(np.where(usable, spectrum.ivar * scale**2, 0.0).astype(np.float32))
    columns: Columns = {
        "object_id": np.array([spectrum.star_id for spectrum in spectra], dtype=object),
        "survey": np.array([spectrum.survey for spectrum in spectra], dtype=object),
        "ra": _numbers(spectrum.ra for spectrum in spectra),
        "dec": _numbers(spectrum.dec for spectrum in spectra),
        "snr": _numbers(spectrum.snr for spectrum in spectra),
        "lsf_sigma": np.array([lsf_sigma_at_centre(s.wavelength, s.fwhm, s.resolving_power) for s in spectra]),
        "resolving_power": _numbers(spectrum.resolving_power for spectrum in spectra),
        "flux_scale": scales,
        "flux": np.stack(fluxes) if shared_grid else fluxes,
        "bad_pixel": np.stack(bads) if shared_grid else bads,
    }
    for label in LABELS:
        values = published_label(label.name, _numbers(s.labels.get(label.name) for s in spectra))
        columns[label.name] = values
        columns[f"{label.name}_err"] = published_error(
            _numbers(s.label_errors.get(label.name) for s in spectra), values
        )
    if any(ivar is not None for ivar in ivars):
        columns["ivar"] = ivars
    if not shared_grid:
        columns["wavelength"] = [spectrum.wavelength for spectrum in spectra]
    return columns


def scale_of(spectrum: Spectrum) -> float:
    """Median of |flux| over good pixels; 1 where there is none, or it is zero."""
    good = ~spectrum.bad_pixel & np.isfinite(spectrum.flux)
    scale = float(np.median(np.abs(spectrum.flux[good]))) if good.any() else 0.0
    return scale if scale > 0 else 1.0


def _numbers(values: Any) -> np.ndarray:
    """None -> NaN; float64."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
