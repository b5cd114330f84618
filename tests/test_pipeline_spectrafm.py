"""The pipeline answers what model and extractor answer by hand, one spectrum or many, and says what it cannot read."""

import numpy as np
import pytest
import torch
from conftest import star_flux, tiny_extractor, tiny_model
from datasets import Dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from spectrafm_hf.hub import save_portable

FACTORS = {"teff": [1.5, 1.2]}


@pytest.fixture(scope="module")
def reader():
    return pipeline(
        "stellar-labels", model=tiny_model(given_names=["bp_rp"]),
        feature_extractor=tiny_extractor(given_names=["bp_rp"], sigma_factors=FACTORS),
    )  # fmt: skip


def spectrum(depth=0.5, n=400, **more):
    wavelength = np.linspace(5000, 5390, n)
    return {"flux": 2e-13 * star_flux(wavelength, {5185.05: depth}), "wavelength": wavelength, **more}


SPECTRA = [
    spectrum(),
    spectrum(0.8, 250),
    spectrum(0.2, flux_error=np.full(400, 4e-15), resolving_power=2000.0),
    spectrum(0.3, bad_pixel=np.arange(400) % 7 == 0),
]


def by_hand(reader, told):
    batch = reader.feature_extractor(**told, return_tensors="pt")
    with torch.no_grad():
        answer = reader.model(**batch)
    return reader.feature_extractor.decode_labels(answer.label_mean, answer.label_log_var)


@pytest.mark.parametrize("told", [*SPECTRA, spectrum(given={"bp_rp": 0.8}, given_errors={"bp_rp": 0.02})])
def test_it_answers_what_model_and_extractor_answer(reader, told):
    answer, expected = reader(told), by_hand(reader, told)
    assert list(answer) == ["teff", "logg", "fe_h"]
    for name, label in answer.items():
        value, sigma, sigma95 = (expected[name][key][0] for key in ("value", "sigma", "sigma95"))
        scale = {"K": 1e3, "dex": 1.0}[label["unit"]]
        assert label["value"] == pytest.approx(value, abs=1e-5 * scale)
        np.testing.assert_allclose(label["interval68"], [value - sigma, value + sigma], atol=1e-5 * scale)
        np.testing.assert_allclose(
            label["interval95"], [value - 1.96 * sigma95, value + 1.96 * sigma95], atol=2e-4 * scale
        )
        assert label["calibrated"] == (name == "teff")


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_companions_in_a_batch_do_not_matter(reader, batch_size):
    """Different lengths, one with uncertainties and one without."""
    together = reader(SPECTRA, batch_size=batch_size)
    for told, found in zip(SPECTRA, together, strict=True):
        alone = reader(told)
        for name in found:
            scale = {"K": 1e3, "dex": 1.0}[found[name]["unit"]]
            assert found[name]["value"] == pytest.approx(alone[name]["value"], abs=1e-5 * scale)
            assert found[name]["sigma"] == pytest.approx(alone[name]["sigma"], rel=1e-4)


def test_order_and_unit_of_the_flux_do_not_matter(reader):
    told, order = spectrum(), np.random.default_rng(0).permutation(400)
    shuffled = {"flux": 7e20 * told["flux"][order], "wavelength": told["wavelength"][order]}
    assert reader(shuffled)["fe_h"]["value"] == pytest.approx(reader(told)["fe_h"]["value"], abs=1e-5)


def test_only_the_labels_asked_for(reader):
    assert list(reader(spectrum(), labels=["fe_h"])) == ["fe_h"]
    with pytest.raises(ValueError, match=r"predicts teff, logg, fe_h, not mg_fe"):
        reader(spectrum(), labels=["mg_fe"])


