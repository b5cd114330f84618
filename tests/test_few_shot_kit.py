"""The few-shot kit: what is chosen, how honestly it is judged, and what a user gets who has too little."""

import csv
import json
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from astropy.io import fits
from conftest import LABEL_CENTER, LABEL_SCALE, PATCH_SIZE, tiny_extractor, tiny_model
from tqdm import tqdm
from transformers import AutoFeatureExtractor, AutoModel
from typer.testing import CliRunner

from spectrafm_hf import air_to_vacuum, cli, few_shot_kit
from spectrafm_hf.builders.labelled_folder import FolderConfig
from spectrafm_hf.calibration import FACTOR_LIMITS, FEWEST_STARS
from spectrafm_hf.few_shot_candidates import (
    FROZEN,
    Candidate,
    ShownAgain,
    Training,
    read_frozen,
    trained_candidates,
)
from spectrafm_hf.few_shot_kit import KitArguments, finetune
from spectrafm_hf.few_shot_nested import (
    LeftOut,
    choose,
    cross_validate,
    deal_folds,
    simplest_within_one_error,
    widening,
)
from spectrafm_hf.few_shot_report import Findings, Score
from spectrafm_hf.few_shot_stars import anchor_rows, labels_to_learn, prepare, read_stars, synthesize
from spectrafm_hf.prediction import ask
from spectrafm_hf.publishing import prepared
from spectrafm_hf.spectra import apstar_wavelength
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.sampler import LabelSampler
from spectrafm_hf.synthesis.surveys import SURVEYS

LABELS = ["teff", "logg", "fe_h"]
AIR = np.arange(4900.0, 5500.0)
OFFSET = np.array([200.0, -0.3, 0.25])
"""What the catalogue of the test stars differs by from what the tiny model reads: K, dex, dex."""
NOISE = np.array([20.0, 0.03, 0.02])


def own_pixels():
    return tiny_extractor(pixel_width=None, wavelength_range=(4800.0, 5600.0))


def write_star(path, flux):
    """A file in STELIB's layout: linear air wavelengths, rest frame, 1 Angstrom a pixel."""
    hdu = fits.PrimaryHDU((1e-14 * flux).astype(np.float32))
    words = {"CRVAL1": AIR[0], "CDELT1": 1.0, "CRPIX1": 1.0, "TEFF": 5000.0, "LOG_G": 4.0, "FE_H": 0.0}
    hdu.header.update(words)
    hdu.writeto(path, overwrite=True)


def write_table(path, rows):
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["file", "star", *LABELS])
        table.writeheader()
        table.writerows(rows)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """48 stars; their catalogue is what the tiny model reads, off by `OFFSET`, with noise."""
    home = tmp_path_factory.mktemp("survey")
    model, extractor = tiny_model(), own_pixels()
    model.save_pretrained(home / "parent")
    extractor.save_pretrained(home / "parent")
    (home / "spectra").mkdir()
    rng, sampler = np.random.default_rng(1), LabelSampler(teff=(4200.0, 6500.0))
    flux = CannonSynthesizer(air_to_vacuum(AIR), fwhm=3.0)(np.stack([sampler.draw(rng) for _ in range(48)]))
    rows = []
    for number, one in enumerate(flux * (1 + 0.01 * rng.standard_normal(flux.shape))):
        file = f"STELIB_v3.2_HD{number + 1:06d}.fits"
        write_star(home / "spectra" / file, one)
        rows.append({"file": file, "star": f"HD {number + 1}", "teff": 5000.0, "logg": 4.0, "fe_h": 0.0})
    write_table(home / "stars.csv", rows)
    stars = read_stars(FolderConfig(folder=str(home / "spectra"), table=str(home / "stars.csv")), extractor)
    mean = ask(model, extractor, stars.rows, 64)[0] * LABEL_SCALE + LABEL_CENTER
    published = mean + OFFSET + NOISE * rng.standard_normal(mean.shape)
    for row in rows:
        place = list(stars.star_ids).index(row["star"].replace(" ", ""))
        row.update(zip(LABELS, published[place].tolist(), strict=True))
    write_table(home / "stars.csv", rows)
    return home


