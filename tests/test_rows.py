"""Rows: arrays come back bit for bit, missing is null, and what does not fit is refused."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Features, List, Value

from spectrafm_hf.builders.rows import (
    FILE,
    FLUX_SCALE,
    Layout,
    WavelengthGrid,
    columns_of_spectra,
    published_error,
    published_label,
    scale_of,
    to_table,
)
from spectrafm_hf.labels import LABELS
from spectrafm_hf.spectra import Spectrum, apogee_wavelength

N_PIXELS = 21
"""No multiple of eight: bits of bad_pixel must not slip from row to row."""


def some_columns(n_rows=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "object_id": np.array([f"HD{number}" for number in range(n_rows)], dtype=object),
        "survey": "miles",
        "teff": np.array([5772.0, np.nan, 4000.0, 6000.0, np.nan])[:n_rows],
        "flux": rng.normal(1, 0.1, (n_rows, N_PIXELS)).astype(np.float32),
        "ivar": rng.uniform(0, 1e4, (n_rows, N_PIXELS)).astype(np.float32),
        "bad_pixel": rng.random((n_rows, N_PIXELS)) < 0.3,
    }


def test_pixels_come_back_bit_for_bit():
    columns = some_columns()
    table = to_table(columns, Layout(N_PIXELS))
    for name in ("flux", "ivar", "bad_pixel"):
        back = np.stack(table[name].to_numpy(zero_copy_only=False))
        assert np.array_equal(back.astype(columns[name].dtype), columns[name])
    # Views, other byte orders and memory orders too.
    strange = columns | {"flux": columns["flux"].astype(">f4"), "bad_pixel": np.asfortranarray(columns["bad_pixel"])}
    assert to_table(strange, Layout(N_PIXELS)).equals(table)
    assert to_table(
        {name: v if isinstance(v, str) else v[::2] for name, v in columns.items()}, Layout(N_PIXELS)
    ).equals(table.take(pa.array([0, 2, 4])))


def test_missing_is_null_and_scalars_are_repeated():
    table = to_table(some_columns(), Layout(N_PIXELS))
    assert table["teff"].to_pylist() == [5772.0, None, 4000.0, 6000.0, None]
    assert table["mg_fe"].null_count == table["ra"].null_count == 5
    assert table["survey"].to_pylist() == ["miles"] * 5
    assert table["restframe"].to_pylist() == [True] * 5
    assert to_table({k: v for k, v in some_columns().items() if k != "ivar"}, Layout(N_PIXELS))["ivar"].null_count == 5


def test_schema_is_that_of_datasets_but_for_nulls():
    layout = Layout(N_PIXELS, (FILE,))
    assert layout.features["flux"] == List(Value("float32"), length=N_PIXELS)
    assert Features.from_arrow_schema(layout.schema) == layout.features
    assert layout.schema.metadata[b"huggingface"]
    assert not layout.schema.field("flux").type.value_field.nullable
    assert not layout.schema.field("flux").nullable
    assert layout.schema.field("ivar").nullable
    names = [column.name for column in layout.columns]
    assert names[:4] == ["object_id", "survey", "ra", "dec"]
    assert names[-4:] == ["file", "flux", "ivar", "bad_pixel"]
    assert {f"{label.name}_err" for label in LABELS} <= set(names)
    assert Layout(None).features["wavelength"] == List(Value("float64"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fe_hh": np.zeros(5)}, "no column fe_hh"),
        ({"teff": np.zeros(4)}, "teff needs one value for each of 5 rows"),
        ({"ivar": np.zeros((5, 7))}, r"ivar must have shape \(5, 21\), got \(5, 7\)"),
        ({"bad_pixel": None}, "bad_pixel is required"),
        ({"bad_pixel": [None] * 5}, "bad_pixel needs an array in every row"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        to_table(some_columns() | change, Layout(N_PIXELS))


def spectrum(n_pixels=50, seed=0, **changes):
    rng = np.random.default_rng(seed)
    told = {
        "wavelength": 5000.0 + np.arange(n_pixels) + 0.01 * seed,
        "flux": 3e-14 * rng.normal(1, 0.1, n_pixels),
        "bad_pixel": rng.random(n_pixels) < 0.2,
        "star_id": f"HD{seed + 1}",
        "survey": "stelib",
        "fwhm": 3.1,
        "labels": {"teff": 5000.0, "fe_h": -1.0},
        "label_errors": {"fe_h": 0.05, "teff": 0.0},
    }
    return Spectrum(**(told | changes))


def test_spectra_of_their_own_pixels():
    spectra = [spectrum(50), spectrum(40, 1), spectrum(60, 2)]
    layout = Layout(None, (FLUX_SCALE,))
    table = to_table(columns_of_spectra(spectra, shared_grid=False), layout)
    for row, star in zip(table.to_pylist(), spectra, strict=True):
        assert np.array_equal(row["wavelength"], star.wavelength)  # float64, bit for bit
        assert np.allclose(np.array(row["flux"]) * row["flux_scale"], star.flux, rtol=1e-6, atol=0)
        assert row["bad_pixel"] == star.bad_pixel.tolist()
        assert row["lsf_sigma"] == pytest.approx(3.1 / 2.3548, rel=1e-4)
        assert (row["ivar"], row["resolving_power"], row["snr"]) == (None, None, None)
        assert (row["teff"], row["teff_err"], row["logg"]) == (5000.0, None, None)  # an error of 0 is no error
        assert row["fe_h_err"] == pytest.approx(0.05)


def test_inverse_variance_scales_with_the_flux_and_is_zero_where_bad():
    ivar = np.full(50, 1e30)
    ivar[3], ivar[4] = np.nan, -1.0
    flux = np.full(50, 2e-14)
    flux[5] = np.nan
    star = spectrum(50, ivar=ivar, flux=flux, bad_pixel=np.arange(50) < 2)
    mixed = to_table(columns_of_spectra([star, spectrum(50, 1)], shared_grid=True), Layout(50, (FLUX_SCALE,)))
    row = mixed.to_pylist()[0]
    assert [row["ivar"][pixel] for pixel in (0, 1, 3, 4, 5)] == [0.0] * 5
    assert row["ivar"][2] == pytest.approx(1e30 * 4e-28, rel=1e-6)  # (2e-14)^2, so that flux^2 ivar is what it was
    assert row["flux"][5] == 0.0
    assert row["bad_pixel"][5]
    assert mixed["ivar"].to_pylist()[1] is None


def test_scale_of_hopeless_spectra_is_one():
    assert scale_of(spectrum(50, bad_pixel=np.ones(50, dtype=bool))) == 1.0
    assert scale_of(spectrum(50, flux=np.zeros(50))) == 1.0


def test_sentinels_are_missing_and_errors_never_zero():
    values = published_label("fe_h", np.array([-9999.0, 99.99, np.nan, -0.5, 2.0]))
    assert np.isnan(values).tolist() == [True, True, True, False, True]
    errors = published_error(np.array([0.1, 0.1, 0.1, 0.0, 0.1]), values)
    assert np.isnan(errors).all()
    assert published_error(np.array([-9999.0, np.inf, 0.02]), np.zeros(3))[2] == 0.02


def test_grid_knows_its_line_spread_function():
    grid = WavelengthGrid.of_instrument(apogee_wavelength(), "apogee", resolving_power=22_500.0)
    (row,) = grid.table().to_pylist()
    assert np.array_equal(row["wavelength"], apogee_wavelength())
    assert (row["medium"], row["frame"], row["unit"]) == ("vacuum", "rest", "Angstrom")
    assert row["lsf_sigma"][0] == pytest.approx(15152.21 / 22_500 / 2.3548, rel=1e-4)
    assert WavelengthGrid(np.arange(1.0, 4.0), "own").table().to_pylist()[0]["lsf_sigma"] is None
