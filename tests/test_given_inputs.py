"""What is known of a star beside its spectrum: told, it changes the answers; not told, it changes nothing."""

import itertools

import numpy as np
import pytest
import torch
from conftest import LABEL_CENTER, LABEL_SCALE, random_batch, star_flux, tiny_extractor, tiny_model
from test_model_properties import PAPER_LIKE
from test_modeling import answer, assert_same, gradients

from spectrafm_hf import SpectraFMConfig, SpectraFMForLabelPrediction
from spectrafm_hf.collation import SpectrumCollator, draw_given
from spectrafm_hf.labels import SCALARS

GIVEN = ["bp_rp", "logg", "m_g", "teff"]
"""Neither in the order of the labels nor apart from them."""
LABELS = ["teff", "logg", "fe_h"]
TEFF, LOGG, FE_H = range(3)
NOT_GIVEN = torch.full((4, len(GIVEN)), torch.nan)
KINDS = pytest.mark.parametrize("kind", [{}, PAPER_LIKE], ids=["patch tokens", "pixel tokens"])


def given_model(**changes):
    return tiny_model(given_names=GIVEN, **changes)


def told(values, n_spectra=4):
    """Scaled value or error of some inputs for all spectra: name -> number; shape (n_spectra, n_given)."""
    row = torch.tensor([values.get(name, torch.nan) for name in GIVEN])
    return row.expand(n_spectra, -1).clone()


def of_label(answers, label):
    """Mean and log-variance of a label, out of what `answer` gives."""
    return answers[:, [label, label + 3]]


@pytest.fixture
def batch():
    return random_batch(n_tokens=2)


# ---------------------------------------------------------------- not given


@KINDS
@pytest.mark.parametrize("nothing", [torch.nan, -100.0, torch.inf])
def test_not_given_is_the_same_whatever_stands_for_it(batch, kind, nothing):
    model = given_model(**kind)
    expected = answer(model, batch)
    given = torch.full((4, len(GIVEN)), nothing)
    assert torch.equal(answer(model, batch, given=given), expected)
    assert torch.equal(answer(model, batch, given=given, given_errors=torch.full_like(given, 0.3)), expected)
    assert torch.equal(answer(model, batch, given=None), expected)
    one = told({"bp_rp": 0.5})
    assert torch.equal(answer(model, batch, given=one.nan_to_num(nothing)), answer(model, batch, given=one))


@KINDS
def test_given_nothing_the_model_is_one_that_cannot_be_given_anything(batch, kind):
    model, plain = given_model(**kind), tiny_model(seed=1, **kind)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert {name.split(".")[1] for name in unexpected} == {"given_embeddings"}
    assert_same(answer(model, batch), answer(plain, batch))
    assert_same(answer(model, batch, given=NOT_GIVEN), answer(plain, batch))


@KINDS
def test_every_parameter_is_part_of_every_step_even_when_nothing_is_given(batch, kind):
    """Else processes that train together wait for each other for ever, or fail."""
    model = given_model(**kind).train()
    for given in (None, NOT_GIVEN):
        found = gradients(model, **batch, given=given, labels=torch.zeros(4, 3))
        assert found.keys() == dict(model.named_parameters()).keys()
        of_given = {name: gradient for name, gradient in found.items() if "given_embeddings" in name}
        assert len(of_given) == 3
        assert not any(gradient.any() for gradient in of_given.values())


# ---------------------------------------------------------------- given


@KINDS
@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_changes_the_answers_of_the_others(batch, kind, name):
    model = given_model(**kind)
    without, low, high = (
        answer(model, batch, given=None if value is None else told({name: value})) for value in (None, -1.0, 1.0)
    )
    for label in {"teff": (LOGG, FE_H), "logg": (TEFF, FE_H)}.get(name, (TEFF, LOGG, FE_H)):
        for one, other in ((without, low), (low, high)):
            assert (of_label(one, label) - of_label(other, label)).abs().max() > 1e-3


def test_each_input_means_something_of_its_own(batch):
    answers = [answer(given_model(), batch, given=told({name: 0.7})) for name in ("bp_rp", "m_g")]
    assert (answers[0] - answers[1]).abs().max() > 1e-2


def test_only_spectra_that_are_told_something_change(batch):
    model, given = given_model(), NOT_GIVEN.clone()
    given[2, GIVEN.index("bp_rp")] = 1.0
    difference = (answer(model, batch, given=given) - answer(model, batch)).abs().amax(dim=1)
    assert difference[2] > 1e-3
    assert difference[[0, 1, 3]].max() < 1e-5


