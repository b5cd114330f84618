"""One star in every form an astronomer may have it gets the same labels, and they are right; a bad one among good ones
harms nobody. The model is the one that ships."""

import hashlib
import subprocess
import sys
from itertools import islice, repeat

import numpy as np
import pytest
import specutils
import torch
from astropy import units as u
from astropy.nddata import StdDevUncertainty
from astropy.table import Table
from conftest import tiny_extractor, tiny_model
from scipy.ndimage import gaussian_filter1d
from transformers import pipeline

import spectrafm_hf
from spectrafm_hf import Spectrum, predict, shipped, vacuum_to_air
from spectrafm_hf.examples import EXAMPLES, example
from spectrafm_hf.hub import save_portable
from spectrafm_hf.labelling import COLUMNS, Labelled, Labeller, as_table
from spectrafm_hf.sources import Reading, read_source
from spectrafm_hf.spectra import FWHM_TO_SIGMA, SPEED_OF_LIGHT, apstar_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSynthesizer

STAR = {"teff": 4800.0, "logg": 2.6, "fe_h": -0.3, "mg_fe": 0.1, "o_fe": 0.1}
SNR = 150.0
NAMES = list(STAR)


@pytest.fixture(scope="module")
def labeller():
    return Labeller()


@pytest.fixture(scope="module")
def star():
    """Wavelength (vacuum Angstrom), flux and its error of a giant as APOGEE would have seen it."""
    synthesizer = ApogeeSynthesizer()
    labels = [[STAR.get(name, 0.0) for name in synthesizer.label_names]]
    flux = synthesizer(np.array(labels))[0].astype(float)
    noise = np.random.default_rng(0).standard_normal(flux.size) / SNR
    return synthesizer.wavelength, 3e-15 * (flux + noise), np.full(flux.size, 3e-15 / SNR)


@pytest.fixture(scope="module")
def reading(star):
    wavelength, flux, error = star
    return a_reading("giant", wavelength, flux, ivar=error**-2, resolving_power=22_500.0)


def a_reading(name, wavelength, flux, bad_pixel=None, **more):
    bad = np.zeros(flux.size, dtype=bool) if bad_pixel is None else bad_pixel
    return Reading(name, Spectrum(wavelength, flux, bad, star_id=name, survey="test", **more))


@pytest.fixture(scope="module")
def labelled(labeller, reading):
    (found,) = labeller.label([reading])
    return found


def values(found):
    return np.array([[answer.value, answer.sigma, answer.high95] for answer in found.labels.values()])


def unreadable(name="broken.fits"):
    return Reading(name, None, "broken.fits: the file is cut off.")


# ---------------------------------------------------------------- the labels


def test_labels_are_right(labelled):
    assert list(labelled.labels) == NAMES
    for name, answer in labelled.labels.items():
        assert abs(answer.value - STAR[name]) < 4 * answer.sigma
        assert answer.unit == ("K" if name == "teff" else "dex")
        assert answer.low95 < answer.low68 < answer.value < answer.high68 < answer.high95
        assert answer.calibrated
        assert answer.learned is True
    assert labelled.labels["teff"].sigma < 60
    assert labelled.labels["fe_h"].sigma < 0.05
    assert (labelled.flags, labelled.flag_names) == ((), ())
    assert labelled.readable
    assert labelled.snr == pytest.approx(SNR, rel=0.2)  # what the pixels show, lines and all
    assert labelled.wavelength_range == pytest.approx((15_151.9, 16_949.1), abs=6)


def test_numbers_are_those_of_the_pipeline(labelled, star):
    wavelength, flux, error = star
    told = {"flux": flux, "wavelength": wavelength, "flux_error": error, "resolving_power": 22_500.0}
    answer = pipeline("stellar-labels", model=str(shipped()))(told)
    assert answer.pop("flags") == []
    for name, one in answer.items():
        mine, scale = labelled.labels[name], {"K": 1e3, "dex": 1.0}[one["unit"]]
        assert mine.value == pytest.approx(one["value"], abs=1e-5 * scale)
        assert mine.sigma == pytest.approx(one["sigma"], rel=1e-4)
        assert [mine.low68, mine.high68] == pytest.approx(one["interval68"], abs=1e-5 * scale)
        assert [mine.low95, mine.high95] == pytest.approx(one["interval95"], abs=1e-5 * scale)
        assert (mine.calibrated, mine.learned) == (one["calibrated"], one["learned"])


