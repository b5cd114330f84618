"""allStar: sentinels become NaN, errors never 0, names those of the spectra, memory flat."""

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import survey_files as survey

from spectrafm_hf.labels import LABELS
from spectrafm_hf.readers.allstar import ASPCAPFLAG, STAR_BAD, STARFLAG, iterate_allstar, read_allstar
from spectrafm_hf.readers.aspcapstar import read_aspcapstar


def test_columns(tmp_path: Path) -> None:
    theirs = survey.allstar_columns(5)
    ours = read_allstar(survey.write_allstar(tmp_path / "a.fits", theirs))
    for label in LABELS:
        np.testing.assert_array_equal(ours[label.name], theirs[label.apogee_column].astype(np.float64))
        np.testing.assert_array_equal(
            ours[f"{label.name}_err"], theirs[f"{label.apogee_column}_ERR"].astype(np.float64)
        )
    np.testing.assert_array_equal(ours["ra"], theirs["RA"])
    np.testing.assert_array_equal(ours["star_id"], theirs["APOGEE_ID"])
    np.testing.assert_array_equal(ours["vscatter"], theirs["VSCATTER"].astype(np.float64))
    assert ours["gaia_source_id"][0] == "5860080419780127104"
    assert ours["file"][0] == "apStar-dr17-2M00000000+0000000.fits"
    assert ours["fe_h_flag"].dtype == np.int64
    assert {len(column) for column in ours.values()} == {5}
    assert all(column.dtype.isnative for column in ours.values())


@pytest.mark.parametrize("sentinel", [np.nan, np.inf, -np.inf, -9999.0, -9999.99, 99999.0, 9999.0, 99.99])
@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
def test_missing_labels(tmp_path: Path, label, sentinel: float) -> None:
    columns = survey.allstar_columns(3)
    columns[label.apogee_column][1] = sentinel
    ours = read_allstar(survey.write_allstar(tmp_path / "a.fits", columns))
    if label.name == "teff" and sentinel in (9999.0,):
        assert ours["teff"][1] == 9999.0  # a temperature like others
        return
    assert np.isnan(ours[label.name]).tolist() == [False, True, False]
    assert np.isnan(ours[f"{label.name}_err"]).tolist() == [False, True, False]  # no value, no error


@pytest.mark.parametrize("error", [0.0, -0.1, np.nan, np.inf, -9999.0, 9999.0, 99999.0])
def test_errors_that_say_nothing_are_missing_not_zero(tmp_path: Path, error: float) -> None:
    columns = survey.allstar_columns(3)
    columns["FE_H_ERR"][2] = error
    ours = read_allstar(survey.write_allstar(tmp_path / "a.fits", columns))
    assert np.isnan(ours["fe_h_err"]).tolist() == [False, False, True]
    assert np.isfinite(ours["fe_h"]).all()


def test_zero_is_a_label_but_not_a_temperature(tmp_path: Path) -> None:
    columns = survey.allstar_columns(2)
    for name in ("TEFF", "LOGG", "FE_H"):
        columns[name][0] = 0.0
    ours = read_allstar(survey.write_allstar(tmp_path / "a.fits", columns))
    assert np.isnan(ours["teff"][0])
    assert (ours["logg"][0], ours["fe_h"][0]) == (0.0, 0.0)


def test_names_are_those_of_the_spectra(tmp_path: Path) -> None:
    columns = survey.allstar_columns(4)
    columns["APOGEE_ID"] = np.array([f"b'{survey.STAR}'", survey.STAR, f" {survey.STAR.lower()} ", ""])
    ours = read_allstar(survey.write_allstar(tmp_path / "a.fits", columns))
    star = read_aspcapstar(survey.write_aspcapstar(tmp_path / "b.fits"))
    assert ours["star_id"].tolist() == [star.star_id] * 3 + [""]


def test_missing_snr_and_positions(tmp_path: Path) -> None:
    columns = survey.allstar_columns(2)
    columns["SNR"][0] = columns["RA"][0] = -9999.0
    ours = read_allstar(survey.write_allstar(tmp_path / "a.fits", columns))
    assert np.isnan(ours["snr"]).tolist() == np.isnan(ours["ra"]).tolist() == [True, False]