@KINDS
def test_errors_of_what_is_given_matter(batch, kind):
    model = given_model(**kind)
    given = told({"bp_rp": 0.5})
    sharp, blunt = (answer(model, batch, given=given, given_errors=told({"bp_rp": error})) for error in (0.05, 2.0))
    assert (sharp - blunt).abs().max() > 1e-3


@pytest.mark.parametrize("error", [0.0, -1.0, torch.nan, torch.inf, None])
def test_an_error_that_says_nothing_is_the_default_never_certainty(batch, error):
    model = given_model(default_label_error=0.25)
    given = told({"bp_rp": 0.5, "logg": -0.5})
    errors = None if error is None else torch.full_like(given, error)
    answers = answer(model, batch, given=given, given_errors=errors).nan_to_num(0)
    default = answer(model, batch, given=given, given_errors=torch.full_like(given, 0.25)).nan_to_num(0)
    certain = answer(model, batch, given=given, given_errors=torch.full_like(given, 1e-9)).nan_to_num(0)
    assert torch.equal(answers, default)
    assert (answers - certain).abs().max() > 1e-4


@KINDS
def test_every_star_may_be_told_something_else(kind):
    """All subsets of four inputs in one batch: each row is what it is alone, and has no answer for what it was told."""
    model = given_model(**kind)
    subsets = list(itertools.product([False, True], repeat=len(GIVEN)))
    one = random_batch(n_spectra=1, n_tokens=2)
    many = {name: values.expand(len(subsets), -1) for name, values in one.items()}
    values = torch.tensor([0.4, -0.8, 1.1, 0.2])
    given = torch.where(torch.tensor(subsets), values, torch.nan)
    errors = torch.where(torch.tensor(subsets), 0.1 * values.abs(), torch.nan)
    together = answer(model, many, given=given, given_errors=errors)
    for row, subset in enumerate(subsets):
        alone = answer(model, one, given=given[row : row + 1], given_errors=errors[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5, equal_nan=True)
        knew = dict(zip(GIVEN, subset, strict=True))
        assert together[row].isnan().tolist() == [knew["teff"], knew["logg"], False] * 2
    n_different = len({tuple(row) for row in together[:, [FE_H, FE_H + 3]].numpy().round(5).tolist()})
    assert n_different == len(subsets)


@KINDS
def test_columns_follow_the_names_of_the_configuration(batch, kind):
    """Two models that differ in the order of `given_names` alone are the same model, asked otherwise."""
    order = [2, 0, 3, 1]
    model, other = given_model(**kind), tiny_model(seed=1, given_names=[GIVEN[i] for i in order], **kind)
    weights = model.state_dict()
    for name in ("value_weight", "error_weight", "bias"):
        weights[f"encoder.given_embeddings.{name}"] = weights[f"encoder.given_embeddings.{name}"][order]
    other.load_state_dict(weights)
    given, errors = told({"bp_rp": 0.3, "m_g": -1.2, "teff": 0.9}), told({"bp_rp": 0.1, "m_g": 0.2, "teff": 0.05})
    one = answer(model, batch, given=given, given_errors=errors)
    another = answer(other, batch, given=given[:, order], given_errors=errors[:, order])
    torch.testing.assert_close(one, another, rtol=0, atol=1e-5, equal_nan=True)
    assert one[:, TEFF].isnan().all()


def test_inputs_stand_behind_the_tokens_of_the_spectrum(batch):
    model = given_model()
    given = told({"bp_rp": 0.5, "teff": 0.1})
    encoded = model.encoder(**batch, given=given)
    assert encoded.last_hidden_state.shape == (4, 2 + len(GIVEN), 32)
    assert encoded.token_mask[1].tolist() == [1, 1, 1, 0, 0, 1]
    assert encoded.token_mask[0].tolist() == [1, 0, 1, 0, 0, 1]  # a token of spectrum 0 is missing
    model.set_attn_implementation("eager")
    attentions = model(**batch, given=given, output_attentions=True).attentions
    assert attentions[0][1, ..., [3, 4]].max() == 0
    assert attentions[0][1, ..., [2, 5]].min() > 0


def test_the_paper_preset_may_be_given_inputs():
    model = SpectraFMForLabelPrediction(SpectraFMConfig.paper(given_names=["bp_rp", "o_fe"])).eval()
    torch.nn.init.normal_(model.head.mean_weight)
    batch = random_batch(n_spectra=2, n_tokens=2)
    with torch.no_grad():
        without = model(**batch).label_mean
        told_colour = model(**batch, given=torch.tensor([[0.5, torch.nan]] * 2)).label_mean
        told_oxygen = model(**batch, given=torch.tensor([[torch.nan, 0.5]] * 2)).label_mean
    assert without.isfinite().all()
    assert told_colour.isfinite().all()
    assert (told_colour - without).abs().max() > 1e-4
    assert told_oxygen.isnan().tolist() == [[False, False, True, False, False]] * 2


# ---------------------------------------------------------------- what was given is no question


def test_a_label_that_was_given_has_no_answer(batch):
    model, given = given_model(), NOT_GIVEN.clone()
    given[1, GIVEN.index("logg")] = 0.3
    output = model(**batch, given=given)
    nowhere = torch.zeros(4, 3, dtype=torch.bool)
    nowhere[1, LOGG] = True
    assert torch.equal(output.label_mean.isnan(), nowhere)
    assert torch.equal(output.label_log_var.isnan(), nowhere)


@pytest.mark.parametrize("label_ids", [[LOGG], [FE_H, LOGG], [[FE_H], [LOGG], [TEFF], [LOGG]]])
def test_asking_for_what_was_given_is_refused(batch, label_ids):
    """By name and row, since a batch is long."""
    given = NOT_GIVEN.clone()
    given[[1, 3], GIVEN.index("logg")] = 0.3
    with pytest.raises(ValueError, match=r"^logg was given as an input in rows \[1, 3\], so it cannot be asked for"):
        given_model()(**batch, given=given, label_ids=torch.tensor(label_ids))


def test_asking_for_the_rest_is_answered(batch):
    model, given = given_model(), NOT_GIVEN.clone()
    given[[1, 3], GIVEN.index("logg")] = 0.3
    everything = model(**batch, given=given).label_mean
    asked = model(**batch, given=given, label_ids=torch.tensor([FE_H, TEFF])).label_mean
    assert_same(asked, everything[:, [FE_H, TEFF]])
    rows = torch.tensor([[LOGG], [FE_H], [LOGG], [TEFF]])  # each spectrum a label it was not told
    asked = model(**batch, given=given, label_ids=rows).label_mean
    assert_same(asked, everything.gather(1, rows))
    assert asked.isfinite().all()


def test_learning_what_was_given_is_refused(batch):
    given = NOT_GIVEN.clone()
    given[2, GIVEN.index("teff")], given[2, GIVEN.index("logg")] = 0.3, 0.1
    labels = torch.zeros(4, 3)
    labels[2, LOGG] = -100
    with pytest.raises(ValueError, match=r"^teff was given as an input in rows \[2\]"):
        given_model()(**batch, given=given, labels=labels)
    labels[2, TEFF] = torch.nan
    assert given_model()(**batch, given=given, labels=labels).loss.isfinite()


@KINDS
@pytest.mark.parametrize("missing", [-100.0, torch.nan])
def test_the_rest_is_learned_as_if_it_had_been_asked_for_alone(batch, kind, missing):
    """Answers that are NaN spoil neither the loss nor a gradient."""
    model = given_model(**kind)
    given = told({"teff": 0.4})
    labels = torch.tensor([[missing, 0.3, -0.2]] * 4)
    errors = torch.tensor([[torch.nan, 0.1, 0.2]] * 4)
    loss = model(**batch, given=given, labels=labels, label_errors=errors).loss
    found = gradients(model, **batch, given=given, labels=labels, label_errors=errors)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found.values())
    alone = {"label_ids": torch.tensor([LOGG, FE_H]), "labels": labels[:, 1:], "label_errors": errors[:, 1:]}
    torch.testing.assert_close(model(**batch, given=given, **alone).loss, loss)
    for name, gradient in gradients(model, **batch, given=given, **alone).items():
        torch.testing.assert_close(gradient, found[name], atol=1e-6, rtol=1e-4, msg=name)
    assert found["encoder.given_embeddings.value_weight"][GIVEN.index("teff")].abs().max() > 0
    assert not found["encoder.given_embeddings.value_weight"][GIVEN.index("m_g")].any()