@pytest.mark.parametrize("form", ["moving", "air", "specutils", "table", "file"])
def test_the_pipeline_takes_what_predict_takes(form, star, labeller):
    source, told = (example("optical-solar-like"), {}) if form == "file" else forms(star)[form]
    answer = pipeline("stellar-labels", model=str(shipped()))(source, **told)
    table = predict(source, model=str(shipped()), progress=False, **told)
    for row in table:
        assert answer[row["label"]]["value"] == pytest.approx(row["value"], rel=1e-5)
    assert "; ".join(answer["flags"]) == table["flags"][0]
    assert "; ".join(answer.get("assumed", [])) == table["assumed"][0]


def test_the_pipeline_reads_files_together():
    reader = pipeline("stellar-labels", model=str(shipped()))
    paths = [str(example(name)) for name in ("optical-solar-like", "h-band-red-giant")]
    together = reader(paths, batch_size=2)
    for path, one in zip(paths, together, strict=True):
        assert one["teff"]["value"] == pytest.approx(reader(path)["teff"]["value"], rel=1e-5)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        reader("nowhere.fits")


def forms(star):
    """The same star in other clothes: name -> source, and what `predict` must be told."""
    wavelength, flux, error = star
    shuffled = np.random.default_rng(1).permutation(flux.size)
    redder = wavelength * (1 + 35.0 / SPEED_OF_LIGHT)
    told = {"resolving_power": 22_500.0}
    columns = {"flux": flux, "wavelength": wavelength, "flux_error": error}
    spectral = specutils.Spectrum(
        flux=flux * u.Unit("erg / (s cm2 AA)"), spectral_axis=wavelength * u.AA, uncertainty=StdDevUncertainty(error)
    )
    # The gap between two detectors as files have it: pixels with rubbish that are masked.
    gap = apstar_wavelength()[3280:3580]
    order = np.argsort(np.concatenate([wavelength, gap]))
    whole = {
        name: np.ma.array(np.concatenate([column, rubbish])[order], mask=order >= flux.size)
        for name, column, rubbish in (("flux", flux, 9e9 + 0 * gap), ("flux_error", error, 0 * gap))
    } | {"wavelength": np.concatenate([wavelength, gap])[order]}
    return {
        "arrays": (columns, told),
        "air": (columns | {"wavelength": vacuum_to_air(wavelength)}, told | {"medium": "air"}),
        "nm": (columns | {"wavelength": wavelength / 10}, told | {"wavelength_unit": "nm"}),
        "micron": (columns | {"wavelength": wavelength / 1e4 * u.um}, told),
        "shuffled": ({name: column[shuffled] for name, column in columns.items()}, told),
        "moving": (columns | {"wavelength": redder}, told | {"velocity": 35.0}),
        "redshifted": (columns | {"wavelength": redder}, told | {"redshift": 35.0 / SPEED_OF_LIGHT}),
        "big-endian": ({name: column.astype(">f8") for name, column in columns.items()}, told),
        "masked": (whole, told),
        "other unit": (columns | {"flux": 1e20 * flux, "flux_error": 1e20 * error}, told),
        "table": (Table(columns), told),
        "specutils": (spectral, told),
    }


FORMS = list(forms((np.arange(1.0, 9.0), np.ones(8), np.ones(8))))


@pytest.mark.parametrize("form", FORMS)
def test_a_star_is_the_same_in_every_form(form, star, labelled, monkeypatch, labeller):
    monkeypatch.setattr("spectrafm_hf.labelling.Labeller", lambda *_: labeller)  # loaded once for all forms
    source, told = forms(star)[form]
    table = predict(source, **told)
    assert list(table["label"]) == NAMES
    for row, answer in zip(table, labelled.labels.values(), strict=True):
        scale = {"K": 1e3, "dex": 1.0}[row["unit"]]
        assert row["value"] == pytest.approx(answer.value, rel=1e-4, abs=1e-5 * scale)
        assert row["sigma"] == pytest.approx(answer.sigma, rel=1e-3)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_stars(name, labeller):
    (found,) = labeller.label(read_source(example(name)))
    assert found.flags == () or EXAMPLES[name].layout == "LAMOST LRS"
    for label, value in EXAMPLES[name].labels.items():
        answer = found.labels[label]
        assert abs(answer.value - value) < 5 * answer.sigma


