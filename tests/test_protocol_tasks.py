"""The tasks of a benchmark as they are made: who is learned from, who is asked, and what of a spectrum is shown.

The libraries are generated, with the names, pixels and resolution of the real ones; stage 2, the anchors and the
comparison of two instruments are those that a benchmark runs, from a small network and shortened recipes.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import fake_spectra, miles_grid, tiny_extractor, tiny_model

from spectrafm_hf import Spectrum, air_to_vacuum, shipped
from spectrafm_hf.builders.libraries import Library
from spectrafm_hf.builders.selection import SelectionReport
from spectrafm_hf.builders.splits import split_of
from spectrafm_hf.hub import load_pretrained
from spectrafm_hf.protocols import instruments, optical
from spectrafm_hf.protocols.apogee_window import N_ANCHORS, apogee_window_task
from spectrafm_hf.protocols.few_labels import METHODS, figures
from spectrafm_hf.protocols.instruments import WINDOW, across_instruments_task, compare_pairs, read_spectra
from spectrafm_hf.protocols.optical import optical_task
from spectrafm_hf.recipe import recipe_folder
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSynthesizer
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.dr17_sampler import Dr17LabelSampler

RED, BLUE = (5800.0, 7400.0), (3600.0, 5500.0)
"""Of stages 3 and 2 of the main job, vacuum Angstrom."""
N_MILES, N_COMMON, N_STELIB, N_FEW_ANCHORS = 220, 40, 55, 120
TELLURIC = (6860.0, 6960.0)
"""Where STELIB's pixels are not to be trusted, vacuum Angstrom."""


def library(name, spectra):
    return Library(name, spectra, SelectionReport(len(spectra), ()))


@pytest.fixture(scope="module")
def miles():
    return library("miles", fake_spectra(N_MILES, wavelength=miles_grid(3541.4, 7409.6)))