def test_flags() -> None:
    assert STAR_BAD == 8388608
    assert (STARFLAG["VERY_BRIGHT_NEIGHBOR"], STARFLAG["BAD_RV_COMBINATION"], ASPCAPFLAG["NO_ASPCAP_RESULT"]) == (
        3,
        18,
        31,
    )
    for table in (STARFLAG, ASPCAPFLAG):
        assert len(set(table.values())) == len(table)
        assert list(table.values()) == sorted(table.values())


@pytest.mark.parametrize("packed", [False, True])
def test_chunks_are_the_whole(tmp_path: Path, packed: bool) -> None:
    path = survey.write_allstar(tmp_path / "a.fits", survey.allstar_columns(101))
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    whole = read_allstar(path, extra=("PARAMFLAG",))
    chunks = list(iterate_allstar(path, rows_per_chunk=10, extra=("PARAMFLAG",)))
    assert [chunk["ra"].size for chunk in chunks] == [10] * 10 + [1]
    assert whole["PARAMFLAG"].shape == (101, 9)
    for name, column in whole.items():
        np.testing.assert_array_equal(np.concatenate([chunk[name] for chunk in chunks]), column)


def test_memory_holds_one_chunk(tmp_path: Path) -> None:
    n_stars = 20_000
    columns = survey.allstar_columns(n_stars) | {"PADDING": np.zeros((n_stars, 100))}
    path = survey.write_allstar(tmp_path / "a.fits", columns)
    assert path.stat().st_size > 20e6
    del columns
    tracemalloc.start()
    rows = sum(chunk["ra"].size for chunk in iterate_allstar(path, rows_per_chunk=500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == n_stars
    assert peak < 4e6


def test_astra_gives_x_over_h(tmp_path: Path) -> None:
    ours = read_allstar(survey.write_astra_allstar(tmp_path / "a.fits", 3))
    np.testing.assert_allclose(ours["mg_fe"], 0.2, atol=1e-6)  # [Mg/H] = -0.3, [Fe/H] = -0.5
    np.testing.assert_allclose(ours["mg_fe_err"], 0.05, rtol=1e-6)  # 0.03 and 0.04 in quadrature
    assert ours["sdss_id"].tolist() == ["103020000", "103020001", "103020002"]
    assert ours["star_id"][0] == "2M00000000-0000000"


def test_astra_stars_without_2mass_name_and_without_iron(tmp_path: Path) -> None:
    names = np.array(["", "2M00000001-0000001"])
    iron = np.array([-9999.0, -0.5], dtype=np.float32)
    path = survey.write_astra_allstar(tmp_path / "a.fits", 2, {"sdss4_apogee_id": names, "fe_h": iron})
    ours = read_allstar(path)
    assert ours["star_id"].tolist() == ["SDSS103020000", "2M00000001-0000001"]
    assert np.isnan(ours["mg_fe"]).tolist() == [True, False]  # [Mg/H] alone says nothing about [Mg/Fe]
    assert np.isnan(ours["mg_fe_err"]).tolist() == [True, False]


def test_other_tables(tmp_path: Path) -> None:
    columns = survey.allstar_columns(2)
    del columns["MG_FE"]
    with pytest.raises(ValueError, match=r"a\.fits, HDU 1: needs a column MG_FE for mg_fe \[dex\]"):
        read_allstar(survey.write_allstar(tmp_path / "a.fits", columns))
    with pytest.raises(ValueError, match=r"b\.fits: needs a table with APOGEE_ID or sdss_id, TEFF and LOGG"):
        read_allstar(survey.write_aspcapstar(tmp_path / "b.fits"))
    with pytest.raises(ValueError, match=r"c\.fits: the catalogue has no rows"):
        read_allstar(survey.write_allstar(tmp_path / "c.fits", survey.allstar_columns(0)))
    with pytest.raises(ValueError, match="HDU 1: needs a column 'NOPE'"):
        read_allstar(survey.write_allstar(tmp_path / "d.fits"), extra=("NOPE",))


@pytest.mark.parametrize("keep", [0, 1000, 2880 + 400, 2880 * 5])
def test_cut_catalogues(tmp_path: Path, keep: int) -> None:
    path = survey.write_allstar(tmp_path / "a.fits", survey.allstar_columns(500))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.fits, HDU \d: needs a complete FITS"):
        read_allstar(path)
    with pytest.raises(FileNotFoundError):
        read_allstar(tmp_path / "absent.fits")
