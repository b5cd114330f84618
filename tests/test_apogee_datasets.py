"""APOGEE DR17 from an archive and from MultimodalUniverse: the paper's cuts with known counts, pixels and splits."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from survey_files import allstar_columns, apogee_arrays, position_of, write_allstar, write_aspcapstar

from spectrafm_hf.builders import apogee_dr17, mmu_apogee_dr17
from spectrafm_hf.builders.apogee_dr17 import CATALOGUE_FILE, SPECTRUM_FILE, ApogeeDr17, ApogeeDr17Config, shuffled
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.grids import read_wavelength_grid
from spectrafm_hf.builders.mmu_apogee_dr17 import MmuApogeeDr17Config, catalogue_files
from spectrafm_hf.builders.rows import FLUX
from spectrafm_hf.builders.selection import STAR_BAD
from spectrafm_hf.builders.splits import split_of
from spectrafm_hf.labels import LABELS
from spectrafm_hf.spectra import apogee_wavelength

N_STARS = 24
REMOVED = {"snr": 3, "starflag": 2, "star_bad": 1, "vscatter": 2, "duplicates": 2}
"""How many rows of the catalogue below fail each cut first."""


@pytest.fixture(autouse=True)
def forget():
    apogee_dr17._selected.cache_clear()
    mmu_apogee_dr17._selected.cache_clear()


def catalogue():
    columns = allstar_columns(N_STARS)
    names = np.array([f"2M{(i * 7) % 24:02d}{i:02d}0000+{i:02d}00000" for i in range(N_STARS)])
    names[20], names[21] = names[10], names[11]  # two stars twice
    columns["APOGEE_ID"] = names
    columns["RA"], columns["DEC"] = np.array([position_of(name) for name in names]).T
    columns["SNR"] = (300 + np.arange(N_STARS)).astype(np.float32)
    columns["SNR"][[0, 1]], columns["SNR"][2] = 199.0, np.nan
    columns["STARFLAG"][[0, 3]], columns["STARFLAG"][4] = 1, 1 << 16  # row 0 falls at the first cut it fails
    columns["ASPCAPFLAG"][5], columns["ASPCAPFLAG"][6] = STAR_BAD, 1 << 7  # a warning stays
    columns["VSCATTER"][7], columns["VSCATTER"][8] = 1.0, np.nan
    columns["SNR"][20] = 250.0  # so the first of the pair (row 10) is the best; of the other the second (row 21)
    columns["MG_FE"][12], columns["MG_FE_ERR"][12] = np.nan, 0.02
    columns["O_FE_ERR"][13] = 0.0
    return columns


def spectra_of(row):
    flux, error, synthetic = apogee_arrays(seed=row)
    flux[300], flux[301], error[302] = 1.5, 0.01, 10.0
    return flux, error, synthetic


@pytest.fixture
def archive(tmp_path):
    columns = catalogue()
    root = tmp_path / "sas"
    (root / CATALOGUE_FILE).parent.mkdir(parents=True)
    write_allstar(root / CATALOGUE_FILE, columns)
    for row in range(N_STARS):
        place = SPECTRUM_FILE.format(
            telescope=columns["TELESCOPE"][row], field=columns["FIELD"][row], apogee_id=columns["APOGEE_ID"][row]
        )
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        flux, error, synthetic = spectra_of(row)
        write_aspcapstar(root / place, columns["APOGEE_ID"][row], flux, error, synthetic, primary={"FIELD": "000+02"})
    return root


KEPT = [6, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23]


def configs(archive, **changes):
    return [ApogeeDr17Config(name=name, archive=str(archive), **changes) for name in ("observed", "synthetic")]


def test_cuts_rows_pixels_and_splits(archive, tmp_path):
    built = build_dataset(configs(archive), tmp_path / "out", progress=False)
    report = built.plans["observed"].report
    assert {cut.name: cut.removed for cut in report.cuts} == REMOVED
    assert (report.offered, report.kept) == (N_STARS, len(KEPT))
    columns = catalogue()
    names = {columns["APOGEE_ID"][row]: row for row in KEPT}
    grid = read_wavelength_grid(tmp_path / "out")
    assert np.array_equal(grid, apogee_wavelength())
    seen = {}
    for config in ("observed", "synthetic"):
        for split in built.plans[config].splits:
            for row in load_dataset(str(tmp_path / "out"), config, split=split, streaming=True):
                assert split_of(row["object_id"]) == split
                seen[config, row["object_id"]] = row
    assert len(seen) == 2 * len(KEPT)
    detectors = np.r_[246:3274, 3585:6080, 6344:8335]
    for (config, name), row in seen.items():
        number = names[name]
        assert row["snr"] == columns["SNR"][number]
        assert row["teff"] == pytest.approx(columns["TEFF"][number], rel=1e-6)
        assert row["ra"] == pytest.approx(columns["RA"][number])
        assert (row["survey"], row["telescope"], row["field"]) == ("apogee", "apo25m", "000+02")
        # The two best rows of the doubled stars share files with the others; the file written last counts.
        written = {10: 20}.get(number, number)
        flux, error, synthetic = (array[detectors] for array in spectra_of(written))
        bad = np.array(row["bad_pixel"])
        if config == "observed":
            assert bad[54:57].tolist() == [True, True, True]  # above 1.2, below 0.05, not observed
            good = ~bad
            assert np.allclose(np.array(row["flux"])[good], flux[good], atol=1e-6)
            assert np.allclose(np.array(row["ivar"])[good], error[good] ** -2.0, rtol=1e-5)
            assert not np.array(row["ivar"])[bad].any()
        else:
            assert not bad.any()
            assert np.allclose(row["flux"], synthetic, atol=1e-6)
            assert row["ivar"] is None
    missing = seen["observed", columns["APOGEE_ID"][12]]
    assert (missing["mg_fe"], missing["mg_fe_err"]) == (None, None)
    assert seen["observed", columns["APOGEE_ID"][13]]["o_fe_err"] is None
    card = (tmp_path / "out/README.md").read_text()
    assert "| vscatter | 2 | 16 | VSCATTER < 1 km/s: drops binaries |" in card
    assert str(tmp_path) not in card + (tmp_path / "out/manifest.json").read_text()


def test_damaged_and_absent_files_are_told_and_left_out(archive, tmp_path):
    files = sorted(archive.rglob("aspcapStar*.fits"))
    kept = {catalogue()["APOGEE_ID"][row] for row in KEPT}
    of_kept = [file for file in files if file.stem.removeprefix("aspcapStar-dr17-") in kept]
    of_kept[0].write_bytes(of_kept[0].read_bytes()[:5000])
    of_kept[1].unlink()
    of_kept[2].write_bytes(b"not FITS")
    built = build_dataset(configs(archive), tmp_path / "out", progress=False)
    assert len(built.skipped) == 6  # three files, two configs
    assert {config for config, _ in built.skipped} == {"observed", "synthetic"}
    table = (tmp_path / "out/skipped.csv").read_text()
    assert all(file.name in table for file in of_kept[:3])
    assert str(tmp_path) not in table
    assert sum(built.rows("observed", split) for split in built.plans["observed"].splits) == len(KEPT) - 3
    assert "6 inputs could not be used" in (tmp_path / "out/README.md").read_text()


def test_paper_split_is_80_to_20_and_says_so(archive, tmp_path):
    built = build_dataset(configs(archive, split_rule="paper", seed=1), tmp_path / "out", progress=False)
    assert dict(built.plans["observed"].rows) == {"train": 11, "test": 3}
    assert "permutation is not published" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(ValueError, match="split rule must be 'name' or 'paper'"):
        ApogeeDr17Config(archive=str(archive), split_rule="random").plan()


def test_stream_without_building(archive):
    stream = ApogeeDr17(config_name="observed", archive=str(archive), n=5).as_streaming_dataset()
    rows = [row for split in stream.values() for row in split]
    assert len(rows) == 5
    assert len(rows[0][FLUX.name]) == 7514


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no archive at"):
        ApogeeDr17Config(archive=str(tmp_path / "nowhere")).plan()
    with pytest.raises(FileNotFoundError, match="allStar-dr17-synspec_rev1"):
        ApogeeDr17Config(archive=str(tmp_path)).plan()
    with pytest.raises(ValueError, match="observed and synthetic, got 'raw'"):
        ApogeeDr17Config(name="raw", archive=str(tmp_path)).plan()


def test_order_is_a_hash_of_the_name():
    names = np.array([f"2M{number:08d}" for number in range(1000)])
    order = shuffled(names)
    assert sorted(order) == list(range(1000))
    again = np.random.default_rng(0).permutation(1000)
    assert names[again][shuffled(names[again])].tolist() == names[order].tolist()
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


# ---------------------------------------------------------------- MultimodalUniverse


def write_hats(root, prefix="pseudo_continuum_", collection=True, drop=(), scale=1.0):
    """A HATS collection: two files of the main table, one of a margin that repeats stars, as LSDB lays it out."""
    columns = catalogue()
    main = root / "main" if collection else root
    if collection:
        root.mkdir(parents=True, exist_ok=True)
        (root / "collection.properties").write_text(
            "#HATS Collection\nobs_collection=apogee\nhats_primary_table_url=main\nall_margins=margin\n"
        )
    pieces = {
        "dataset/Norder=0/Dir=0/Npix=1.parquet": range(14),
        "dataset/Norder=1/Dir=0/Npix=9.parquet": range(14, 24),
    }
    margin = {"dataset/Norder=0/Dir=0/Npix=1.parquet": range(3)}
    folders = [(main, pieces), (root / "margin", margin)] if collection else [(main, pieces)]
    for folder, files in folders:
        for name, rows in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(mmu_table(columns, rows, prefix, drop, scale), path, row_group_size=8)
    pq.write_table(pa.table({"x": [1]}), main / "dataset/_metadata.parquet")
    return root


def mmu_table(columns, rows, prefix, drop, scale):
    rows = list(rows)
    detectors = np.r_[246:3274, 3585:6080, 6344:8335]
    arrays = [[array[detectors].astype(np.float32) for array in spectra_of(row)] for row in rows]
    mask = np.zeros((len(rows), 7514), dtype=bool)
    mask[:, 100] = True
    with np.errstate(divide="ignore"):
        spectrum = {
            f"{prefix}flux": [one[0] * scale for one in arrays],
            f"{prefix}ivar": [one[1] ** -2.0 for one in arrays],
            "lambda": [apogee_wavelength().astype(np.float32)] * len(rows),
            "mask": list(mask),
        }
    if prefix:
        spectrum |= {"flux": [1000 * one[0] for one in arrays], "ivar": spectrum[f"{prefix}ivar"]}
    lists = [
        pa.array(value, pa.list_(pa.bool_() if name == "mask" else pa.float32())) for name, value in spectrum.items()
    ]
    table = {
        "_healpix_29": pa.array(rows, pa.int64()),
        "spectrum": pa.StructArray.from_arrays(lists, names=list(spectrum)),
        "object_id": pa.array(columns["APOGEE_ID"][rows].tolist()),
        "nvisits": pa.array(columns["NVISITS"][rows]),
    }
    for name in ("RA", "DEC", "TELESCOPE", "FIELD", "SNR", "STARFLAG", "ASPCAPFLAG", "VSCATTER"):
        values = columns[name][rows]
        table[name.lower()] = pa.array(values.tolist() if values.dtype.kind == "U" else values)
    for label in LABELS:
        for suffix in ("", "_ERR"):
            table[(label.name + suffix).lower()] = pa.array(
                columns[label.apogee_column + suffix][rows], from_pandas=True
            )
    return pa.table({name: value for name, value in table.items() if name not in drop})


@pytest.mark.parametrize("collection", [True, False])
def test_mmu_gives_the_same_stars(archive, tmp_path, collection):
    place = write_hats(tmp_path / "hats", collection=collection)
    assert len(catalogue_files(str(place))) == 2
    built = build_dataset([MmuApogeeDr17Config(catalogue=str(place))], tmp_path / "mmu", progress=False)
    assert {cut.name: cut.removed for cut in built.plans["observed"].report.cuts} == REMOVED
    ours = build_dataset(configs(archive)[:1], tmp_path / "sdss", progress=False)
    for split in ours.plans["observed"].splits:
        rows = [
            {row["object_id"]: row for row in load_dataset(str(folder), "observed", split=split, streaming=True)}
            for folder in (tmp_path / "mmu", tmp_path / "sdss")
        ]
        assert rows[0].keys() == rows[1].keys()
        for name, row in rows[0].items():
            other = rows[1][name]
            assert row["bad_pixel"][100]
            assert {key for key in row if row[key] != other[key]} <= {"flux", "ivar", "bad_pixel"}
            if name != catalogue()["APOGEE_ID"][10]:  # its file holds the other spectrum
                good = ~np.array(row["bad_pixel"])
                assert np.array_equal(np.array(row["flux"])[good], np.array(other["flux"])[good])
                assert np.allclose(np.array(row["ivar"])[good], np.array(other["ivar"])[good], rtol=1e-5)


def test_mmu_with_plain_names_and_what_is_refused(tmp_path):
    plain = build_dataset(
        [MmuApogeeDr17Config(catalogue=str(write_hats(tmp_path / "plain", prefix="")))], tmp_path / "a", progress=False
    )
    assert sum(plain.rows("observed", split) for split in plain.plans["observed"].splits) == len(KEPT)
    raw = MmuApogeeDr17Config(catalogue=str(write_hats(tmp_path / "raw", prefix="", scale=500.0)))
    with pytest.raises(ValueError, match="must be continuum-normalised"):
        build_dataset([raw], tmp_path / "b", progress=False)
    short = MmuApogeeDr17Config(catalogue=str(write_hats(tmp_path / "short", drop=("vscatter",))))
    with pytest.raises(ValueError, match="lacks the columns vscatter"):
        short.plan()
    with pytest.raises(FileNotFoundError, match="no Parquet file of a HATS catalogue"):
        catalogue_files(str(tmp_path / "sas"))
