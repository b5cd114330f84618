"""The model that ships: small, quick to load, and right about synthetic stars that it has not seen."""

import time

import numpy as np
import pytest
from transformers import AutoFeatureExtractor, AutoModel

from spectrafm_hf import shipped
from spectrafm_hf.metrics import MAD_TO_SIGMA
from spectrafm_hf.prediction import Predicted, ask
from spectrafm_hf.recipe import read_recipe, recipe_folder
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSpectra
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.trust import learned_ranges, read_recipe_of

UNSEEN_SEED = 987_654
SUN_LIKE = np.array([5772.0, 4.44, 0.0])


@pytest.fixture(scope="module")
def small():
    return AutoModel.from_pretrained(shipped()).eval(), AutoFeatureExtractor.from_pretrained(shipped())


def read(small, rows):
    model, extractor = small
    return Predicted.of(extractor, *ask(model, extractor, rows, 32)).mean


def test_it_is_small_and_loads_in_a_moment():
    assert (shipped() / "model.safetensors").stat().st_size <= 12e6
    begun = time.process_time()  # others may use the processor, too
    model = AutoModel.from_pretrained(shipped())
    extractor = AutoFeatureExtractor.from_pretrained(shipped())
    assert time.process_time() - begun < 2
    assert list(model.config.label_names) == extractor.label_names == ["teff", "logg", "fe_h", "mg_fe", "o_fe"]
    assert not model.training


def test_it_says_that_it_learned_abundances_in_the_h_band_alone(small):
    """Its optical stars had three labels; calibrated anew, it would say the same."""
    extractor = small[1]
    assert extractor.learned_share(np.arange(3600.0, 9000.0)) == {
        "teff": 1.0, "logg": 1.0, "fe_h": 1.0, "mg_fe": 0.0, "o_fe": 0.0,
    }  # fmt: skip
    assert set(extractor.learned_share(apogee_wavelength()[1:-1]).values()) == {1.0}
    assert extractor.learned_share(np.arange(9200.0, 15_000.0))["teff"] == 0.0  # between the two
    before = dict(extractor.learned_ranges)
    extractor.learned_also(learned_ranges(read_recipe_of(shipped())))
    assert extractor.learned_ranges == before


def test_h_band_stars_it_has_not_seen(small):
    """A block of stars as DR17 has them, S/N 100 and more; bounds are twice what 1,000 such stars scatter by."""
    block = ApogeeSpectra(seed=UNSEEN_SEED).block(0)
    chosen = np.flatnonzero(block["snr"] > 100)
    extractor = small[1]
    rows = []
    for i in chosen:
        error = np.where(block["ivar"][i] > 0, block["ivar"][i], np.inf) ** -0.5
        placed = extractor.place(block["flux"][i], apogee_wavelength(), block["bad_pixel"][i], error, 22_500)
        rows.append(extractor.tokenise(placed))
    residual = read(small, rows) - block["labels"][chosen][:, [0, 1, 2, 3, 4]]
    scatter = MAD_TO_SIGMA * np.median(np.abs(residual - np.median(residual, axis=0)), axis=0)
    assert (scatter < [25, 0.06, 0.025, 0.03, 0.05]).all(), scatter


@pytest.mark.parametrize("wavelength", [np.arange(3600.0, 9000.0, 1.0), np.arange(4000.0, 7000.0, 0.6)])
def test_a_sun_seen_in_the_optical_on_any_pixels(small, wavelength):
    flux = CannonSynthesizer(wavelength, fwhm=2.8)(SUN_LIKE)[0]
    row = small[1].tokenise(small[1].place(1e-14 * flux, wavelength))
    teff, logg, fe_h = read(small, [row])[0, :3]
    assert teff == pytest.approx(5772, abs=150)
    assert logg == pytest.approx(4.44, abs=0.3)
    assert fe_h == pytest.approx(0.0, abs=0.15)


def test_a_line_spectrum_of_fewer_metals_is_read_as_that(small):
    wavelength = np.arange(3800.0, 7400.0, 1.0)
    stars = np.array([[5000.0, 3.0, fe_h] for fe_h in (-2.2, -1.5, -0.8, -0.1, 0.3)])
    flux = CannonSynthesizer(wavelength, fwhm=2.5)(stars)
    fe_h = read(small, [small[1].tokenise(small[1].place(one, wavelength)) for one in flux])[:, 2]
    assert (np.diff(fe_h) > 0.2).all()
    np.testing.assert_allclose(fe_h, stars[:, 2], atol=0.3)


def test_a_recipe_may_name_it():
    stage, _ = read_recipe(recipe_folder() / "2-observed.yaml", use_cpu=True)
    assert stage.model == str(shipped("spectrafm-small"))


def test_a_name_that_does_not_ship_is_refused():
    with pytest.raises(ValueError, match="no checkpoint 'spectrafm-huge' ships"):
        shipped("spectrafm-huge")