# ---------------------------------------------------------------- many


def test_a_batch_gives_what_one_alone_gives(labeller, reading, labelled):
    """Companions of other lengths, on both sides of it, that share its batch or not."""
    spectrum = reading.spectrum
    short = [
        a_reading(f"window {n}", spectrum.wavelength[: 100 * n], spectrum.flux[: 100 * n]) for n in (1, 9, 20, 40, 60)
    ]
    optical = list(read_source(example("optical-solar-like")))
    together = list(labeller.label([*short[:3], reading, *optical, *short[3:], reading]))
    assert [one.name for one in together] == [one.name for one in (*short[:3], reading, *optical, *short[3:], reading)]
    for one in (together[3], together[-1]):
        np.testing.assert_allclose(values(one), values(labelled), rtol=2e-5, atol=2e-5)
        assert one.flags == labelled.flags
    for alone in (*short, *optical):
        (expected,) = labeller.label([alone])
        found = next(one for one in together if one.name == alone.name)
        np.testing.assert_allclose(values(found), values(expected), rtol=2e-4, atol=2e-5)
        assert found.flag_names == expected.flag_names


def test_order_is_kept_over_many_batches(star):
    wavelength, flux, _ = star
    small = Labeller(batch_size=2, check=False)
    few = [a_reading(str(n), wavelength[:256], flux[:256] * n) for n in range(1, 8)]
    assert [one.name for one in small.label(few)] == [str(n) for n in range(1, 8)]


def test_an_endless_source_is_read_no_farther_than_needed(reading):
    small = Labeller(batch_size=2, check=False)
    taken = []

    def endless():
        for number, one in enumerate(repeat(reading)):
            taken.append(number)
            yield one

    labels = small.label(endless())
    assert len(list(islice(labels, 3))) == 3
    assert len(taken) <= 8
    labels.close()


def test_a_bad_one_among_good_ones(labeller, reading, labelled):
    wavelength, flux = reading.spectrum.wavelength, reading.spectrum.flux
    bad = [
        unreadable(),
        a_reading("all bad", wavelength, flux, np.ones(flux.size, dtype=bool)),
        a_reading("nanometres", wavelength / 10, flux),
        a_reading("zeros", wavelength, 0 * flux),
    ]
    found = list(labeller.label([bad[0], reading, bad[1], bad[2], reading, bad[3]]))
    for one in (found[1], found[4]):
        np.testing.assert_allclose(values(one), values(labelled), rtol=2e-5, atol=2e-5)
        assert one.flags == ()
    for one, word in ((found[0], "cut off"), (found[2], "good pixel"), (found[3], "Nanometres"), (found[5], "zero")):
        assert one.flag_names == ("unreadable",)
        assert word in one.flags[0]
        assert not one.readable
        assert list(one.labels) == NAMES
        assert np.isnan(values(one)).all()
        assert one.labels["teff"].unit == "K"
        assert not any(answer.calibrated for answer in one.labels.values())
    assert found[0].wavelength_range is None


@pytest.mark.parametrize("n_pixels", [1, 100_000])
def test_extreme_numbers_of_pixels(labeller, star, n_pixels):
    wavelength = np.linspace(15_200.0, 16_900.0, n_pixels)
    flux = np.interp(wavelength, *star[:2])
    (found,) = labeller.label([a_reading("extreme", wavelength, flux)])
    assert found.readable
    assert np.isfinite(values(found)).all()
    if n_pixels == 1:
        assert "coverage" in found.flag_names
    else:
        assert abs(found.labels["teff"].value - STAR["teff"]) < 200


# ---------------------------------------------------------------- what speaks against an answer