@cache
def stars_of(survey):
    """Its 48 stars as the tiny model sees them; not to be changed."""
    return read_stars(FolderConfig(folder=str(survey / "spectra"), table=str(survey / "stars.csv")), own_pixels())


@cache
def anchors_of(survey):
    """Synthetic stars beside them."""
    return anchor_rows(stars_of(survey), own_pixels(), None, seed=0)


def arguments_for(survey, output):
    return KitArguments(
        labels=survey / "stars.csv",
        spectra=survey / "spectra",
        output=output,
        model=str(survey / "parent"),
        method="head",
    )


@pytest.fixture
def asked(survey, tmp_path, unrendered):
    return arguments_for(survey, tmp_path / "tuned")


@pytest.fixture(scope="module")
def tuned(survey, tmp_path_factory):
    """What the kit makes of the survey."""
    return finetune(arguments_for(survey, tmp_path_factory.mktemp("tuned") / "mine"))


def table_of(survey):
    with (survey / "stars.csv").open() as stream:
        return list(csv.DictReader(stream))


def told(folder):
    return json.loads((folder / "results.json").read_text())


# ---------------------------------------------------------------- folds and rules


def test_folds_hang_on_names_and_seed_alone():
    names = np.array([f"HD{number}" for number in (*range(23), *range(7))])  # seven stars have two visits
    folds = deal_folds(names, 5, seed=3)
    assert sorted(np.bincount(folds[:23])) == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(folds[23:], folds[:7])
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(deal_folds(names[order], 5, seed=3), folds[order])
    assert (deal_folds(names, 5, seed=4) != folds).any()


def test_what_cannot_be_told_apart_is_decided_for_the_simpler():
    rng = np.random.default_rng(0)
    simple = rng.chisquare(1, 200)
    same, better = simple + 0.01 * rng.standard_normal(200), 0.5 * simple
    assert simplest_within_one_error(np.stack([simple, simple, simple])) == 0
    assert simplest_within_one_error(np.stack([simple, same])) == 0
    assert simplest_within_one_error(np.stack([simple, better, 0.99 * better + 0.01 * rng.chisquare(1, 200)])) == 1
    assert simplest_within_one_error(np.stack([simple, simple + 1, better])) == 2


def test_a_difference_is_judged_by_its_own_error():
    """3 % less in every star is certain, although the errors themselves scatter by 140 %."""
    simple = np.random.default_rng(0).chisquare(1, 100)
    assert simplest_within_one_error(np.stack([simple, 0.97 * simple])) == 1


@pytest.mark.parametrize("factor", [0.7, 1.0, 5.0])
def test_widening_is_found(factor):
    rng = np.random.default_rng(0)
    sigma, error = rng.uniform(0.5, 2, 4000), np.full(4000, 0.3)
    residual = factor * sigma * rng.standard_normal(4000) + error * rng.standard_normal(4000)
    assert widening(residual, sigma, error) == pytest.approx(factor, rel=0.06)


def test_a_wrong_label_widens_no_interval_but_its_own():
    rng = np.random.default_rng(0)
    sigma, residual = np.ones(100), rng.standard_normal(100)
    right = widening(residual, sigma, np.zeros(100))
    residual[0] = 40.0
    assert widening(residual, sigma, np.zeros(100)) == pytest.approx(right, rel=0.05)


def test_widening_knows_when_nothing_is_left_to_explain():
    assert widening(np.zeros(50), np.ones(50), np.ones(50)) == FACTOR_LIMITS[0]
    assert widening(np.empty(0), np.empty(0), np.empty(0)) == 1.0


