"""The line list agrees with the synthesizer; a network that is known to read Mg and Fe is found to do so.

The network is a real one, trained here for a quarter of a minute on real synthetic spectra: 110 Angstrom of the H band,
with the Mg triplet and a dozen lines of Fe, in stars whose [Fe/H] and [Mg/Fe] vary independently.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import PATCH_SIZE, random_batch, tiny_extractor, tiny_model
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from spectrafm_hf import SpectraFMConfig, SpectraFMFeatureExtractor, SpectraFMForLabelPrediction, cli
from spectrafm_hf.explain import (
    CONTROL_REACH,
    MeanByWavelength,
    area_under_roc,
    attention_by_wavelength,
    control_pixels,
    deal,
    draw_stars,
    explain,
    over_line_width,
    peaks,
    predict_rows,
    rows_of,
    sensitivity,
)
from spectrafm_hf.line_list import line_pixels, lines_by_element, read_line_list
from spectrafm_hf.prediction import ask
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSynthesizer
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.surveys import SURVEYS

# ---------------------------------------------------------------- the line list

H_BAND = [line for line in read_line_list() if line.wavelength > 15_000]
OPTICAL = [line for line in read_line_list() if line.wavelength < 15_000]
STARS = ({"teff": 4800, "logg": 2.5}, {"teff": 4200, "logg": 1.7}, {"teff": 5600, "logg": 4.4})
RESPONDS_TO = {"OH": "o_fe", "CO": "c_fe", "CN": "n_fe", "Mg I": "mg_fe"}


@pytest.fixture(scope="module")
def synthesizer():
    return ApogeeSynthesizer()


def spectrum(synthesizer, **labels):
    row = [labels.get(name, 0.0) for name in synthesizer.label_names]
    return synthesizer(np.array([row]))[0].astype(float)


def response(synthesizer, name, **star):
    more, less = (spectrum(synthesizer, **star, **{name: step}) for step in (0.1, -0.1))
    return np.log(more / less) / 0.2


def minima(wavelength, values, least):
    """Places of local minima that lie `least` below 0 or the continuum, from a parabola through three pixels."""
    left, middle, right = values[:-2], values[1:-1], values[2:]
    lowest = (middle <= left) & (middle < right) & (middle < -least)
    shift = 0.5 * (left - right) / np.where(lowest, left - 2 * middle + right, 1.0)
    return (wavelength[1:-1] + shift * (wavelength[2:] - wavelength[:-2]) / 2)[lowest]


def offsets(lines, places):
    """Distance of each line from the nearest of the places, Angstrom."""
    return np.array([np.abs(places - line.wavelength).min(initial=np.inf) for line in lines])


def test_list_holds_the_lines_everybody_knows():
    known = {"Mg I": (5168.76, 5174.13, 5185.05), "Na I": (5891.58, 5897.56), "Ca II": (3934.77, 3969.59, 8544.44)}
    known |= {"H I": (4862.69, 6564.61, 16811.11), "Fe I": (15211.68, 16045.04)}  # vacuum; NIST
    for species, wavelengths in known.items():
        listed = np.array([line.wavelength for line in read_line_list() if line.species == species])
        for wavelength in wavelengths:
            assert np.abs(listed - wavelength).min() < 0.1


def test_every_line_has_a_source_and_stands_for_an_element():
    for line in read_line_list():
        assert line.source
        assert line.species.startswith(line.element) or line.species in ("OH", "CO", "CN")
    counts = [len(lines) for lines in lines_by_element(read_line_list()).values()]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == len(read_line_list()) == len({(x.species, x.wavelength) for x in read_line_list()})


def test_atomic_lines_of_the_h_band_are_dips_of_the_synthesizer(synthesizer):
    atoms = [line for line in H_BAND if line.species not in RESPONDS_TO and line.element != "H"]
    dips = [minima(synthesizer.wavelength, spectrum(synthesizer, **star) - 1, 0.03) for star in STARS]
    nearest = np.min([offsets(atoms, places) for places in dips], axis=0)
    assert nearest.max() < 0.21
    assert np.median(nearest) < 0.04
    elsewhere = [dataclasses.replace(line, wavelength=line.wavelength + 1.0) for line in atoms]
    shifted = np.min([offsets(elsewhere, places) for places in dips], axis=0)
    assert (shifted < 0.21).mean() < 0.8  # the band is crowded, and still wrong wavelengths would be found out


@pytest.mark.parametrize(("species", "reach"), [("Mg I", 0.05), ("OH", 0.15), ("CN", 0.15), ("CO", 0.3)])
def test_lines_darken_with_the_abundance_they_stand_for(synthesizer, species, reach):
    lines = [line for line in H_BAND if line.species == species]
    places = [
        minima(synthesizer.wavelength, response(synthesizer, RESPONDS_TO[species], **star), 0.07) for star in STARS
    ]
    assert np.min([offsets(lines, place) for place in places], axis=0).max() < reach


def test_brackett_lines_follow_rydberg_and_darken_hot_stars(synthesizer):
    lines = [line.wavelength for line in H_BAND if line.element == "H"]
    upper = np.arange(20, 10, -1)
    np.testing.assert_allclose(lines, 1e8 / (109_677.58 * (1 / 16 - 1 / upper**2)), atol=0.05)
    wavelength, hot = synthesizer.wavelength, spectrum(synthesizer, teff=7500, logg=4.2)
    for line in lines[-3:]:
        near, far = np.abs(wavelength - line) < 2, np.abs(np.abs(wavelength - line) - 30) < 5
        assert np.median(hot[near]) < np.median(hot[far]) - 0.03


def test_optical_lines_are_dips_of_the_cannon_grid():
    wavelength = np.arange(3600.0, 8990.0, 0.1)
    stars = [[4800, 2.5, 0.0], [5700, 4.4, 0.0], [4800, 2.5, -1.5], [7000, 4.2, 0.0]]
    flux = CannonSynthesizer(wavelength, resolving_power=22_500.0)(np.array(stars)).astype(float)
    lines = [line for line in OPTICAL if line.element != "H"]
    nearest = np.min([offsets(lines, minima(wavelength, one - 1, 0.05)) for one in flux], axis=0)
    assert nearest.max() < 0.21
    assert np.median(nearest) < 0.03


def test_a_line_owns_the_pixels_within_half_a_fwhm():
    wavelength, line = apogee_wavelength(), next(line for line in H_BAND if line.element == "Fe")
    own = wavelength[line_pixels(wavelength, [line], 22_500.0)]
    assert own.size in (3, 4)
    assert np.abs(own - line.wavelength).max() <= line.wavelength / 45_000
    hydrogen = [line for line in H_BAND if line.element == "H"][-1:]
    assert np.ptp(wavelength[line_pixels(wavelength, hydrogen, 22_500.0)]) == pytest.approx(10.0, abs=0.5)


# ---------------------------------------------------------------- attention


def rows_from(batch):
    return [{name: values[i].numpy() for name, values in batch.items()} for i in range(len(batch["flux"]))]


PAPER_LIKE = {"tokens": "pixel", "patch_size": 1, "encoding_size": 32, "learned_key_value": True, "norm_first": False}


@pytest.mark.parametrize("kind", [{}, PAPER_LIKE])
def test_tokens_that_are_alike_get_even_attention(kind):
    """The learned key takes its share; what is left is renormalised, so that even stays 1."""
    model, extractor = tiny_model(**kind), tiny_extractor(patch_size=kind.get("patch_size", PATCH_SIZE))
    batch = random_batch()
    batch["attention_mask"][1:] = 1
    if kind == {}:
        batch["attention_mask"][0] = 1  # patches with as many good pixels each
    with torch.no_grad():
        for block in model.decoder_layers:
            block.attention.k_proj.weight.zero_()
            block.attention.k_proj.bias.zero_()
    wavelength = batch["wavelength"][0].numpy()
    found = attention_by_wavelength(model, extractor, rows_from(batch), ["a", "b", "b", "b"], wavelength)
    assert set(found) == {"a", "b"}
    for attention in found.values():
        there = np.isfinite(attention)
        np.testing.assert_allclose(attention[there], 1.0, atol=1e-5)
    assert np.array_equal(np.isnan(found["a"][0]), batch["attention_mask"][0].numpy() == 0)


def test_attention_is_what_the_model_returns(model, extractor):
    batch = random_batch(1)
    row, good = rows_from(batch)[0], batch["attention_mask"][0].numpy().astype(bool)
    found = attention_by_wavelength(model, extractor, [row], ["a"], row["wavelength"])["a"]
    model.set_attn_implementation("eager")
    weights = model(**batch, output_attentions=True).cross_attentions[-1][0].mean(0).detach().numpy()
    per_token = np.nansum(found.reshape(len(found), -1, PATCH_SIZE), axis=-1) / good.sum()
    np.testing.assert_allclose(per_token, weights, atol=1e-6)


def test_attention_streams_and_leaves_the_model_as_it_was(extractor):
    model = tiny_model().train()
    model.set_attn_implementation("sdpa")
    rows, drawn, seen = rows_from(random_batch(10)), [], []
    wavelength = rows[0]["wavelength"]

    def stream():
        for row in rows:
            drawn.append(1)
            yield row

    hook = model.register_forward_pre_hook(lambda *_: seen.append(len(drawn)))
    kinds = ["giants", "dwarfs"] * 5
    one = attention_by_wavelength(model, extractor, stream(), kinds, wavelength, batch_size=3)
    hook.remove()
    assert seen == [3, 6, 9, 10]
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    other = attention_by_wavelength(model, extractor, rows, kinds, wavelength, batch_size=10)
    for kind in one:
        np.testing.assert_allclose(one[kind], other[kind], atol=1e-5)


def test_contexts_hold_every_token_once():
    row = rows_from(random_batch(1, n_tokens=11))[0] | {"labels": np.zeros(3), "given": np.array([0.5])}
    parts = list(deal([row], PATCH_SIZE, context=4))
    assert [len(part["flux"]) // PATCH_SIZE for part in parts] == [4, 4, 3]
    assert all(part["given"] is row["given"] and "labels" not in part for part in parts)
    together = np.sort(np.concatenate([part["wavelength"] for part in parts]))
    assert np.array_equal(together, row["wavelength"])
    assert np.array_equal(next(deal([row], PATCH_SIZE, context=11))["flux"], row["flux"])


def test_predictions_in_one_context_are_the_model_s_own(model, extractor):
    rows = rows_from(random_batch())
    mean, *_ = ask(model, extractor, rows, 4)
    labels = predict_rows(model, extractor, rows, context=512, batch_size=3)
    np.testing.assert_allclose(labels, mean * extractor.label_scale + extractor.label_center, rtol=1e-5)
    assert predict_rows(model, extractor, rows[1:], context=2, batch_size=3).shape == (3, 3)


def test_means_fall_into_the_bin_of_their_wavelength():
    mean = MeanByWavelength(np.array([10.0, 11.0, 12.0]), 1)
    row = {"wavelength": np.array([9.8, 10.4, 11.2, 30.0, 0.0]), "attention_mask": np.array([1, 1, 0, 1, 1])}
    mean.add(np.array([[1.0, 3.0, 5.0, 7.0, 9.0]]), row)
    np.testing.assert_array_equal(mean.mean(), [[2.0, np.nan, np.nan]])


def test_peaks_are_named_by_their_deepest_lines():
    wavelength = np.arange(15740.0, 15790.0, 0.22)
    lines = [line for line in H_BAND if 15740 < line.wavelength < 15790]
    attention = np.where((wavelength > 15750) & (wavelength < 15756), 5.0, 1.0)
    attention[np.argmin(np.abs(wavelength - 15773.73))] = 9.0
    found = peaks(wavelength, attention, np.zeros(wavelength.size), lines, n_peaks=2)
    assert [what for _, what in found] == ["Fe", "Mg"]
    assert [where for where, _ in found] == pytest.approx([15773.73, 15753.0], abs=0.2)


# ---------------------------------------------------------------- figures of merit


def test_area_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 10, 200).astype(float), rng.random(200) < 0.2
    assert area_under_roc(values, positive) == pytest.approx(roc_auc_score(positive, values))
    assert area_under_roc(np.arange(4.0), np.array([False, False, True, True])) == 1.0
    assert area_under_roc(np.array([np.nan, 0.0, 1.0]), np.array([True, True, False])) == 0.0
    assert np.isnan(area_under_roc(values, np.zeros(200, dtype=bool)))


def test_mean_over_a_line_width_keeps_what_is_even_and_blurs_a_spike():
    wavelength, spike = apogee_wavelength(), np.zeros(7514)
    spike[3000] = 1.0
    blurred = over_line_width(np.stack([np.full(7514, 2.0), spike]), wavelength, 22_500.0)
    np.testing.assert_allclose(blurred[0], 2.0)
    assert set(np.flatnonzero(blurred[1])) == {2999, 3000, 3001}
    assert blurred[1, 3000] == pytest.approx(1 / 3)


def test_controls_are_as_many_as_deep_and_near(synthesizer):
    wavelength, depth = synthesizer.wavelength, 1 - spectrum(synthesizer, **STARS[0])
    hidden = line_pixels(wavelength, [line for line in H_BAND if line.element == "O"], 22_500.0)
    hidden_at, rng = wavelength[hidden], np.random.default_rng(0)
    for _ in range(3):
        control = control_pixels(rng, wavelength, depth, hidden)
        assert control.sum() == hidden.sum()
        assert not (control & hidden).any()
        assert max(np.abs(hidden_at - where).min() for where in wavelength[control]) < CONTROL_REACH
        assert depth[control].mean() == pytest.approx(depth[hidden].mean(), rel=0.1)
        random = rng.permutation(wavelength.size)[: hidden.sum()]
        assert abs(depth[random].mean() - depth[hidden].mean()) > 0.01


# ---------------------------------------------------------------- a network whose lines are known

LOW, HIGH = 15_690.0, 15_800.0
APOGEE = SURVEYS["apogee"]
INSIDE = (APOGEE.wavelength > LOW) & (APOGEE.wavelength < HIGH)
LABELS = ("fe_h", "mg_fe")
N_STEPS = 1000


class Window(ApogeeSynthesizer):
    """The synthesizer, seen through the window."""

    def __call__(self, labels):
        return super().__call__(labels)[:, INSIDE]


def draw_star(rng):
    logg = 2.5 if rng.random() < 0.5 else 4.5
    return np.array([rng.uniform(4600, 5000), logg, rng.uniform(-0.5, 0.3), rng.uniform(-0.35, 0.45), 0, 0, 0, 0])


@pytest.fixture(scope="module")
def survey():
    made = {"wavelength": APOGEE.wavelength[INSIDE], "segments": (slice(0, int(INSIDE.sum())),)}
    return dataclasses.replace(APOGEE, name="window", draw=draw_star, make_synthesizer=Window, **made)


@pytest.fixture(scope="module")
def trained(survey):
    """Reads [Fe/H] and [Mg/Fe] to a few hundredths of a dex."""
    extractor = SpectraFMFeatureExtractor(
        label_names=LABELS,
        label_center=(-0.1, 0.05),
        label_scale=(0.25, 0.25),
        patch_size=16,
        pixel_width=None,
        wavelength_range=(LOW, HIGH),
        smoothing_length=None,
    )
    rng, torch_rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    labels = np.stack([draw_star(rng) for _ in range(4096)])
    flux = survey.synthesizer(labels)
    extractor.fit_flux_norms(flux, np.ones_like(flux, dtype=bool), survey.wavelength)
    scaled, _ = extractor.clean(flux, np.ones_like(flux, dtype=bool), survey.wavelength)
    spread = torch.tensor(extractor.flux_scale)
    layout = extractor.cut_tokens(scaled[0], np.ones(spread.numel(), dtype=bool), survey.wavelength)
    pad = layout["flux"].size - spread.numel()
    flux = torch.tensor(np.pad(scaled, ((0, 0), (0, pad))))
    noise = torch.nn.functional.pad(0.01 / spread, (0, pad))
    wavelength, good = (torch.tensor(layout[name]).expand(64, -1) for name in ("wavelength", "attention_mask"))
    answers = torch.tensor(extractor.encode_labels(labels[:, 2:4])[0])

    torch.manual_seed(0)
    architecture = {"hidden_size": 32, "encoder_heads": [2], "encoder_sizes": [64], "decoder_heads": [2]}
    architecture |= {"decoder_sizes": [64], "encoding_size": 32, "shortest_period": 8.0, "longest_period": 1000.0}
    model = SpectraFMForLabelPrediction(SpectraFMConfig(label_names=LABELS, patch_size=16, **architecture)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=N_STEPS)
    for _ in range(N_STEPS):
        chosen = torch.randint(0, len(flux), (64,), generator=torch_rng)
        seen = (flux[chosen] + noise * torch.randn(64, flux.shape[1], generator=torch_rng)).float()
        loss = model(flux=seen, wavelength=wavelength, attention_mask=good, labels=answers[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), extractor


@pytest.fixture(scope="module")
def found(trained, survey):
    return explain(*trained, survey, n_stars=24, n_draws=4)


def score(found, label):
    return next(score for score in found.scores if score.label == label)


def test_labels_rise_where_their_own_element_absorbs(found):
    assert score(found, "mg_fe").sensitivity_auc > 0.85
    assert score(found, "mg_fe").among_lines_auc > 0.85
    assert score(found, "mg_fe").responsive_auc > 0.85
    assert score(found, "fe_h").sensitivity_auc > 0.7
    assert np.isnan(score(found, "fe_h").responsive_auc)  # [Fe/H] scales all metals


def test_a_ratio_falls_where_its_denominator_absorbs(found):
    of_mg = found.sensitivity[LABELS.index("mg_fe")]
    assert of_mg[found.pixels["Mg"]].mean() > 0 > of_mg[found.pixels["Fe"]].mean()
    assert found.element_auc["Fe"][LABELS.index("mg_fe")] < 0.5


def test_hiding_the_right_lines_moves_a_label_most(found):
    hidden = found.occlusion
    for label, element in (("fe_h", "Fe"), ("mg_fe", "Mg")):
        row, column = LABELS.index(label), hidden.elements.index(element)
        assert hidden.excess[row].argmax() == column
        assert hidden.moved[row, column] > hidden.control[row, column] + 2 * hidden.control_spread[row, column]
        assert hidden.depth[column] == pytest.approx(hidden.control_depth[column], abs=0.15)


def test_only_the_own_label_follows_an_abundance(found):
    assert found.abundances[:2] == list(LABELS)
    np.testing.assert_allclose(found.response[:, :2], np.eye(2), atol=0.25)


def test_sensitivity_is_the_slope_of_the_answer(trained, survey):
    model, extractor = trained
    rows = rows_of(
        extractor, survey, draw_stars(survey, 1, seed=5), np.stack([draw_star(np.random.default_rng(1))] * 2)
    )[:1]
    slope = sensitivity(model, extractor, rows, survey.wavelength)
    for pixel in (37, 250):
        darker = rows[0] | {"flux": rows[0]["flux"].copy()}
        darker["flux"][pixel] -= 0.05
        change = np.diff(predict_rows(model, extractor, [rows[0], darker], 512, 2), axis=0)[0] / 0.05
        np.testing.assert_allclose(slope[:, pixel], change, rtol=0.1, atol=2e-5)


def test_the_right_lines_raise_no_complaint(found):
    assert not [sentence for sentence in found.wrong_lines() if sentence.startswith("[Mg/Fe]")]
    assert "[Mg/Fe]        Mg" in found.report()


def test_the_wrong_lines_are_said_plainly(trained, survey):
    """The same network with its answers mixed up: what it calls [Mg/Fe] hangs on Fe."""
    model, extractor = trained
    swapped = SpectraFMFeatureExtractor(**extractor.to_dict() | {"label_names": LABELS[::-1]})
    config = SpectraFMConfig(**model.config.to_dict() | {"label_names": LABELS[::-1]})
    liar = SpectraFMForLabelPrediction(config)
    liar.load_state_dict(model.state_dict())
    found = explain(liar.eval(), swapped, survey, n_stars=8, n_draws=2)
    assert score(found, "mg_fe").sensitivity_auc < 0.6
    told = " ".join(found.wrong_lines())
    assert "[Mg/Fe] follows the lines of Fe more than those of Mg" in told
    assert "Of a change of 1 dex in [Mg/Fe] alone it sees" in told
    assert "A change of 1 dex in [Fe/H] alone moves [Mg/Fe] by" in told


def test_results_are_json_and_figures_are_drawn(found, tmp_path):
    told = json.loads(json.dumps(found.to_dict()))
    assert set(told["lines"]) == {"fe_h_auc", "mg_fe_auc"}
    assert told["lines"]["mg_fe_auc"] == pytest.approx(score(found, "mg_fe").sensitivity_auc)
    assert told["scores"]["fe_h"]["responsive_auc"] is None
    assert told["response"]["mg_fe"]["mg_fe"] > 0.75
    assert told["occlusion"]["Mg"]["n_pixels"] == found.pixels["Mg"].sum()
    for path in found.save_figures(tmp_path / "figures"):
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 20_000


def test_lines_may_be_hidden_in_fewer_stars_than_are_asked(trained, survey, capfd):
    """Of each kind as many; what hides nothing is that of all stars."""
    every, few = (explain(*trained, survey, n_stars=6, n_draws=2, n_hidden=n, progress=True) for n in (None, 2))
    assert (every.n_stars, every.occlusion.n_stars) == (12, 12)
    assert (few.n_stars, few.occlusion.n_stars) == (12, 4)
    for name in ("sensitivity", "response", "depth"):
        np.testing.assert_array_equal(getattr(few, name), getattr(every, name))
    row, column = LABELS.index("mg_fe"), few.occlusion.elements.index("Mg")
    assert few.occlusion.excess[row, column] > 0
    assert few.occlusion.moved[row, column] != every.occlusion.moved[row, column]
    assert "elsewhere; 4 stars" in few.report()
    bars = capfd.readouterr().err
    n_elements = len(few.occlusion.elements)
    for n_hidden in (12, 4):  # what is announced is done: lines and 2 controls; attention, slope and 6 abundances
        n = n_hidden * (1 + 3 * n_elements) + 12 * (2 + 2 * 6)
        assert f" {n}/{n} [" in bars


def test_a_folder_that_cannot_be_made_is_told_before_anything_else(tmp_path):
    (tmp_path / "file").write_text("no folder")
    said = CliRunner().invoke(cli.app, ["explain", "no/such/model", "--output", str(tmp_path / "file/x")])
    assert isinstance(said.exception, OSError)
    assert f"the folder {tmp_path}/file/x cannot be written" in str(said.exception)


def test_impossible_questions_are_refused(trained, survey):
    with pytest.raises(ValueError, match="2 draws"):
        explain(*trained, survey, n_draws=1)
    dwarfs = dataclasses.replace(survey, draw=lambda rng: draw_star(rng) + np.array([0, 5 - 0.5, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="draws too few"):
        draw_stars(dwarfs, 2, seed=0)