def test_flags_and_abstaining(labeller, reading):
    """A star at 100 km/s is told from one at rest; an optical spectrum has no [Mg/Fe] that was learned there."""
    moving = a_reading(
        "moving",
        reading.spectrum.wavelength * (1 + 100 / SPEED_OF_LIGHT),
        reading.spectrum.flux,
        resolving_power=22_500.0,
    )
    optical = next(read_source(example("optical-solar-like")))
    silent = Labeller(abstain=True)
    flagged, guessed = labeller.label([moving, optical])
    assert "velocity" in flagged.flag_names
    assert len(flagged.flags) == len(flagged.flag_names)
    assert any("km/s" in sentence and "rest frame" in sentence for sentence in flagged.flags)
    assert guessed.flag_names[-1] == "not_learned"
    assert "mg_fe, o_fe: learned from" in guessed.flags[-1]
    assert guessed.labels["mg_fe"].learned is False
    assert guessed.labels["teff"].learned is True
    quiet, without_guess = silent.label([moving, optical])
    assert np.isnan(values(quiet)).all()
    assert quiet.flags == flagged.flags
    assert np.isnan(without_guess.labels["mg_fe"].value)


def test_checks_can_be_left_out(reading):
    moving = a_reading("moving", reading.spectrum.wavelength * 1.0003, reading.spectrum.flux)
    (found,) = Labeller(check=False).label([moving])
    assert found.flags == ()


def test_published_signal_to_noise_comes_first(labeller, star):
    (found,) = labeller.label([a_reading("told", *star[:2], snr=87.0)])
    assert found.snr == 87.0


def test_told_errors_tell_the_signal_to_noise_ratio_of_pixels_too_wide_to_show_it(labeller):
    """Pixels of 4 Angstrom, each of which becomes twenty of the model's."""
    wavelength = np.arange(15_160.0, 16_900.0, 4.0)
    flux = 1 + np.random.default_rng(2).standard_normal(wavelength.size) / 80
    told = a_reading("wide", wavelength, flux, ivar=np.full(wavelength.size, 80.0**2))
    silent = a_reading("silent", wavelength, flux)
    found, unknown = labeller.label([told, silent])
    assert found.snr == pytest.approx(80, rel=0.02)
    assert unknown.snr is None
    assert "errors" not in found.flag_names


def test_assumptions_come_along(labeller, star):
    (found,) = labeller.label(read_source((star[1], star[0])))
    assert "vacuum Angstrom" in found.assumed[0]


# ---------------------------------------------------------------- which model


def test_the_model_is_recorded(labeller):
    weights = (shipped() / "model.safetensors").read_bytes()
    assert labeller.model_id == "spectrafm-small"
    assert labeller.revision == hashlib.sha256(weights).hexdigest()
    assert Labeller(revision=labeller.revision).revision == labeller.revision
    with pytest.raises(ValueError, match="whose weights have the SHA-256"):
        Labeller(revision="main")


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """A model without limits and calibration, of three labels and a window of its own."""
    folder = tmp_path_factory.mktemp("own") / "model"
    save_portable(tiny_model(), tiny_extractor(), folder)
    return folder


