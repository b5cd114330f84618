"""Cuts: applied in order, counted, and reported with their reasons; and what they leave of the real libraries."""

import collections
import json
import time
from pathlib import Path

import numpy as np
import pytest

from spectrafm_hf.builders import libraries
from spectrafm_hf.builders.libraries import load_library
from spectrafm_hf.builders.selection import (
    APOGEE_DR17_CUTS,
    FGK,
    MILES_CUTS,
    STAR_BAD,
    CatalogueCut,
    Cut,
    best_of_each,
    few_bad_pixels,
    has_labels,
    select,
    select_rows,
)
from spectrafm_hf.builders.splits import split_of, system_of
from spectrafm_hf.readers.mangadap_wheel import LibrariesUnavailableError
from spectrafm_hf.spectra import Spectrum

SUN_LIKE = {"teff": 5772.0, "logg": 4.44, "fe_h": 0.0}


def star(name: str = "HD1", labels: dict[str, float] | None = None, bad: slice | None = None) -> Spectrum:
    """3,541-7,409 Angstrom in steps of 0.9, as MILES."""
    wavelength = 3541.5 + 0.9 * np.arange(4300)
    bad_pixel = np.zeros(4300, dtype=bool)
    if bad is not None:
        bad_pixel[bad] = True
    return Spectrum(wavelength, np.ones(4300), bad_pixel, name, "miles", labels=SUN_LIKE if labels is None else labels)


def test_cuts_are_applied_in_order_and_counted_once() -> None:
    spectra = [star(f"HD{number}") for number in range(1, 11)]
    cuts = [
        Cut("even", lambda s: int(s.star_id[2:]) % 2 == 0, "odd numbers go"),
        Cut("small", lambda s: int(s.star_id[2:]) < 7, "7 and above go"),
    ]
    kept, report = select(spectra, cuts)
    assert [s.star_id for s in kept] == ["HD2", "HD4", "HD6"]
    assert [(c.name, c.removed, c.remaining) for c in report.cuts] == [("even", 5, 5), ("small", 2, 3)]
    assert (report.offered, report.kept) == (10, 3)
    _, reversed_report = select(spectra, cuts[::-1])
    assert [c.removed for c in reversed_report.cuts] == [4, 3]  # the same stars go, at other cuts


def test_report_as_table_and_as_json() -> None:
    _, report = select([star(), star("HD2", {"teff": 9000.0})], MILES_CUTS)
    lines = str(report).splitlines()
    assert lines[0].split() == ["cut", "removed", "remaining", "reason"]
    assert lines[1].split() == ["offered", "2"]
    assert lines[2].startswith("all_labels        1          1  teff, logg, fe_h")
    assert len({line.index(column) for line, column in zip(lines[2:], ("teff", "3700", "less"), strict=True)}) == 1
    record = json.loads(json.dumps(report.to_dict()))
    assert record["offered"] == 2
    assert record["kept"] == 1
    assert record["cuts"][0] == {
        "name": "all_labels",
        "reason": "teff, logg, fe_h all published",
        "removed": 1,
        "remaining": 1,
    }


def test_no_cuts_no_loss() -> None:
    kept, report = select([star()], [])
    assert len(kept) == report.kept == report.offered == 1


@pytest.mark.parametrize(
    ("labels", "keeps"),
    [
        (SUN_LIKE, True),
        ({"teff": 5772.0, "logg": 4.44}, False),
        (SUN_LIKE | {"fe_h": float("nan")}, False),
        ({}, False),
    ],
)
def test_all_labels(labels: dict[str, float], keeps: bool) -> None:
    assert has_labels("teff", "logg", "fe_h").keep(star(labels=labels)) is keeps


@pytest.mark.parametrize(
    ("teff", "keeps"), [(3699.0, False), (3700.0, True), (6900.0, True), (6901.0, False), (float("nan"), False)]
)
def test_fgk_includes_its_ends(teff: float, keeps: bool) -> None:
    assert FGK.keep(star(labels={"teff": teff})) is keeps
    assert not FGK.keep(star(labels={}))


def test_few_bad_pixels_counts_inside_the_range() -> None:
    cut = few_bad_pixels(3600.0, 7400.0, 0.05)  # 4,222 pixels, so 211 may be bad
    assert cut.keep(star(bad=slice(0, 60)))  # all blueward of 3600
    assert cut.keep(star(bad=slice(1000, 1200)))
    assert not cut.keep(star(bad=slice(1000, 1230)))


def test_pixels_that_are_not_there_are_bad() -> None:
    whole = star()
    half = Spectrum(whole.wavelength[:2000], whole.flux[:2000], whole.bad_pixel[:2000], "HD1", "miles")
    assert not few_bad_pixels(3600.0, 7400.0, 0.05).keep(half)
    assert few_bad_pixels(3600.0, 5000.0, 0.05).keep(half)


@pytest.fixture
def small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    spectra = [star(f"HD{number}") for number in range(1, 101)] + [star("HD101", {"teff": 9000.0})]
    monkeypatch.setattr(libraries, "fetch_libraries", lambda cache_dir: cache_dir)
    monkeypatch.setattr(libraries, "_READERS", {"miles": (lambda folder: spectra, MILES_CUTS)})


@pytest.mark.usefixtures("small_library")
def test_library_splits_share_no_star(tmp_path: Path) -> None:
    library = load_library("miles", cache_dir=tmp_path)
    names = {split: {s.star_id for s in library.split(split)} for split in ("train", "validation", "test")}
    assert sum(len(stars) for stars in names.values()) == len(set.union(*names.values())) == library.report.kept == 100
    assert all(split_of(star_id) == split for split, stars in names.items() for star_id in stars)
    assert {s.star_id for s in load_library("miles", "test", tmp_path).spectra} == names["test"]
    assert load_library("miles", cache_dir=tmp_path, cuts=()).report.kept == 101
    assert "100 spectra" in str(library)