def test_rows_of_a_dataset(reader):
    rows = Dataset.from_list([{"spectrum": {k: v.tolist() for k, v in spectrum(d).items()}} for d in (0.2, 0.8)])
    found = list(reader(KeyDataset(rows, "spectrum")))
    assert [one["fe_h"]["value"] for one in found] == pytest.approx(
        [reader(spectrum(d))["fe_h"]["value"] for d in (0.2, 0.8)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ((np.ones((3, 9)), np.linspace(5000, 5390, 9)), r"one spectrum at a time is needed.*several; for folders"),
        ([[]], r"."),
        ({"flux": np.ones(9)}, r"needs flux and wavelength.*got flux\."),
        ({}, r"needs flux and wavelength.*got nothing"),
        (spectrum(mask=np.ones(400)), r"may have bad_pixel, .*got flux, wavelength, mask"),
        (
            {"flux": np.ones(9), "wavelength": np.linspace(0.5, 0.54, 9)},
            r"no pixel lies in \[5000, 5400\] vacuum Angstrom.*Microns\? By 1e4",
        ),
        ({"flux": np.full(9, np.nan), "wavelength": np.linspace(5000, 5390, 9)}, r"at least 1 good pixel"),
    ],
)
def test_what_it_cannot_read(reader, told, message):
    with pytest.raises(ValueError, match=message):
        reader(told)


# ---------------------------------------------------------------- labels learned elsewhere

H_BAND = [[15_152.2, 16_943.5]]


def reader_that_learned(ranges):
    """One that knows where it learned its labels, without limits beside its weights."""
    extractor = tiny_extractor(learned_ranges=ranges, sigma_factors={"teff": [1.5, 1.2], "logg": [1.5, 1.2]})
    return pipeline("stellar-labels", model=tiny_model(), feature_extractor=extractor)


def test_where_nothing_is_known_nothing_is_said(reader):
    answer = reader(spectrum())
    assert "flags" not in answer
    assert all(label["learned"] is None for label in answer.values())


def test_a_label_learned_elsewhere_is_called_a_guess():
    reader = reader_that_learned({"teff": [[3584.5, 9087.5], *H_BAND], "logg": H_BAND})
    answer = reader(spectrum())
    assert answer.pop("flags") == [
        "logg: learned from 15,152-16,944 vacuum Angstrom only, this spectrum has 0% of its pixels there; "
        "the answer is a guess from the other labels"
    ]
    assert {name: (label["learned"], label["calibrated"]) for name, label in answer.items()} == {
        "teff": (True, True), "logg": (False, False), "fe_h": (None, False),
    }  # fmt: skip
    assert all(np.isfinite(label["value"]) for label in answer.values())
    assert "flags" not in reader(spectrum(), labels=["teff", "fe_h"])  # nobody asked about the other one


def test_labels_of_one_place_share_a_sentence_and_those_of_another_have_theirs():
    reader = reader_that_learned({"teff": H_BAND, "logg": H_BAND, "fe_h": [[3584.5, 4500.0]]})
    first, second = reader(spectrum())["flags"]
    assert first.startswith("teff, logg: learned from 15,152-16,944 vacuum Angstrom only")
    assert second.startswith("fe_h: learned from 3,584-4,500 vacuum Angstrom only")
    assert first.endswith("the answer is a guess")  # there are no others to guess from


@pytest.mark.parametrize(("end", "learned"), [(5270.0, True), (5120.0, False)])
def test_most_of_the_good_pixels_decide(end, learned):
    """Of 5,000-5,390 Angstrom 69 % and 31 %; bad pixels are not counted, though all lie where it was not learned."""
    reader = reader_that_learned({"fe_h": [[5000.0, end]]})
    assert reader(spectrum())["fe_h"]["learned"] is learned
    wavelength = spectrum()["wavelength"]
    assert reader(spectrum(bad_pixel=wavelength > end))["fe_h"]["learned"] is True


def test_abstaining_from_guesses_needs_limits_too():
    with pytest.raises(ValueError, match="abstain needs limits"):
        reader_that_learned({"logg": H_BAND})(spectrum(), abstain=True)


def test_an_option_nobody_knows(reader):
    with pytest.raises(ValueError, match=r"takes labels=\[...\], abstain, .* beside spectra, got label\."):
        reader(spectrum(), label=["teff"])


def test_saved_it_is_whole_and_leaves_no_trace_in_the_process(reader, tmp_path):
    model, extractor = tiny_model(), tiny_extractor()
    save_portable(model, extractor, tmp_path / "portable")
    assert (tmp_path / "portable" / "pipeline_spectrafm.py").is_file()
    model.save_pretrained(tmp_path / "plain")
    extractor.save_pretrained(tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in (tmp_path / "plain" / name).read_text()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("portable", "plain")]
    assert weights[0] == weights[1]
    again = pipeline("stellar-labels", model=str(tmp_path / "portable"))  # our own code, without trust
    assert type(again) is type(reader)