def test_a_commit_on_the_hub_is_recorded(own_folder, tmp_path, monkeypatch):
    """As huggingface_hub keeps a repository that was fetched once; nothing is reachable here."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--stars"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    (repository / "snapshots" / commit).symlink_to(own_folder, target_is_directory=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = Labeller("somebody/stars", revision="v1")
    assert (found.model_id, found.revision) == ("somebody/stars", commit)
    assert found.labels == ["teff", "logg", "fe_h"]


def test_a_model_of_ones_own(own_folder):
    wavelength = np.linspace(5000, 5390, 400)
    found = list(Labeller(own_folder, labels=["fe_h"]).label([a_reading("own", wavelength, np.ones(400))]))
    assert list(found[0].labels) == ["fe_h"]
    assert found[0].flags == ()
    assert found[0].labels["fe_h"].learned is None
    assert not found[0].labels["fe_h"].calibrated
    with pytest.raises(ValueError, match="abstain needs limits beside the weights"):
        Labeller(own_folder, abstain=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["c_fe"]}, "predicts teff, logg, fe_h, mg_fe, o_fe, not c_fe"),
        ({"batch_size": 0}, "batch_size must be 1 or more spectra, got 0"),
        ({"abstain": True, "check": False}, "abstain needs check=True"),
        ({"device": "mps"}, "float64"),
    ],
)
def test_wrong_use(options, message):
    with pytest.raises(ValueError, match=message):
        Labeller(**options)


# ---------------------------------------------------------------- the one call


def test_predict_gives_a_table(star, reading, labeller, tmp_path):
    wavelength, flux, _ = star
    good = {"flux": flux, "wavelength": wavelength, "name": "good"}
    bad = {"flux": flux, "wavelength": wavelength / 10, "name": "nanometres"}
    table = predict([good, bad], labels=["fe_h", "teff"])
    assert table.colnames == list(COLUMNS)
    assert list(table["name"]) == ["good", "good", "nanometres", "nanometres"]
    assert list(table["label"]) == ["fe_h", "teff"] * 2
    assert list(table["unit"]) == ["dex", "K"] * 2
    assert np.isfinite(table["value"][:2]).all()
    assert np.isnan(table["value"][2:]).all()
    assert "nm" in table["flags"][2]
    assert "vacuum Angstrom" in table["assumed"][0]
    assert set(table["model"]) == {"spectrafm-small"}
    assert set(table["revision"]) == {labeller.revision}
    assert table["learned"].mask.tolist() == [False, False, True, True]
    for path in (tmp_path / "labels.fits", tmp_path / "labels.ecsv"):
        table.write(path)
        again = Table.read(path)
        np.testing.assert_array_equal(np.asarray(again["value"], float), np.asarray(table["value"]))


def test_predict_refuses_one_spectrum_that_cannot_be_read(star):
    wavelength, flux, _ = star
    with pytest.raises(ValueError, match="looks like nm"):
        predict((flux, wavelength / 10))
    with pytest.raises(ValueError, match="none of its 7514 pixels can be trusted"):
        predict((flux * np.nan, wavelength))
    table = predict([(flux, wavelength / 10)])  # a list of them may hold a bad one
    assert np.isnan(table["value"]).all()
    with pytest.raises(FileNotFoundError):
        predict("nowhere.fits")


def test_a_table_of_no_spectrum(labeller):
    table = as_table([], labeller)
    assert table.colnames == list(COLUMNS)
    assert len(table) == 0


def test_for_json(labelled):
    told = labelled.to_dict()
    assert set(told) == set(Labelled.__dataclass_fields__) - {"embedding"}  # which nobody asked for
    assert told["labels"]["teff"]["value"] == labelled.labels["teff"].value


def test_the_package_is_imported_without_it():
    """Whoever trains imports no reader of files, and no astropy."""
    code = (
        "import sys, spectrafm_hf; assert 'astropy' not in sys.modules and 'spectrafm_hf.labelling' not in sys.modules;"
        "assert 'predict' in spectrafm_hf.__all__; assert callable(spectrafm_hf.predict)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'predictt'"):
        _ = spectrafm_hf.predictt


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(reading, labelled):
    (found,) = Labeller(device="cuda").label([reading])
    np.testing.assert_allclose(values(found), values(labelled), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("resolving_power", [None, 22_500.0])
def test_pixels_too_wide_for_any_trained_resolving_power(labeller, star, resolving_power):
    """R = 500, three pixels to a FWHM, of which R = 750 could be made at most: no spectrum in training was below 1,800.
    Told or not, the labels are not to be trusted."""
    wavelength, flux, _ = star
    step = np.median(np.diff(np.log(wavelength)))
    uniform = np.exp(np.arange(np.log(wavelength[0]), np.log(wavelength[-1]), step))
    blurred = gaussian_filter1d(np.interp(uniform, wavelength, flux), FWHM_TO_SIGMA / 500 / step)
    width = round(1 / 500 / step / 3)
    wide = [part[: part.size // width * width].reshape(-1, width).mean(axis=1) for part in (uniform, blurred)]
    (found,) = labeller.label([a_reading("wide", *wide, resolving_power=resolving_power)])
    assert "resolution" in found.flag_names
    (sentence,) = [flag for flag in found.flags if "pixels too wide for a resolving power above" in flag]
    assert float(sentence.split("above ")[1].split(",")[0]) == pytest.approx(750, rel=0.05)


def test_a_resolving_power_that_is_not_told_is_said_to_be_assumed(labeller, star, labelled):
    (untold,) = labeller.label([a_reading("giant", *star[:2])])
    assert [sentence for sentence in untold.assumed if "resolving power" in sentence]
    assert not labelled.assumed