def test_score_counts_stars_and_the_gain_is_paired():
    squared = np.array([1.0, 4.0, 9.0, np.nan])
    score = Score.of(squared, squared + np.array([1.0, 2.0, 3.0, 0.0]))
    assert score.rmse == pytest.approx(np.sqrt(14 / 3))
    assert score.gain == pytest.approx(2 / (np.std([1, 2, 3]) / np.sqrt(3)))
    # Of many Gaussian errors: sigma / sqrt(2 n).
    many = np.random.default_rng(0).standard_normal(20_000) ** 2
    assert Score.of(many, many).error == pytest.approx(1 / np.sqrt(2 * 20_000), rel=0.05)


# ---------------------------------------------------------------- the stars


def test_stars_are_in_the_order_of_their_names_whatever_the_tables(survey, tmp_path):
    rows = table_of(survey)
    write_table(tmp_path / "shuffled.csv", [rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    stars, shuffled = (
        read_stars(FolderConfig(folder=str(survey / "spectra"), table=str(table)), own_pixels())
        for table in (survey / "stars.csv", tmp_path / "shuffled.csv")
    )
    assert list(stars.star_ids) == sorted(f"HD{number + 1}" for number in range(48))
    np.testing.assert_array_equal(stars.labels, shuffled.labels)
    np.testing.assert_array_equal(stars.rows[5]["flux"], shuffled.rows[5]["flux"])


def test_visits_are_averaged_star_by_star(survey):
    stars = stars_of(survey)
    visits = replace(stars.only(np.arange(48) < 4), star_ids=np.array(["A", "B", "B", "C"]))
    values = np.array([[1.0, np.nan], [2.0, 5.0], [4.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(visits.per_star(values), [[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    assert visits.n_stars == 3


def test_resolution_is_told_to_the_model(survey):
    """STELIB's 3 Angstrom: a resolving power that grows with wavelength."""
    stars = stars_of(survey)
    row = stars.rows[0]
    there = row["wavelength"] > 0
    np.testing.assert_allclose(row["wavelength"][there] / row["resolving_power"][there], stars.fwhm[0], rtol=1e-3)
    assert 2 < stars.fwhm[0] < 4


def test_a_window_hides_the_rest(survey):
    config = FolderConfig(folder=str(survey / "spectra"), table=str(survey / "stars.csv"))
    row = read_stars(config, own_pixels(), window=(5100.0, 5300.0)).rows[0]
    seen = row["wavelength"][row["attention_mask"] > 0]
    assert 5100 <= seen.min() < 5102
    assert 5298 < seen.max() <= 5300
    with pytest.raises(ValueError, match=r"no good pixel lies in the window 7000-8000 vacuum Angstrom; .* reaches 490"):
        read_stars(config, own_pixels(), window=(7000.0, 8000.0))


# ---------------------------------------------------------------- synthetic stars


def test_anchors_lie_on_the_stars_own_pixels_and_look_like_stars(survey):
    stars, anchors = stars_of(survey), anchors_of(survey)
    assert len(stars.pixels) == 1
    assert len(anchors) == 600
    np.testing.assert_array_equal(anchors[0]["wavelength"], stars.rows[0]["wavelength"])
    real, made = (np.mean([row["flux"] for row in rows], axis=0) for rows in (stars.rows, anchors))
    assert np.corrcoef(real, made)[0, 1] > 0.9  # both are of the Cannon grid here


def test_anchors_of_the_h_band_have_abundances_and_gaps():
    """On APOGEE's pixels, at its resolution, they are its own synthesizer's; between the detectors is nothing."""
    survey, grid = SURVEYS["apogee"], apstar_wavelength()
    drawn = np.random.default_rng(0)
    expected = survey.synthesizer(np.stack([survey.draw(drawn) for _ in range(20)]))
    fwhm = float(np.median(grid)) / survey.resolving_power
    flux = synthesize(grid, fwhm, 20, np.random.default_rng(0))
    inside = np.isin(grid, survey.wavelength)
    np.testing.assert_allclose(flux[:, inside], expected, atol=1e-5)
    assert np.isnan(flux[:, 3400]).all()  # between the blue and the green detector
    assert {"mg_fe", "o_fe"} <= set(survey.label_names)


def test_blunter_spectra_have_shallower_lines():
    wavelength = air_to_vacuum(AIR)
    sharp, blunt = (synthesize(wavelength, fwhm, 50, np.random.default_rng(0)) for fwhm in (2.0, 10.0))
    assert blunt.std(axis=1).mean() < 0.8 * sharp.std(axis=1).mean()


# ---------------------------------------------------------------- candidates


def left_out_of(survey, tmp_path, learned=LABELS, showings=64, n_folds=4, labels=None):
    model, extractor, stars = tiny_model(), own_pixels(), stars_of(survey)
    stars = stars if labels is None else replace(stars, labels=labels)
    frozen = read_frozen(model, extractor, stars, learned, anchors_of(survey))
    return LeftOut(
        fold=deal_folds(stars.star_ids, n_folds, seed=0),
        frozen=frozen,
        training=Training(model, extractor, frozen, list(learned), seed=0),
        candidates={"frozen": FROZEN} | {name: trained_candidates(name, showings) for name in ("lora", "full")},
        memory=tmp_path / "memory",
    )


def test_every_star_is_shown_once_a_round_and_never_empty():
    n_tokens = 4
    rows = [
        {
            "flux": np.full(n_tokens * PATCH_SIZE, float(number)),
            "attention_mask": np.repeat([1, 0, 0, 0], PATCH_SIZE),  # one good token: it may not be hidden
            "labels": np.zeros(3),
        }
        for number in range(6)
    ]
    shown = ShownAgain(rows, np.array(["A", "B", "B", "B", "C", "D"]), 400, PATCH_SIZE, seed=0)
    seen = [shown[index] for index in range(400)]
    assert all(row["attention_mask"].any() for row in seen)
    assert {len(row["flux"]) // PATCH_SIZE for row in seen} >= {2, 3, 4}
    star = np.array([0, 1, 1, 1, 2, 3])[[int(row["flux"][0]) for row in seen]].reshape(100, 4)
    assert (np.sort(star, axis=1) == np.arange(4)).all()
    assert {int(row["flux"][0]) for row in seen} == set(range(6))
    np.testing.assert_array_equal(shown[17]["flux"], seen[17]["flux"])


def test_amounts_are_whole_steps():
    amounts = [candidate.amount for candidate in trained_candidates("lora", 1000)]
    assert amounts == [128, 256, 512, 1008]
    assert [candidate.amount for candidate in trained_candidates("lora", 17)] == [16, 32]
    assert str(Candidate("lora", 1008)) == "LoRA, 1,008 spectra shown"


def test_half_of_a_training_is_a_training_of_half_the_length(survey, tmp_path):
    """What makes one training answer for several numbers of spectra shown."""
    left_out = left_out_of(survey, tmp_path)
    asked, candidates = left_out.fold == 0, left_out.candidates["full"]
    with tqdm(disable=True) as bar:
        model, together = left_out.training.run(candidates, ~asked, asked, bar)
        shorter, alone = left_out.training.run(candidates[:-1], ~asked, asked, bar)
    np.testing.assert_array_equal(alone.mean[-1], together.mean[-2])
    rows = left_out.frozen.stars.only(asked).rows
    np.testing.assert_allclose(ask(shorter, own_pixels(), rows, 64)[0], alone.mean[-1], atol=1e-5)
    assert np.abs(ask(model, own_pixels(), rows, 64)[0] - together.mean[-2]).max() > 1e-4


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_learns_and_leaves_the_parent_alone(survey, tmp_path, method):
    left_out = left_out_of(survey, tmp_path, showings=320)
    before = {name: weights.clone() for name, weights in left_out.training.parent.state_dict().items()}
    left_out.ask(method, [frozenset([0])])
    mean = left_out.known[method, frozenset([0])].mean
    error = np.sqrt(np.mean((mean - left_out.frozen.scaled[left_out.fold == 0]) ** 2, axis=(1, 2)))
    assert error.max() < 0.35  # it began from the constant offset, and did no harm
    for name, weights in left_out.training.parent.state_dict().items():
        torch.testing.assert_close(weights, before[name], rtol=0, atol=0)


def test_readouts_of_labels_not_learned_stay(survey, tmp_path):
    weight, bias = left_out_of(survey, tmp_path, learned=["fe_h"]).frozen.corrections(np.ones(48, dtype=bool))
    assert not weight[:, :2].any()
    assert not bias[:, :2].any()
    assert bias[FROZEN.index(Candidate("offset")), 2] == pytest.approx(OFFSET[2] / LABEL_SCALE[2], abs=0.01)


# ---------------------------------------------------------------- nested cross-validation


def test_where_an_offset_is_all_there_is_only_noise_is_left(survey, tmp_path):
    left_out = left_out_of(survey, tmp_path)
    found = Findings.of(left_out, cross_validate(left_out, ["frozen"]), LABELS, [])
    assert Candidate("unchanged") not in found.chosen
    for score, noise in zip(found.scores(found.mean), NOISE, strict=True):
        assert score.rmse == pytest.approx(noise, rel=0.3)
        assert score.gain > 5


@pytest.mark.parametrize("methods", [["frozen"], ["lora"]])
def test_no_star_has_a_part_in_its_own_answer(survey, tmp_path, methods):
    """A label of fold 0, wrong by a lot, changes nothing about fold 0's answers: no choice, no weight, no sigma."""
    honest = left_out_of(survey, tmp_path / "honest", n_folds=3, showings=32)
    labels = honest.frozen.stars.labels.copy()
    judged = honest.fold == 0
    labels[judged] += [900.0, 1.0, -0.7]
    tampered = left_out_of(survey, tmp_path / "tampered", n_folds=3, showings=32, labels=labels)
    first, second = (cross_validate(one, methods) for one in (honest, tampered))
    np.testing.assert_array_equal(first.mean[judged], second.mean[judged])
    np.testing.assert_array_equal(first.log_var[judged], second.log_var[judged])
    assert np.abs(first.mean[~judged] - second.mean[~judged]).max() > 1e-3


def test_labels_without_any_relation_to_the_spectra_are_not_learned(survey, tmp_path):
    """Noise for labels: the honest error is not smaller than their spread, though the best of many looks so."""
    rng = np.random.default_rng(0)
    labels = np.array(LABEL_CENTER) + rng.standard_normal((48, 3)) * LABEL_SCALE
    left_out = left_out_of(survey, tmp_path, labels=labels)
    found = Findings.of(left_out, cross_validate(left_out, ["frozen"]), LABELS, [])
    for score, values in zip(found.scores(found.mean), labels.T, strict=True):
        assert score.rmse > 0.97 * values.std()


def test_all_weights_are_tried_only_where_lora_pays(survey, tmp_path):
    left_out = left_out_of(survey, tmp_path, showings=16)
    assert choose(left_out, ["frozen", "lora", "full"]).method == "frozen"
    assert {method for method, _ in left_out.known} == {"frozen", "lora"}


def test_a_star_counts_as_one_however_often_it_was_seen(survey, tmp_path):
    once = left_out_of(survey, tmp_path)
    everyone = np.ones(48, dtype=bool)
    visits = np.repeat(np.arange(48), np.arange(48) % 3 + 1)  # one, two or three of each star
    stars = once.frozen.stars
    told = {name: getattr(stars, name)[visits] for name in ("star_ids", "labels", "label_errors", "fwhm", "snr")}
    seen = {name: getattr(once.frozen, name)[visits] for name in ("scaled", "mean", "log_var", "features")}
    often = replace(once.frozen, stars=replace(stars, rows=[stars.rows[i] for i in visits], **told), **seen)
    for one, other in zip(once.frozen.corrections(everyone), often.corrections(everyone[visits]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


# ---------------------------------------------------------------- from files to a model


def test_the_folder_is_a_model_that_says_what_the_catalogue_says(survey, tuned):
    model, extractor = AutoModel.from_pretrained(tuned).eval(), AutoFeatureExtractor.from_pretrained(tuned)
    parent = AutoModel.from_pretrained(survey / "parent").eval()
    stars = read_stars(FolderConfig(folder=str(survey / "spectra"), table=str(survey / "stars.csv")), extractor)
    mean, log_var, *_ = ask(model, extractor, stars.rows, 64)
    answer = extractor.decode_labels(mean, log_var)
    own = extractor.decode_labels(ask(parent, extractor, stars.rows, 64)[0])
    for column, (name, offset, noise) in enumerate(zip(LABELS, OFFSET, NOISE, strict=True)):
        assert np.mean(answer[name]["value"] - own[name]["value"]) == pytest.approx(offset, abs=noise)
        assert np.std(answer[name]["value"] - stars.labels[:, column]) < 1.3 * noise
    assert set(extractor.sigma_factors) == set(LABELS)
    assert told(tuned)["calibrated"] == LABELS


def test_the_report_tells_what_was_found(survey, tuned):
    report, results = (tuned / "report.md").read_text(), told(tuned)
    assert "| Teff [K] | 48 |" in report
    # A constant is all that this catalogue differs by.
    assert report.count("better than the model as it was") == 3
    assert report.count("not told apart from the model plus a constant") == 3
    assert all(results["chosen"][name] in report for name in LABELS)
    assert "chosen, tuned and calibrated on the other 4" in report
    assert {path.name for path in (tuned / "figures").iterdir()} == {"out_of_fold.png", "candidates.png"}
    assert {path.name for path in tuned.iterdir() if path.is_file()} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "report.md", "results.json",
        "stage.json",
    }  # fmt: skip


def test_the_folder_can_be_published(survey, tuned):
    card = (tuned / "README.md").read_text()
    assert "[Fe/H] (`fe_h`)" in card
    assert "no figure here is about them" in card
    assert "Falcón-Barroso" not in card  # who is cited for MILES
    for path in (*tuned.glob("*.json"), *tuned.glob("*.md")):
        assert str(survey) not in path.read_text(), path
    pushed = CliRunner().invoke(cli.app, ["push", str(tuned), "--to", "astro", "--dry-run"])
    assert pushed.exit_code == 0, pushed.output
    assert "would go to the model repository astro/spectrafm-mine" in pushed.output
    for file in ("results.json", "stage.json", "figures/out_of_fold.png", "figures/candidates.png"):
        assert f" MB  {file}" in pushed.output
    assert (tuned / "README.md").read_text() == card
    with prepared(tuned, "astro", change=False) as (place, _, _):
        again = (place / "README.md").read_text()  # rendered anew, for its repository
    assert again.replace("astro/spectrafm-mine", "mine") != again
    for said in (
        "no figure here is about them",
        "Whoever published the spectra",
        "by a model that knew nothing of it.",
    ):
        assert said in again
        assert said in card


@pytest.mark.usefixtures("unrendered")
def test_neither_the_order_of_rows_nor_a_second_run_changes_anything(survey, tuned, tmp_path):
    written = (tuned / "stage.json").stat().st_mtime_ns
    rows = table_of(survey)
    write_table(tmp_path / "shuffled.csv", [rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    shuffled = replace(arguments_for(survey, tuned), labels=tmp_path / "shuffled.csv")
    finetune(shuffled)  # the same stars: done already
    assert (tuned / "stage.json").stat().st_mtime_ns == written
    other = finetune(replace(shuffled, output=tmp_path / "other"))
    assert (other / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
    assert told(other)["scores"] == told(tuned)["scores"]
    before = told(other)
    finetune(replace(shuffled, output=tmp_path / "other", labels_wanted=["fe_h"]))  # not the same
    assert told(other)["chosen"].keys() == {"fe_h"} < before["chosen"].keys()


def test_a_killed_run_goes_on_where_it_was(asked, monkeypatch):
    trainings = []
    run = Training.run

    def killed(self, candidates, learned_from, asked_for, bar):
        if len(trainings) == 4:
            raise KeyboardInterrupt
        trainings.append(learned_from.sum())
        return run(self, candidates, learned_from, asked_for, bar)

    asked = replace(asked, method="full", showings=16, folds=3)
    monkeypatch.setattr(Training, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(asked)
    assert not (asked.output / "stage.json").exists()
    monkeypatch.setattr(Training, "run", lambda self, *rest: trainings.append(0) or run(self, *rest))
    finetune(asked)
    assert len(trainings) == 7  # six without one or two of three folds, and the model itself
    assert told(asked.output)["chosen"]["teff"].startswith("all weights")


def test_ten_stars_are_enough_and_nine_are_not(survey, asked, tmp_path):
    rows = table_of(survey)
    write_table(tmp_path / "ten.csv", rows[:10])
    folder = finetune(replace(asked, labels=tmp_path / "ten.csv", method="auto"))
    report = (folder / "report.md").read_text()
    assert "10 stars are too few to judge so many candidates, 30 are needed" in report
    assert f"Fewer than {FEWEST_STARS} stars have teff, logg, fe_h: sigma keeps the parent's factors" in report
    assert told(folder)["calibrated"] == []
    assert told(folder)["scores"]["teff"]["rmse"] < told(folder)["scores"]["teff"]["unchanged_rmse"]
    write_table(tmp_path / "nine.csv", rows[:9])
    with pytest.raises(ValueError, match=r"at least 10 stars with a label .* needed, .* got 9 stars .* teff \[K\] 9"):
        finetune(replace(asked, labels=tmp_path / "nine.csv"))


def test_labels_that_are_missing_or_unknown_are_named(survey, asked, tmp_path):
    rows = [row | {"teff": -9999, "logg": "", "fe_h": "nan"} for row in table_of(survey)]
    write_table(tmp_path / "none.csv", rows)
    with pytest.raises(ValueError, match=r"none.csv has columns of labels, but not one usable value in any row"):
        finetune(replace(asked, labels=tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="this model knows teff, logg, fe_h, but mg_fe was asked for"):
        finetune(replace(asked, labels_wanted=["mg_fe"]))
    rows = [row | ({"logg": ""} if number > 4 else {}) for number, row in enumerate(table_of(survey))]
    write_table(tmp_path / "few.csv", rows)
    with pytest.raises(ValueError, match="at least 10 stars with logg are needed"):
        finetune(replace(asked, labels=tmp_path / "few.csv", labels_wanted=["logg", "teff"]))
    stars = read_stars(replace(asked, labels=tmp_path / "few.csv").folder, own_pixels())
    learned, notes = labels_to_learn(stars, LABELS, None)
    assert learned == ["teff", "fe_h"]
    assert notes == ["log g was not learned: 5 stars have it, 10 are needed."]


def test_a_spectrum_that_cannot_be_read_is_skipped_and_listed(survey, asked, tmp_path):
    rows = table_of(survey)
    rows[3]["file"], rows[7]["file"] = "nowhere.fits", "page.html"
    write_table(tmp_path / "some.csv", rows)
    try:
        (survey / "spectra/page.html").write_text("<html>404</html>")
        folder = finetune(replace(asked, labels=tmp_path / "some.csv"))
    finally:
        (survey / "spectra/page.html").unlink()
    report = (folder / "report.md").read_text()
    assert "| Teff [K] | 46 |" in report
    assert "2 files could not be used" in report
    assert "- nowhere.fits (HD4): there is no file nowhere.fits" in report
    assert "- page.html (HD8):" in report


def test_a_star_that_lacks_a_label_teaches_the_others(survey, asked, tmp_path):
    rows = table_of(survey)
    rows[5]["logg"], rows[6]["logg"] = "", "n/a"
    write_table(tmp_path / "gaps.csv", rows)
    folder = finetune(replace(asked, labels=tmp_path / "gaps.csv"))
    figures = told(folder)["labels"]
    assert [figures[name]["n"] for name in LABELS] == [48, 46, 48]
    assert "could not be used" not in (folder / "report.md").read_text()


def test_a_wrong_label_is_pointed_at(survey, asked, tmp_path):
    rows = table_of(survey)
    rows[5]["teff"] = float(rows[5]["teff"]) + 1500
    write_table(tmp_path / "wrong.csv", rows)
    report = (finetune(replace(asked, labels=tmp_path / "wrong.csv")) / "report.md").read_text()
    assert "- HD6: Teff published" in report.split("Far from all others")[1]


def test_without_synthetic_stars_it_is_a_ridge_regression_and_says_so(asked, monkeypatch):
    """No synthetic spectrum reaches beyond the Cannon grid; here its end is moved."""

    def nowhere(*arguments, **options):
        raise ValueError("the Cannon grid reaches [3002, 17978] vacuum Angstrom")

    monkeypatch.setattr("spectrafm_hf.few_shot_stars.CannonSynthesizer", nowhere)
    report = (finetune(asked) / "report.md").read_text()
    assert "plain ridge regression: the Cannon grid reaches" in report


def test_nobody_elses_folder_is_written_over(survey, asked, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis holds something else, .* choose another one with --output"):
        finetune(replace(asked, output=tmp_path / "thesis"))
    assert (tmp_path / "thesis/README.md").read_text() == "mine"
    with pytest.raises(ValueError, match="parent holds something else"):
        finetune(replace(asked, output=survey / "parent"))


def test_a_shared_readout_is_refused(survey, asked, tmp_path):
    tiny_model(shared_readout=True).save_pretrained(tmp_path / "shared")
    own_pixels().save_pretrained(tmp_path / "shared")
    with pytest.raises(ValueError, match="needs a model whose labels have readouts of their own"):
        finetune(replace(asked, model=str(tmp_path / "shared")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "best"}, "method must be one of auto, head, lora, full"),
        ({"folds": 2}, "folds must be 3 or more"),
        ({"window": (6000.0, 5000.0)}, "window must be LOW HIGH in vacuum Angstrom, got 6000 5000"),
        ({"showings": 0}, "showings must be 1 spectrum or more"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_arguments_that_make_no_sense(asked, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(asked, **changes)


def test_without_a_parent_it_is_the_one_that_ships(survey, tuned, monkeypatch):
    """Here the survey's, from which the folder was tuned: it is found done."""
    monkeypatch.setattr(few_shot_kit, "located", lambda name: str(survey / "parent"))
    written = (tuned / "stage.json").stat().st_mtime_ns
    for model in (None, "spectrafm-small"):
        finetune(replace(arguments_for(survey, tuned), model=model))
    assert (tuned / "stage.json").stat().st_mtime_ns == written


# ---------------------------------------------------------------- the command


def test_the_command_tells_what_came_of_it(survey, tuned):
    arguments = ["finetune", "--labels", str(survey / "stars.csv"), "--spectra", str(survey / "spectra")]
    arguments += ["--model", str(survey / "parent"), "--output", str(tuned), "--method", "head"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "[Fe/H]" in result.output
    assert " K +- " in result.output
    assert f"report {tuned}/report.md" in result.output


def test_the_command_fails_in_one_sentence(survey, tmp_path, monkeypatch, capsys):
    arguments = ["--labels", "nowhere.csv", "--spectra", str(survey / "spectra"), "--model", str(survey / "parent")]
    monkeypatch.setattr(sys, "argv", ["spectrafm", "finetune", *arguments, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: no table at nowhere.csv; give a file")


def test_prepare_is_what_the_extractor_does():
    extractor = own_pixels()
    wavelength = air_to_vacuum(AIR)
    flux = 1 + 0.1 * np.sin(wavelength / 7)
    seen = {"flux": flux, "wavelength": wavelength, "bad_pixel": None, "flux_error": None, "resolving_power": 2000.0}
    whole = extractor(flux, wavelength, resolving_power=2000.0)
    np.testing.assert_array_equal(prepare(extractor, seen, None)["flux"], whole["flux"][0])
