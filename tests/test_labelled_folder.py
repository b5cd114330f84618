"""Your own spectra: a folder and a table in any format; bad files are told, never hidden."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from datasets import load_dataset
from huggingface_hub import DatasetCard
from survey_files import apogee_arrays, position_of, write_aspcapstar

from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.grids import read_wavelength_grid
from spectrafm_hf.builders.labelled_folder import FolderConfig, LabelledFolder
from spectrafm_hf.readers.label_table import read_label_table

NAMES = [f"2M{number:02d}000000+{number:02d}00000" for number in range(12)]


@pytest.fixture
def folder(tmp_path):
    """Twelve stars on one grid; the table has labels under APOGEE's names and columns nobody asked for."""
    place = tmp_path / "spectra"
    place.mkdir()
    for number, name in enumerate(NAMES):
        flux, error, synthetic = apogee_arrays(seed=number)
        write_aspcapstar(place / f"star{number}.fits", name, flux, error, synthetic)
    return place


def columns():
    return {
        "spectrum": [f"star{number}.fits" for number in range(len(NAMES))],
        "APOGEE_ID": NAMES,
        "TEFF": [4000.0 + 10 * number for number in range(len(NAMES))],
        "FE_H": [-9999.0 if number == 3 else -0.1 * number for number in range(len(NAMES))],
        "fe_h_err": [0.0 if number == 4 else 0.02 for number in range(len(NAMES))],
        "RA": [position_of(name)[0] for name in NAMES],
        "DEC": [position_of(name)[1] for name in NAMES],
        "remark": ["" for _ in NAMES],
    }


def write_table(path):
    table = columns()
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(table)
            rows.writerows(zip(*table.values(), strict=True))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    else:
        Table(table).write(path, **({"format": "ascii.ecsv"} if path.suffix == ".ecsv" else {}))
    return path


def config(folder, table, **changes):
    return FolderConfig(folder=str(folder), table=str(table), file_column="spectrum", **changes)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "fits", "ecsv"])
def test_any_table_gives_the_same_rows(folder, tmp_path, suffix):
    table = write_table(tmp_path / f"stars.{suffix}")
    built = build_dataset([config(folder, table)], tmp_path / "out", progress=False)
    rows = {
        row["object_id"]: row
        for split in built.plans["spectra"].splits
        for row in load_dataset(str(tmp_path / "out"), "spectra", split=split, streaming=True)
    }
    assert sorted(rows) == NAMES
    assert read_wavelength_grid(tmp_path / "out").shape == (7514,)  # one grid for all, so it is not repeated
    assert "wavelength" not in rows[NAMES[0]]
    assert [rows[name]["teff"] for name in NAMES[:3]] == [4000.0, 4010.0, 4020.0]
    assert (rows[NAMES[3]]["fe_h"], rows[NAMES[3]]["fe_h_err"]) == (None, None)
    assert rows[NAMES[4]]["fe_h"] == pytest.approx(-0.4)
    assert rows[NAMES[4]]["fe_h_err"] is None
    assert rows[NAMES[5]]["ra"] == pytest.approx(position_of(NAMES[5])[0])
    assert rows[NAMES[0]]["logg"] is None
    flux, _, _ = apogee_arrays(seed=2)
    detectors = np.r_[246:3274, 3585:6080, 6344:8335]
    row = rows[NAMES[2]]
    assert np.allclose(np.array(row["flux"]) * row["flux_scale"], flux[detectors], atol=1e-6)
    assert row["file"] == "star2.fits"


def test_bad_files_are_told_and_left_out(folder, tmp_path):
    (folder / "star1.fits").write_bytes((folder / "star1.fits").read_bytes()[:9000])
    (folder / "star2.fits").unlink()
    (folder / "star5.fits").write_text("<html>404</html>")
    built = build_dataset([config(folder, write_table(tmp_path / "stars.csv"))], tmp_path / "out", progress=False)
    assert sorted(one.file for _, one in built.skipped) == ["star1.fits", "star2.fits", "star5.fits"]
    with (tmp_path / "out/skipped.csv").open() as stream:
        told = {row["file"]: row["reason"] for row in csv.DictReader(stream)}
    assert "truncated" in told["star1.fits"]
    assert "no file star2.fits" in told["star2.fits"]
    assert not any(str(tmp_path) in reason for reason in told.values())
    card = (tmp_path / "out/README.md").read_text()
    assert "3 inputs could not be used" in card
    assert "star5.fits" in card
    assert sum(built.rows("spectra", split) for split in built.plans["spectra"].splits) == 9


