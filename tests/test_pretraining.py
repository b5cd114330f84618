"""What pre-training sees: contexts, the model's grid of two instruments, rows that hang on nothing but their number."""

import numpy as np
import pytest
from conftest import two_instruments

from spectrafm_hf import SpectraFMFeatureExtractor
from spectrafm_hf.collation import row_generator
from spectrafm_hf.labels import MISSING_LABEL
from spectrafm_hf.pretraining import Contexts, MixedRows, Shower, SyntheticRows, SyntheticStars
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSpectra
from spectrafm_hf.synthesis.observing import ObservingConditions
from spectrafm_hf.synthesis.surveys import OPTICAL_WAVELENGTH, SURVEYS, SurveyConditions

PATCH = 128
CLEAN = SurveyConditions(snr=(1e5, 1e5), widened=0.0, continuum=0.0, velocity=0.0, missing=0.0, unknown=0.0)
RIGHT = ObservingConditions(
    noise=(1e-6, 1e-6), continuum_wiggle=0.0, velocity=0.0, fwhm=0.0, line_strength=0.0, line_list=0.0, missing=0.0
)
WHOLE = Contexts(whole=1.0, window=0.0)


@pytest.fixture(scope="module")
def extractor():
    return two_instruments()


@pytest.fixture(scope="module")
def columns():
    """Eight stars as the stream brings them."""
    block = ApogeeSpectra(seed=3).block(0)
    labels = dict(zip(("teff", "logg", "fe_h", "mg_fe", "o_fe"), block["labels"][:8].T, strict=True))
    pixels = {name: block[name][:8] for name in ("flux", "ivar", "bad_pixel")}
    return {"object_id": [f"star-{i}" for i in range(8)], **pixels, **labels}


# ---------------------------------------------------------------- the grid


def test_the_grid_holds_the_pixels_of_both_surveys(extractor):
    grid = extractor.wavelength_grid
    assert np.isin(OPTICAL_WAVELENGTH, grid).all()
    assert np.abs(grid[np.searchsorted(grid, apogee_wavelength() - 1e-3)] - apogee_wavelength()).max() < 1e-6
    assert (np.diff(grid) > 0).all()
    assert all(grid[segment].size % PATCH == 0 for segment in extractor.segments)


def test_an_apogee_spectrum_keeps_its_pixels(extractor):
    """An identity regrid changes nothing, although the grid has another instrument on it."""
    flux = 1 + 0.1 * np.random.default_rng(0).standard_normal(7514)
    pixels = extractor.place(flux, apogee_wavelength())
    np.testing.assert_allclose(pixels.flux[pixels.good] * np.median(flux), flux, rtol=2e-5)
    assert pixels.good.sum() == 7514


def test_an_optical_spectrum_is_rebinned_and_conserves_flux(extractor):
    wavelength = np.arange(5000.0, 5600.0, 0.25)
    line = 1 - 0.5 * np.exp(-0.5 * ((wavelength - 5300.0) / 3.0) ** 2)
    pixels = extractor.place(line, wavelength)
    inside = (pixels.wavelength > 5250) & (pixels.wavelength < 5350)
    width = ((1 - pixels.flux / pixels.flux[pixels.good].max()) * pixels.good)[inside].sum()
    assert width == pytest.approx(0.5 * 3.0 * np.sqrt(2 * np.pi), rel=0.01)  # Angstrom, of a Gaussian


def test_segments_that_cannot_be_are_refused():
    def with_segments(*segments, **told):
        return SpectraFMFeatureExtractor(patch_size=PATCH, pixel_segments=segments, **{"pixel_width": None, **told})

    with pytest.raises(ValueError, match="multiple of patch_size"):
        with_segments(["wavelength", 4000.0, 1.0, 100])
    with pytest.raises(ValueError, match="one of"):
        with_segments(["frequency", 4000.0, 1.0, 128])
    with pytest.raises(ValueError, match="follow each other"):
        with_segments(["wavelength", 5000.0, 1.0, 128], ["wavelength", 5100.0, 1.0, 128])
    with pytest.raises(ValueError, match="give one of them"):
        with_segments(["wavelength", 5000.0, 1.0, 128], pixel_width=1.0)


# ---------------------------------------------------------------- contexts