@pytest.fixture(scope="module")
def stelib(miles):
    """The first stars of MILES and 15 others, on pixels of 1 Angstrom in air, at a FWHM of 3.1 Angstrom."""
    wavelength = air_to_vacuum(np.arange(3560.0, 7460.0))
    labels = [star.labels for star in miles.spectra[:N_COMMON]]
    labels += [star.labels for star in fake_spectra(N_STELIB - N_COMMON, seed=9)]
    flux = CannonSynthesizer(wavelength, fwhm=3.1)(np.array([list(told.values()) for told in labels]))
    flux = flux * (1 + 0.01 * np.random.default_rng(5).standard_normal(flux.shape))
    bad = (wavelength > TELLURIC[0]) & (wavelength < TELLURIC[1])
    spectra = [
        Spectrum(
            wavelength, 1e-13 * flux[i], bad, star_id=f"HD{i + 1 + (i >= N_COMMON) * N_MILES}",
            survey="stelib", fwhm=3.1, labels=told,
        )
        for i, told in enumerate(labels)
    ]  # fmt: skip
    return library("stelib", spectra)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A network that knows nothing yet, over the range of MILES."""
    folder = tmp_path_factory.mktemp("start")
    tiny_model(patch_size=80).save_pretrained(folder)
    tiny_extractor(patch_size=80, wavelength_range=WINDOW, smoothing_length=100.0).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def short(tmp_path_factory, miles):
    """The recipes that ship, with few spectra; and the generated library where stage 2 asks for MILES."""
    folder, shorter = tmp_path_factory.mktemp("recipes"), {"n_spectra": 64, "validations": 1}
    told = {"2-observed": shorter | {"dataloader_num_workers": 0}, "3-few-shot": {"n_anchors": N_FEW_ANCHORS}}
    for name, changes in told.items():
        recipe = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text())
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe | changes | {"disable_tqdm": True}))

    def load(name, split=None):
        assert name == "miles"
        return miles if split is None else library(name, miles.split(split))

    with pytest.MonkeyPatch.context() as patch:
        for module in (optical, instruments):
            patch.setattr(module, "recipe_folder", lambda: folder)
        patch.setattr("spectrafm_hf.stage_data.load_library", load)
        yield


def names(stars):
    return [star.star_id for star in stars]


def shown(task, good):
    """First and last wavelength that any of the spectra shows, vacuum Angstrom."""
    return task.extractor.wavelength_grid[good.any(axis=0)][[0, -1]]


def told_of(folder):
    return json.loads((folder / "stage.json").read_text())


def weights(folder):
    return (folder / "model.safetensors").stat().st_mtime_ns


# ---------------------------------------------------------------- MILES in the red


@pytest.fixture(scope="module")
def in_the_red(short, start, miles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("optical") / "2-observed"
    return optical_task(start, folder, miles), folder


def test_optical_asks_about_all_test_stars_and_stage_2_saw_none_of_them(in_the_red, miles):
    task, folder = in_the_red
    assert task.test.star_ids == names(miles.split("test"))
    assert task.pool.star_ids == names(miles.split("train")) == told_of(folder)["stars"]
    assert task.test.labels[:, task.column()].min() < -1.5
    np.testing.assert_array_equal(task.test.labels[3], list(miles.split("test")[3].labels.values()))


def test_optical_draws_metal_rich_stars_only(in_the_red):
    task, _ = in_the_red
    assert task.fe_h_above == -1
    assert task.pool.labels[:, task.column()].min() < -1.5
    assert (task.pool.labels[task.draw(80, 0), task.column()] > -1).all()


def test_optical_is_seen_in_the_red_and_was_learned_in_the_blue(in_the_red):
    task, folder = in_the_red
    assert tuple(told_of(folder)["recipe"]["window"]) == BLUE
    _, synthetic, _ = task.synthetic(range(3))
    assert synthetic.shape == (3, task.pool.flux.shape[1])
    assert task.anchors[0].shape == (N_FEW_ANCHORS, task.pool.flux.shape[1])
    for good in (task.pool.good, task.test.good, task.anchors[1], task.synthetic(range(3))[2]):
        np.testing.assert_allclose(shown(task, good), RED, atol=1.0)


def test_validation_stars_are_asked_while_something_is_chosen_and_stage_2_stays(in_the_red, short, start, miles):
    task, folder = in_the_red
    before = weights(folder)
    other = optical_task(start, folder, miles, "validation")
    assert weights(folder) == before
    assert other.test.star_ids == names(miles.split("validation"))
    assert not set(other.test.star_ids) & {*task.test.star_ids, *task.pool.star_ids}
    assert other.pool.star_ids == task.pool.star_ids
    for one, again in zip(task.anchors, other.anchors, strict=True):
        np.testing.assert_array_equal(one, again)
    assert "(validation split)" in other.what


def test_from_the_red_of_eighty_stars_metallicity_is_learned(in_the_red):
    """Whoever answers with the median [Fe/H] of the drawn stars knows nothing of metal-poor ones."""
    task, _ = in_the_red
    found = {name: figures(task, METHODS[name](task, task.draw(80, 0), 0)) for name in ("spectrafm", "ridge", "median")}
    for name in ("spectrafm", "ridge"):
        assert found[name]["all"]["rmse"] < found["median"]["all"]["rmse"]
        assert found[name]["metal_poor"]["rmse"] < 0.7 * found["median"]["metal_poor"]["rmse"]


# ---------------------------------------------------------------- MILES and STELIB


@pytest.fixture(scope="module")
def across(short, start, miles, stelib, tmp_path_factory):
    folder = tmp_path_factory.mktemp("across") / "2-observed"
    return *across_instruments_task(start, folder, miles, stelib), folder


def test_no_star_of_stelib_that_is_asked_about_was_seen_in_miles(across, miles, stelib):
    task, _, folder = across
    asked = set(task.test.star_ids)
    assert asked == set(names(stelib.split("test")))
    seen = {*told_of(folder)["stars"], *names(miles.split("train")), *names(miles.split("validation"))}
    assert not asked & seen  # trained and calibrated on
    assert asked & set(names(miles.split("test")))
    assert asked - set(names(miles.spectra))
    assert task.pool.star_ids == names(miles.split("train")) == told_of(folder)["stars"]


def test_stelib_is_asked_about_on_its_own_pixels_and_without_its_telluric_bands(across):
    task, _, folder = across
    assert tuple(told_of(folder)["recipe"]["window"]) == WINDOW
    for good in (task.pool.good, task.test.good, task.anchors[1], task.synthetic(range(3))[2]):
        np.testing.assert_allclose(shown(task, good), WINDOW, atol=1.0)
    telluric = task.extractor.inside(TELLURIC[0] + 1, TELLURIC[1] - 1)
    assert not task.test.good[:, telluric].any()
    assert task.pool.good[:, telluric].all()
    assert len(task.anchors[0]) == N_FEW_ANCHORS


def test_pairs_are_counted_and_those_before_stage_2_are_of_the_model_before_it(across, start, miles, stelib):
    task, pairs, _ = across
    unseen = [name for name in names(stelib.spectra[:N_COMMON]) if split_of(name) == "test"]
    for kind, n in (("pairs", N_COMMON), ("pairs_unseen", len(unseen)), ("pairs_zero_shot", N_COMMON)):
        assert list(pairs[kind]) == ["teff", "logg", "fe_h"]
        assert [told["n"] for told in pairs[kind].values()] == [n] * 3
        assert [told["unit"] for told in pairs[kind].values()] == ["K", "dex", "dex"]
    same_stars = miles.spectra[:N_COMMON], stelib.spectra[:N_COMMON]
    assert pairs["pairs_zero_shot"] == compare_pairs(*load_pretrained(start), *same_stars)
    assert pairs["pairs"] == compare_pairs(task.model, task.extractor, *same_stars)
    assert pairs["pairs"] != pairs["pairs_zero_shot"]


def test_a_library_beside_itself_differs_by_nothing_and_stage_2_is_not_run_twice(across, short, start, miles):
    _, _, folder = across
    before = weights(folder)
    _, pairs = across_instruments_task(start, folder, miles, library("stelib", miles.spectra[:N_COMMON]))
    assert weights(folder) == before
    for kind in pairs.values():
        for told in kind.values():
            assert told["bias"] == told["scatter"] == told["pull"] == 0.0


# ---------------------------------------------------------------- the same stars twice


def again_and_again(noise, seed, n=150):
    """One star, seen `n` times with independent Gaussian noise, 1-sigma relative to the flux."""
    (star,) = fake_spectra(1, noise=0.0, wavelength=miles_grid(4950.0, 5450.0))
    factors = 1 + noise * np.random.default_rng(seed).standard_normal((n, star.flux.size))
    return [replace(star, flux=star.flux * factor) for factor in factors]


def test_spectra_that_differ_by_noise_as_large_as_told_have_a_pull_of_one():
    """Sigma is set to how far noise moves each label. Of 150 spectra a robust scatter is known to 10 %."""
    model, extractor = tiny_model(), tiny_extractor()
    noisy, first, second = (again_and_again(0.005, seed) for seed in (1, 2, 3))
    _, read = read_spectra(model, extractor, noisy)
    spread = 1.4826 * np.median(np.abs(read.mean - np.median(read.mean, axis=0)), axis=0)
    factors = spread / np.median(read.sigma, axis=0)
    extractor.sigma_factors = {name: [f, f] for name, f in zip(extractor.label_names, factors.tolist(), strict=True)}
    told = compare_pairs(model, extractor, first, second)
    for name, label in told.items():
        assert label["pull"] == pytest.approx(1.0, abs=0.25), name
        assert abs(label["bias"]) < 0.5 * label["scatter"], name
    extractor.sigma_factors = {name: [2 * f, 2 * f] for name, (f, _) in extractor.sigma_factors.items()}
    for name, label in compare_pairs(model, extractor, first, second).items():
        assert label["pull"] == pytest.approx(told[name]["pull"] / 2)
        assert label["scatter"] == told[name]["scatter"]
    for name, label in compare_pairs(model, extractor, second, first).items():
        assert label["bias"] == pytest.approx(-told[name]["bias"])


# ---------------------------------------------------------------- APOGEE through a window

N_WINDOW = 160
PIXELS = slice(4207, 4307)
"""Of the 7,514 of APOGEE: a hundred of the middle detector."""


@pytest.fixture(scope="module")
def window_file(tmp_path_factory):
    """Giants of theory with a signal-to-noise ratio of 100, as the file of the protocol has them."""
    rng, synthesizer = np.random.default_rng(0), ApogeeSynthesizer()
    labels = Dr17LabelSampler(metal_poor_share=0.3).draw(rng, N_WINDOW)
    for column, name in enumerate(synthesizer.label_names):
        labels[:, column] = np.clip(labels[:, column], *synthesizer.bounds[name])
    flux = synthesizer(labels)[:, PIXELS] * (1 + 0.01 * rng.standard_normal((N_WINDOW, 100)))
    flux[0, 3], flux[1, 5] = np.nan, -1.0
    names = ["teff", "logg", "fe_h", "mg_fe"]  # [O/Fe] is not in the file
    told = labels[:, [synthesizer.label_names.index(name) for name in names]]
    told[2, 3] = -9999.0
    path = tmp_path_factory.mktemp("window") / "stars.npz"
    np.savez(
        path,
        wavelength=apogee_wavelength()[PIXELS],
        flux=flux,
        labels=told,
        label_names=["TEFF", "LOGG", "FE_H", "MG_FE"],
        apogee_id=[f"2M{i:05d}" for i in range(N_WINDOW)],
    )
    return path


@pytest.fixture(scope="module")
def window_task(window_file):
    """Of the model that ships."""
    return apogee_window_task(str(shipped()), window_file, window_file.parent)


def both_halves(task):
    """Name -> flux, good and labels of every star of a task."""
    return {
        name: (stars.flux[row], stars.good[row], stars.labels[row])
        for stars in (task.pool, task.test)
        for row, name in enumerate(stars.star_ids)
    }


def test_window_stars_are_dealt_to_pool_and_test_by_their_names_alone(window_task, window_file, tmp_path):
    pool, test = set(window_task.pool.star_ids), set(window_task.test.star_ids)
    assert len(pool | test) == len(pool) + len(test) == N_WINDOW
    assert 0.35 < len(pool) / N_WINDOW < 0.65
    with np.load(window_file) as stored:
        some = {name: stored[name][30:70][::-1] for name in ("flux", "labels", "apogee_id")}
        np.savez(tmp_path / "some.npz", wavelength=stored["wavelength"], label_names=stored["label_names"], **some)
    fewer = apogee_window_task(str(shipped()), tmp_path / "some.npz", tmp_path)
    assert {*fewer.pool.star_ids} == pool & {*some["apogee_id"].tolist()}
    assert {*fewer.test.star_ids} == test & {*some["apogee_id"].tolist()}
    assert fewer.folder == tmp_path


def test_window_stars_anchors_and_synthetic_stars_show_the_window_and_nothing_else(window_task):
    ends = apogee_wavelength()[PIXELS][[0, -1]]
    _, synthetic, usable = window_task.synthetic(range(4))
    assert window_task.anchors[0].shape == (N_ANCHORS, synthetic.shape[1])
    for good in (window_task.pool.good, window_task.test.good, window_task.anchors[1], usable):
        np.testing.assert_allclose(shown(window_task, good), ends, atol=0.1)
        assert good.sum(axis=1).max() <= 100


def test_window_stars_keep_their_flux_and_lose_what_is_none(window_task, window_file):
    stars = both_halves(window_task)
    with np.load(window_file) as stored:
        flux, labels = stored["flux"], stored["labels"]
    shown = np.flatnonzero(window_task.pool.good.any(axis=0))
    assert shown.size == 100
    for row, pixel in ((0, 3), (1, 5)):
        placed, good, _ = stars[f"2M{row:05d}"]
        assert np.flatnonzero(~good[shown]).tolist() == [pixel]
        ratio = (placed[shown] / flux[row])[good[shown]]
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-4)
    columns = [window_task.extractor.label_names.index(name) for name in ("teff", "logg", "fe_h", "mg_fe")]
    assert np.isnan(stars["2M00002"][2][columns[3]])
    for row in range(3, N_WINDOW):
        np.testing.assert_array_equal(stars[f"2M{row:05d}"][2][columns], labels[row])
    assert np.isnan(window_task.test.labels[:, window_task.extractor.label_names.index("o_fe")]).all()
    assert np.isnan(window_task.pool.label_errors).all()


def test_a_few_window_stars_teach_more_than_their_median(window_task):
    rows = window_task.draw(60, 0)
    found = {
        name: figures(window_task, METHODS[name](window_task, rows, 0))["all"]["rmse"]
        for name in ("spectrafm", "median")
    }
    assert found["spectrafm"] < 0.5 * found["median"]