def test_stars_that_were_told_everything_teach_nothing(batch):
    model = given_model()
    given, labels = told(dict.fromkeys(GIVEN, 0.1)), torch.tensor([[-100.0, -100.0, torch.nan]] * 4)
    found = gradients(model, **batch, given=given, labels=labels)
    assert not any(gradient.any() for gradient in found.values())


# ---------------------------------------------------------------- refused


def test_a_model_that_knows_no_inputs_refuses_them(model, batch):
    with pytest.raises(ValueError, match=r"one column per name of config.given_names \[\].*got shape \(4, 1\)"):
        model(**batch, given=torch.zeros(4, 1))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (4,), (1, 4)])
def test_inputs_that_do_not_fit_are_refused(batch, shape):
    with pytest.raises(ValueError, match=r"'bp_rp', 'logg', 'm_g', 'teff'. and one row per spectrum \(4\)"):
        given_model()(**batch, given=torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (1, 4), (4,)])
def test_errors_must_have_the_shape_of_what_is_given(batch, shape):
    """Broadcast without a word, the error of one input would be that of all."""
    with pytest.raises(ValueError, match="given_errors"):
        given_model()(**batch, given=torch.zeros(4, 4), given_errors=torch.full(shape, 0.1))


# ---------------------------------------------------------------- units


