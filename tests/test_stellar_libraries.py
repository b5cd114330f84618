"""MILES shares one grid, STELIB does not; rows are those of `load_library`."""

import numpy as np
import pytest
from conftest import fake_spectra
from datasets import load_dataset

from spectrafm_hf.builders import stellar_libraries
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.grids import read_grid, read_wavelength_grid
from spectrafm_hf.builders.libraries import Library, load_library
from spectrafm_hf.builders.selection import ALL_LABELS, select
from spectrafm_hf.builders.stellar_libraries import Miles, MilesConfig, StelibConfig
from spectrafm_hf.spectra import Spectrum


@pytest.fixture
def libraries(monkeypatch):
    miles = fake_spectra(60)
    stelib = [
        Spectrum(
            star.wavelength[number:] + 0.1 * number, star.flux[number:], star.bad_pixel[number:], star.star_id,
            survey="stelib",
            fwhm=3.1, labels=star.labels, meta={"file": f"{number}.fits"},
        )
        for number, star in enumerate(miles)
    ]  # fmt: skip

    def load(name, cache_dir=None):
        return Library(name, *select(miles if name == "miles" else stelib, (ALL_LABELS,)))

    stellar_libraries._library.cache_clear()
    monkeypatch.setattr(stellar_libraries, "load_library", load)
    yield {"miles": miles, "stelib": stelib}
    stellar_libraries._library.cache_clear()


def rows_of(built, config):
    splits = built.plans[config].splits
    return [
        (split, row) for split in splits for row in load_dataset(str(built.folder), config, split=split, streaming=True)
    ]


def test_miles_shares_its_grid(libraries, tmp_path):
    built = build_dataset([MilesConfig()], tmp_path, progress=False)
    stars = {star.star_id: star for star in libraries["miles"]}
    library = Library("miles", libraries["miles"], built.plans["miles"].report)
    assert np.array_equal(read_wavelength_grid(tmp_path), libraries["miles"][0].wavelength)
    assert read_grid(tmp_path).lsf_sigma[0] == pytest.approx(2.5 / 2.3548, rel=1e-4)
    rows = rows_of(built, "miles")
    assert len(rows) == 60
    for split, row in rows:
        star = stars[row["object_id"]]
        assert star in library.split(split)
        assert np.allclose(np.array(row["flux"]) * row["flux_scale"], star.flux, rtol=1e-6)
        assert row["teff"] == pytest.approx(star.labels["teff"], rel=1e-6)
        assert (row["ivar"], row["teff_err"], row["mg_fe"]) == (None, None, None)
    batch = next(load_dataset(str(tmp_path), "miles", split="train", streaming=True).with_format("numpy").iter(8))
    assert batch["flux"].shape == (8, libraries["miles"][0].wavelength.size)
    assert np.isnan(batch["mg_fe"]).all()


def test_stelib_brings_its_wavelengths(libraries, tmp_path):
    built = build_dataset([StelibConfig()], tmp_path, progress=False)
    assert read_wavelength_grid(tmp_path) is None
    stars = {star.star_id: star for star in libraries["stelib"]}
    for _, row in rows_of(built, "stelib"):
        star = stars[row["object_id"]]
        assert np.array_equal(row["wavelength"], star.wavelength)
        assert len(row["flux"]) == len(row["bad_pixel"]) == star.wavelength.size
        assert row["file"] == star.meta["file"]
    assert [config["config_name"] for config in _card(tmp_path).data.configs] == ["stelib"]


def _card(folder):
    from huggingface_hub import DatasetCard

    return DatasetCard.load(folder / "README.md")


def test_streamed_without_building(libraries, tmp_path):
    built = build_dataset([MilesConfig()], tmp_path, progress=False)
    streamed = [(split, row) for split, rows in Miles().as_streaming_dataset().items() for row in rows]
    assert streamed == rows_of(built, "miles")


@pytest.mark.usefixtures("libraries")
def test_no_star_left_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(stellar_libraries, "load_library", lambda name, cache_dir: Library(name, *select([], ())))
    with pytest.raises(ValueError, match="no spectrum of miles passed the cuts"):
        build_dataset([MilesConfig()], tmp_path, progress=False)


@pytest.mark.network
@pytest.mark.parametrize(("name", "config", "stars"), [("miles", MilesConfig, 767), ("stelib", StelibConfig, 151)])
def test_the_real_libraries(tmp_path, name, config, stars):
    """Counts as in the selection reports; flux of a real star comes back as its reader gives it."""
    built = build_dataset([config()], tmp_path, progress=False)
    assert sum(built.rows(name, split) for split in built.plans[name].splits) == stars
    assert not built.skipped
    row = next(iter(load_dataset(str(tmp_path), name, split="test", streaming=True)))
    star = next(one for one in load_library(name, "test").spectra if one.star_id == row["object_id"])
    good = ~star.bad_pixel
    assert np.allclose(np.array(row["flux"])[good] * row["flux_scale"], star.flux[good], rtol=1e-5)
    card = (tmp_path / "README.md").read_text()
    assert f"{stars}" in card