@pytest.mark.usefixtures("small_library")
def test_unknown_library_or_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="library must be one of miles, got 'mlies'"):
        load_library("mlies", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        load_library("miles", "dev", tmp_path)  # type: ignore[arg-type]


@pytest.mark.network
def test_real_libraries() -> None:
    """Facts about the published files; 121 MB the first time."""
    try:
        miles, stelib = load_library("miles", cuts=()), load_library("stelib", cuts=())
    except LibrariesUnavailableError as error:
        pytest.skip(str(error))
    assert (len(miles.spectra), len(stelib.spectra)) == (984, 255)

    # No two stars of a library fall onto one name; HD 53929 was observed from both of STELIB's sites.
    assert len({s.star_id for s in miles.spectra}) == 984
    assert [n for n, count in collections.Counter(s.star_id for s in stelib.spectra).items() if count > 1] == [
        "HD53929"
    ]

    # 118 stars are in both: the star of HD 48682 A in STELIB is HD 48682 in MILES.
    common = {system_of(s.star_id) for s in miles.spectra} & {system_of(s.star_id) for s in stelib.spectra}
    assert len(common) == 118
    assert {"HD9138", "HD48682", "HD84937"} <= common

    miles, stelib = load_library("miles"), load_library("stelib")
    assert [(c.name, c.removed) for c in miles.report.cuts] == [("all_labels", 40), ("fgk", 177), ("bad_pixels", 0)]
    assert (miles.report.kept, stelib.report.kept) == (767, 151)
    assert [len(miles.split(split)) for split in ("train", "validation", "test")] == [461, 93, 213]
    assert sum(s.labels["fe_h"] < -1 for s in miles.split("test")) == 42  # at least 40 are needed for a verdict

    # No star that trains in one library is tested in the other.
    trained = {system_of(s.star_id) for s in miles.split("train")}
    assert not trained & {system_of(s.star_id) for s in stelib.split("test")}

    # Rest frame, vacuum: H alpha of an F star lies at 6564.6 Angstrom to 0.5; in air it would lie at 6562.8.
    (f_star,) = (s for s in miles.spectra if s.star_id == "HD84937")
    near = (f_star.wavelength > 6550) & (f_star.wavelength < 6580)
    depth = 1 - f_star.flux[near] / f_star.flux[near].max()
    assert np.average(f_star.wavelength[near], weights=depth**2) == pytest.approx(6564.6, abs=0.5)


def catalogue() -> dict[str, np.ndarray]:
    """Ten rows; five fall, each at the first cut it fails; `b` stands there twice."""
    return {
        "object_id": np.array(["a", "b", "b", "c", "d", "e", "f", "g", "h", "i"]),
        "snr": np.array([300, 210, 220, 200, np.nan, 300, 300, 300, 300, 300.0]),
        "starflag": np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 0]),
        "aspcapflag": np.array([0, 0, 0, 0, 0, STAR_BAD, STAR_BAD | 1, 1 << 7, 0, 0]),
        "vscatter": np.array([0.1, 0.2, 0.3, 0, 0, 0, 0, 0.99, 1.0, np.nan]),
    }


def test_catalogue_cuts_are_those_of_the_paper_and_counted() -> None:
    rows, report = select_rows(catalogue(), APOGEE_DR17_CUTS)
    assert rows.tolist() == [0, 2, 7]
    assert [(cut.name, cut.removed, cut.remaining) for cut in report.cuts] == [
        ("snr", 2, 8),  # 200 is not above 200, and NaN neither
        ("starflag", 1, 7),
        ("star_bad", 1, 6),  # a warning bit stays
        ("vscatter", 2, 4),
        ("duplicates", 1, 3),
    ]
    assert (report.offered, report.kept) == (10, 3)
    assert STAR_BAD == 2**23


def test_catalogue_cuts_are_fast_enough_for_a_survey() -> None:
    rng = np.random.default_rng(0)
    n = 734_000
    stars = {
        "object_id": rng.integers(0, 650_000, n).astype("U18"),
        "snr": rng.uniform(0, 500, n),
        "starflag": rng.integers(0, 2, n),
        "aspcapflag": np.zeros(n, dtype=np.int64),
        "vscatter": rng.uniform(0, 1.2, n),
    }
    start = time.perf_counter()
    rows, report = select_rows(stars, APOGEE_DR17_CUTS)
    assert time.perf_counter() - start < 20  # about 1.5 s
    assert len(np.unique(stars["object_id"][rows])) == len(rows) == report.kept


def test_catalogue_cut_that_cannot_work_is_named() -> None:
    with pytest.raises(ValueError, match="the cut snr needs the column snr; the catalogue has object_id"):
        select_rows({"object_id": np.array(["a"])}, APOGEE_DR17_CUTS)
    with pytest.raises(ValueError, match="the cut odd must answer with 10 booleans, got float64"):
        select_rows(catalogue(), [CatalogueCut("odd", lambda stars: stars["snr"], "a number is no answer")])


def test_best_of_each_takes_the_first_of_equals_and_never_nan() -> None:
    names = np.array(["a", "b", "a", "b", "c", "a"])
    best = best_of_each(names, np.array([1.0, np.nan, 3.0, 2.0, np.nan, 3.0]))
    assert best.tolist() == [False, False, True, True, True, False]