def given_extractor(**changes):
    return tiny_extractor(given_names=GIVEN, **changes)


def test_inputs_are_told_in_their_units():
    """K, dex and mag; labels are scaled like labels, and each column stands where `given_names` has it."""
    values, errors = given_extractor().encode_given(
        {"teff": 6050.0, "m_g": 5.0, "logg": 4.4, "bp_rp": 1.4}, {"teff": 85.0, "bp_rp": 0.02, "m_g": 0.6, "logg": 0.07}
    )
    assert values.dtype == errors.dtype == np.float32
    np.testing.assert_allclose(values, [[(1.4 - 1.0) / 0.4, (4.4 - 3.0) / 1.4, (5 - 2) / 3, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(errors, [[0.02 / 0.4, 0.07 / 1.4, 0.6 / 3, 0.1]], rtol=1e-6)


@pytest.mark.parametrize("error", [None, np.nan, 0.0, -0.1, np.inf])
def test_errors_not_published_are_those_of_the_table(error):
    values = {"teff": 5200.0, "logg": 3.0, "bp_rp": 1.0, "m_g": 2.0}
    errors = None if error is None else dict.fromkeys(values, error)
    _, scaled = given_extractor().encode_given(values, errors)
    np.testing.assert_allclose(scaled, [[0.05 / 0.4, 0.2 / 1.4, 0.3 / 3, 100 / 850]], rtol=1e-6)


def test_inputs_may_be_one_for_all_or_one_per_spectrum():
    values, _ = given_extractor().encode_given({"teff": 6050.0, "logg": [4.4, np.nan, 1.6]}, n_spectra=3)
    np.testing.assert_allclose(values[:, GIVEN.index("teff")], 1.0)
    np.testing.assert_allclose(values[:, GIVEN.index("logg")], [1.0, np.nan, -1.0], rtol=1e-6)
    assert np.isnan(values[:, [GIVEN.index("bp_rp"), GIVEN.index("m_g")]]).all()


@pytest.mark.parametrize(
    ("given", "errors", "message"),
    [
        ({"bp-rp": 1.0}, None, "can be given bp_rp, logg, m_g, teff; got 'bp-rp'"),
        ({"fe_h": 0.0}, None, "can be given bp_rp, logg, m_g, teff; got 'fe_h'"),
        ({"teff": 5000.0}, {"logg": 0.1}, "given_errors has logg, of which given has no value"),
        ({"teff": 5000.0}, {"parallax": 0.1}, "got 'parallax'"),
        ({"teff": [5000.0, 6000.0]}, None, "teff must be one number, or one per spectrum .3., got shape .2,."),
        ({"teff": 5000.0}, {"teff": [10.0] * 4}, "teff must be one number, or one per spectrum .3., got shape .4,."),
    ],
)
def test_inputs_that_make_no_sense_are_refused(given, errors, message):
    with pytest.raises(ValueError, match=message):
        given_extractor().encode_given(given, errors, n_spectra=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teff": -9999.0}, r"teff must lie in 2500 to 50000 K, got -9999 in row 0\. NaN = not known"),
        ({"teff": [5000.0, np.nan, 3.7]}, r"2500 to 50000 K, got 3\.7 in row 2\. NaN = not known.*logarithm"),
        ({"teff": 1e30}, "got 1e[+]30 in row 0"),
        ({"logg": -9999.0}, "logg must lie in -1 to 6 dex, got -9999"),
        ({"logg": 99.99}, "logg must lie in -1 to 6 dex, got 99.99"),
        ({"bp_rp": 99.0}, "bp_rp must lie in -1 to 6 mag, got 99"),
        ({"m_g": -9999.0}, "m_g must lie in -10 to 20 mag, got -9999"),
    ],
)
@pytest.mark.parametrize("error", [None, 1e4])
def test_values_no_star_has_are_refused(given, message, error):
    errors = None if error is None else dict.fromkeys(given, error)  # large errors, or fill values, excuse nothing
    with pytest.raises(ValueError, match=message):
        given_extractor().encode_given(given, errors, n_spectra=3)


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: scalar.name)
def test_every_scalar_has_a_range(scalar):
    low, high = scalar.valid
    assert low < scalar.center < high
    extractor = tiny_extractor(given_names=[scalar.name])
    values, _ = extractor.encode_given({scalar.name: [low, high, np.nan, np.inf]}, n_spectra=4)
    assert np.isfinite(values[:, 0]).tolist() == [True, True, False, False]
    for placeholder in (-9999.0, 1e30):
        with pytest.raises(ValueError, match=f"{scalar.name} must lie in"):
            extractor.encode_given({scalar.name: placeholder})


def test_noise_may_take_a_measurement_out_of_the_range():
    """log g of 5.8 +- 0.4 may come as 6.2; a training row that draws it must not stop the run."""
    extractor = given_extractor()
    values, _ = extractor.encode_given({"logg": 6.2, "teff": 2300.0}, {"logg": 0.4, "teff": 200.0})
    np.testing.assert_allclose(values[0, [1, 3]], [3.2 / 1.4, -2900 / 850], rtol=1e-6)
    with pytest.raises(ValueError, match=r"logg must lie in -1 to 6 dex, got 6\.2"):
        extractor.encode_given({"logg": 6.2}, {"logg": 0.01})
    rng = np.random.default_rng(0)
    known = {"teff": 2500.0, "logg": 6.0, "bp_rp": 6.0, "m_g": 20.0}
    assert np.isfinite([draw_given(rng, extractor, known, share=1.0)[0] for _ in range(2000)]).any(axis=0).all()


def test_an_extractor_without_inputs_refuses_them(extractor, star):
    with pytest.raises(ValueError, match="can be given nothing beside a spectrum; got 'teff'"):
        extractor(star[1], star[0], given={"teff": 5000.0})


def test_unknown_names_of_inputs_are_refused():
    with pytest.raises(ValueError, match=r"unknown non-spectral input 'parallax'.*bp_rp, j_ks, m_g, abl_g"):
        tiny_extractor(given_names=["parallax"])


def test_from_kelvin_and_magnitudes_to_the_models_answer(star):
    """The whole way: the extractor's words, its scaling, the model; a second spectrum in the batch is told nothing."""
    wavelength, flux = star
    model, extractor = given_model(), given_extractor()
    given = {"teff": [5777.0, np.nan], "bp_rp": [0.82, np.nan]}
    features = extractor([flux] * 2, wavelength, given=given, given_errors={"bp_rp": 0.01}, return_tensors="pt")
    told_both, plain = answer(model, features), answer(model, extractor([flux] * 2, wavelength, return_tensors="pt"))
    by_hand = NOT_GIVEN[:2].clone()
    by_hand[0, [GIVEN.index("bp_rp"), GIVEN.index("teff")]] = torch.tensor(
        [(0.82 - 1.0) / 0.4, (5777.0 - LABEL_CENTER[0]) / LABEL_SCALE[0]]
    )
    errors = torch.tensor([[0.01 / 0.4, 0.2 / 1.4, 0.3 / 3, 100 / 850]] * 2)
    del features["given"], features["given_errors"]
    expected = answer(model, features, given=by_hand, given_errors=errors)
    torch.testing.assert_close(told_both, expected, rtol=0, atol=1e-5, equal_nan=True)
    assert told_both[0].isnan().tolist() == [True, False, False] * 2
    assert_same(told_both[1], plain[1])
    decoded = extractor.decode_labels(told_both[:, :3], told_both[:, 3:])
    assert np.isnan(decoded["teff"]["value"]).tolist() == [True, False]
    assert np.isfinite(decoded["fe_h"]["sigma"]).all()


def test_rows_that_are_told_something_and_rows_that_are_not_make_one_batch(star):
    wavelength, flux = star
    extractor = given_extractor()
    told_one, plain = extractor(flux, wavelength, given={"bp_rp": 0.8}), extractor(star_flux(wavelength), wavelength)
    rows = [{name: values[0] for name, values in features.items()} for features in (told_one, plain)]
    expected = answer(
        given_model(), extractor([flux] * 2, wavelength, given={"bp_rp": [0.8, np.nan]}, return_tensors="pt")
    )
    assert_same(answer(given_model(), SpectrumCollator(extractor)(rows)), expected)
    assert_same(answer(given_model(), SpectrumCollator(extractor)(rows[::-1])), expected.flip(0))