def test_a_window_is_a_run_and_patches_are_scattered(extractor):
    there = np.zeros(extractor.wavelength_grid.size, dtype=bool)
    there[:5504] = True
    contexts = Contexts(whole=0.0, window=1.0, shortest=4)
    lengths = []
    for seed in range(200):
        shown, alone = contexts.draw(np.random.default_rng(seed), there, PATCH)
        tokens = np.flatnonzero(shown.reshape(-1, PATCH).any(axis=1))
        assert (np.diff(tokens) == 1).all()
        assert alone
        assert not shown[5504:].any()
        lengths.append(tokens.size)
    assert min(lengths) == 4
    assert max(lengths) >= 35
    shown, alone = Contexts(whole=0.0, window=0.0).draw(np.random.default_rng(0), there, PATCH)
    assert shown.sum() == 16 * 32
    assert shown.reshape(-1, 32).any(axis=1).sum() == 16
    assert not alone


def test_contexts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="shares of all spectra"):
        Contexts(whole=0.7, window=0.5)
    with pytest.raises(ValueError, match="at least one token"):
        Contexts(n_patches=0)


# ---------------------------------------------------------------- rows


def mixed(extractor, **changes):
    told = {
        "seed": 1, "contexts": WHOLE, "conditions": CLEAN, "beside": "optical", "beside_conditions": CLEAN,
        "theory": RIGHT, "misjudged": 0.0,
    }  # fmt: skip
    return MixedRows(extractor, **told | changes)


def is_optical(row):
    return row["wavelength"].max() < 10_000


def test_beside_every_star_of_the_stream_there_is_one_of_the_other_survey(extractor, columns):
    rows = mixed(extractor)(columns, range(8))
    optical = [is_optical(row) for row in rows]
    assert (len(rows), sum(optical)) == (16, 8)
    for row, other in zip(rows, optical, strict=True):
        told = row["labels"] != MISSING_LABEL
        assert told.tolist() == [True, True, True, not other, not other]


def test_without_any_nuisance_a_streamed_spectrum_stays_what_it_was(extractor, columns):
    rows = [row for row in mixed(extractor)(columns, range(8)) if not is_optical(row)]
    wanted = extractor.tokenise(extractor.place(columns["flux"][0], apogee_wavelength(), columns["bad_pixel"][0]))
    labels, _ = extractor.encode_labels(np.stack([columns[name][0] for name in extractor.label_names])[None])
    mine = next(row for row in rows if np.allclose(row["labels"], labels[0]))
    good = mine["attention_mask"].astype(bool)
    np.testing.assert_array_equal(good, wanted["attention_mask"].astype(bool))
    np.testing.assert_allclose(mine["flux"][good], wanted["flux"][good], atol=0.01)


def test_a_row_hangs_on_its_star_and_place_alone(extractor, columns):
    noisy = {"contexts": Contexts(), "conditions": SurveyConditions()}
    together = mixed(extractor, **noisy)(columns, range(8))
    alone = mixed(extractor, **noisy)({name: v[3:4] for name, v in columns.items()}, [3])

    def same(one, other):
        """To rounding: products over a batch are summed in another order."""
        return one["flux"].shape == other["flux"].shape and np.allclose(one["flux"], other["flux"], atol=1e-3)

    assert [sum(same(row, other) for other in together) for row in alone] == [1, 1]
    reseeded = mixed(extractor, seed=2, **noisy)({name: v[3:4] for name, v in columns.items()}, [3])
    assert not any(same(row, other) for row in alone for other in reseeded)


def test_misjudged_lines_change_depths_and_leave_the_continuum(extractor):
    stars = SyntheticStars(Shower(extractor, SURVEYS["apogee"], WHOLE, 0.01), CLEAN, RIGHT)
    wrong = SyntheticStars(stars.shower, CLEAN, ObservingConditions(line_strength=0.6, line_list=0.0))
    generators = [row_generator(0, number) for number in range(20)]
    right = np.stack([row["flux"] for row in stars.rows(generators)])
    erring = np.stack([row["flux"] for row in wrong.rows([row_generator(0, number) for number in range(20)])])
    difference = np.abs(erring - right)
    deep = right < np.quantile(right, 0.02)
    assert difference[deep].mean() > 5 * np.median(difference)


def test_lines_deepen_with_metallicity_in_what_the_model_sees(extractor):
    rows = SyntheticRows(SyntheticStars(Shower(extractor, SURVEYS["optical"], WHOLE, 0.01), CLEAN, RIGHT), 400, 0)
    made = rows.__getitems__(range(400))
    fe_h = np.array([row["labels"][2] for row in made])
    magnesium = np.array([row["flux"][(row["wavelength"] > 5160) & (row["wavelength"] < 5190)].mean() for row in made])
    assert np.corrcoef(fe_h, magnesium)[0, 1] < -0.5


def test_a_survey_whose_pixels_the_model_lacks_is_refused(extractor):
    with pytest.raises(ValueError, match="are not pixels of the model"):
        Shower(extractor, SURVEYS["miles"], WHOLE, 0.01)