def linear(path, first, n_pixels, name, scale=1e-14):
    hdu = fits.PrimaryHDU((scale * np.linspace(1, 2, n_pixels)).astype(np.float32))
    words = {"CRVAL1": first, "CDELT1": 1.0, "CRPIX1": 1.0, "TEFF": 5000.0, "LOG_G": 4.0, "FE_H": 0.0}
    hdu.header.update(words)
    hdu.writeto(path)
    return name


def test_other_pixels_make_rows_bring_their_own(tmp_path):
    place = tmp_path / "spectra"
    place.mkdir()
    with (tmp_path / "stars.csv").open("w") as stream:
        stream.write("file,star,teff,snr\n")
        for number in range(6):
            file = f"STELIB_v3.2_HD{number + 1:06d}.fits"
            linear(place / file, 4000.0 + number, 800 + number, f"HD{number + 1}")
            stream.write(f"{file},HD {number + 1},5000,{'nan' if number else 50}\n")
    told = FolderConfig(folder=str(place), table=str(tmp_path / "stars.csv"), pretty_name="Mine", license="cc-by-4.0")
    built = build_dataset([told], tmp_path / "out", progress=False)
    assert built.plans["spectra"].grid is None
    assert read_wavelength_grid(tmp_path / "out") is None
    rows = [row for rows in LabelledFolder(**vars_of(told)).as_streaming_dataset().values() for row in rows]
    assert sorted(len(row["wavelength"]) for row in rows) == list(range(800, 806))
    assert all(len(row["flux"]) == len(row["wavelength"]) for row in rows)
    assert sorted(row["object_id"] for row in rows) == [f"HD{number}" for number in range(1, 7)]
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert (card.data.license, card.data.pretty_name) == ("cc-by-4.0", "Mine")


def vars_of(told):
    return {name: value for name, value in told.settings().items() if name != "name"} | {
        "folder": told.folder,
        "table": told.table,
    }


def test_what_is_needed_is_said(folder, tmp_path):
    table = write_table(tmp_path / "stars.csv")
    with pytest.raises(ValueError, match=r"needs a column of file names: file, filename.* Name it with --file-column"):
        FolderConfig(folder=str(folder), table=str(table)).plan()
    with pytest.raises(ValueError, match=r"star names: source_id; it has spectrum, APOGEE_ID.* --id-column"):
        config(folder, table, id_column="source_id").plan()
    with pytest.raises(FileNotFoundError, match="no folder at"):
        config(tmp_path / "nowhere", table).plan()
    (tmp_path / "few.csv").write_text("spectrum,name,colour\nstar0.fits,HD1,blue\n")
    with pytest.raises(ValueError, match=r"no label we know: columns may be called teff or TEFF \[K\]"):
        config(folder, tmp_path / "few.csv").plan()
    (tmp_path / "blank.csv").write_text("spectrum,name,teff,FE_H\nstar0.fits,HD1,,-9999\n")
    needed = (
        r"not one usable value in any row: needed are numbers of teff .* to .* K, fe_h .* dex. A star may lack some"
    )
    with pytest.raises(ValueError, match=needed):
        config(folder, tmp_path / "blank.csv").plan()
    (tmp_path / "none.csv").write_text("spectrum,name,teff\nnowhere.fits,HD1,5000\n")
    with pytest.raises(ValueError, match=r"no spectrum in .* can be read .*no file nowhere.fits"):
        config(folder, tmp_path / "none.csv").plan()
    (tmp_path / "empty.csv").write_text("spectrum,name,teff\n")
    with pytest.raises(ValueError, match="has no row"):
        read_label_table(tmp_path / "empty.csv")
    (folder / "star0.fits.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        read_label_table(folder / "star0.fits.xlsx")
    with pytest.raises(FileNotFoundError, match="no table at"):
        read_label_table(tmp_path / "nowhere.csv")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="needs a complete table"):
        read_label_table(tmp_path / "cut.parquet")


def test_masked_values_are_missing(tmp_path):
    table = Table({"name": ["a", "b"], "teff": [5000.0, 1.0], "n": [1, 2], "text": ["x", "y"]}, masked=True)
    for column in ("teff", "n", "text"):
        table[column].mask = [False, True]
    table.write(tmp_path / "t.ecsv", format="ascii.ecsv")
    read = read_label_table(tmp_path / "t.ecsv")
    assert np.isnan(read["teff"]).tolist() == np.isnan(read["n"]).tolist() == [False, True]
    assert read["text"].tolist() == ["x", ""]
