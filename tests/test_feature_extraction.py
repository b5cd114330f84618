"""The extractor: a spectrum in any guise gives the same numbers, and one that cannot be read is refused in words."""

import json

import numpy as np
import pytest
import torch
from conftest import (
    LABEL_CENTER,
    LABEL_SCALE,
    MAGNESIUM,
    PATCH_SIZE,
    star_flux,
    tiny_extractor,
    tiny_model,
    two_instruments,
)
from transformers import AutoFeatureExtractor, DataCollatorWithPadding

from spectrafm_hf import SpectraFMFeatureExtractor
from spectrafm_hf.collation import SpectrumCollator
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.surveys import OPTICAL_WAVELENGTH


def same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


def pixel(features, wavelength):
    """Number of the pixel of spectrum 0 that holds a wavelength."""
    return int(np.argmin(np.abs(features["wavelength"][0] - wavelength)))


def predicted(features):
    with torch.no_grad():
        return tiny_model()(**{key: torch.as_tensor(np.asarray(value)) for key, value in features.items()}).label_mean


# ---------------------------------------------------------------- what comes out


def test_lines_stand_where_they_belong(extractor, star):
    """The Mg b triplet: deepest pixel within one pixel of each line, in order of depth, and a continuum near 1."""
    wavelength, flux = star
    features = extractor(7.0 * flux, wavelength)
    normalised = 1.0 + 0.1 * features["flux"][0]  # scaled with centre 1 and spread 0.1
    for line, depth in MAGNESIUM.items():
        near = np.abs(features["wavelength"][0] - line) < 3
        assert abs(features["wavelength"][0][near][np.argmin(normalised[near])] - line) <= 1.0
        assert 1 - depth < normalised[near].min() < 1 - 0.8 * depth  # two steps of rebinning make it shallower
    assert np.median(normalised[features["attention_mask"][0] == 1]) == pytest.approx(1.0, abs=0.02)


def test_tokens_lie_on_one_grid_whatever_window_is_given(extractor, star):
    wavelength, flux = star
    token = PATCH_SIZE * extractor.pixel_width
    whole = extractor(flux, wavelength)
    for low, high in ((5100, 5300), (5103.7, 5254.2), (5321, 5325)):
        inside = (wavelength > low) & (wavelength < high)
        part = extractor(flux[inside], wavelength[inside])["wavelength"][0]
        assert len(part) % PATCH_SIZE == 0
        assert (part[0] - 0.5) % token == 0
        assert np.isin(part, whole["wavelength"]).all()
        assert low - token < part[0] < low + 1
        assert high - 1 < part[-1] < high + token


def test_wavelengths_are_float64_and_masks_are_integers(extractor, star):
    features = extractor(star[1], star[0], return_tensors="pt")
    assert features["wavelength"].dtype == torch.float64
    assert features["flux"].dtype == torch.float32
    assert features["attention_mask"].dtype == torch.int64
    assert features["flux"].shape == (1, 26 * PATCH_SIZE)


def test_a_batch_in_half_precision_keeps_its_wavelengths(extractor, star):
    whole = extractor(star[1], star[0], return_tensors="pt")
    wavelength = whole["wavelength"].clone()
    half = whole.to(torch.bfloat16)
    assert half["flux"].dtype == torch.bfloat16
    assert half["wavelength"].dtype == torch.float64
    assert torch.equal(half["wavelength"], wavelength)


def test_pixels_outside_the_range_are_masked(extractor, star):
    features = extractor(star[1], star[0])
    outside = (features["wavelength"] < 5000) | (features["wavelength"] > 5400)
    assert outside.any()
    assert not features["attention_mask"][outside].any()
    assert features["attention_mask"][~outside].all()


@pytest.mark.parametrize("factor", [1e-17, 1e17, 3.0])
def test_unit_of_the_flux_does_not_matter(extractor, star, factor):
    wavelength, flux = star
    same(extractor(factor * flux, wavelength), extractor(flux, wavelength), 1e-5)


def test_flux_calibration_on_long_scales_hardly_matters(extractor, star):
    """A tilt by a factor of two over 10,000 Angstrom, in normalised flux."""
    wavelength, flux = star
    tilted = extractor(flux * (1 + (wavelength - 5200) / 1e4), wavelength)
    difference = 0.1 * np.abs(tilted["flux"] - extractor(flux, wavelength)["flux"])
    assert difference.max() < 0.01
    assert difference[:, 100:-100].max() < 1e-3


def test_pixels_outside_a_window_do_not_reach_into_it(extractor, star):
    """What is masked cannot leak through the pseudo-continuum."""
    wavelength, flux = star
    bad = wavelength > 5250
    spoilt = np.where(bad, 40 * flux * (wavelength - 5240), flux)
    same(extractor(spoilt, wavelength, bad), extractor(flux, wavelength, bad), 1e-6)
    cut = extractor(flux[~bad], wavelength[~bad])
    inside = extractor(flux, wavelength, bad)
    keep = inside["wavelength"][0] < 5248
    kept = cut["wavelength"][0] < 5248
    np.testing.assert_allclose(cut["flux"][0][kept], inside["flux"][0][keep], atol=1e-5)


def test_flux_norms_make_zero_mean_and_unit_spread(extractor):
    rng = np.random.default_rng(0)
    grid = extractor.wavelength_grid
    shape = star_flux(grid) - 1
    flux = 1 + rng.uniform(0.5, 1.5, (200, 1)) * shape + 0.03 * rng.standard_normal((200, grid.size))
    good = rng.random(flux.shape) > 0.2
    extractor.fit_flux_norms(flux, good)
    normalised, good = extractor.normalise(flux, good)
    scaled = np.where(good, extractor.scale(normalised, good), np.nan)
    np.testing.assert_allclose(np.nanmean(scaled, axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(np.nanstd(scaled, axis=0), 1.0, atol=0.02)
    line = np.argmin(np.abs(grid - 5185.05))
    assert extractor.flux_scale[line] > 3 * np.median(extractor.flux_scale)
    assert extractor.flux_center[line] == pytest.approx(0.42, abs=0.1)


def test_pixels_without_lines_do_not_become_noise_amplifiers(extractor):
    flux = np.ones((5, extractor.wavelength_grid.size))
    extractor.fit_flux_norms(flux, np.ones(flux.shape, dtype=bool))
    assert min(extractor.flux_scale) == 0.01


# ---------------------------------------------------------------- the same spectrum in other guises


def test_order_of_pixels_does_not_matter(extractor, star):
    wavelength, flux = star
    flux = flux + 0.01 * np.random.default_rng(0).standard_normal(flux.size)
    order = np.random.default_rng(1).permutation(flux.size)
    bad = np.arange(flux.size) % 50 == 3
    same(extractor(flux[order], wavelength[order], bad[order]), extractor(flux, wavelength, bad))
    same(extractor(flux[::-1], wavelength[::-1], bad[::-1]), extractor(flux, wavelength, bad))
    shuffled, sorted_ = predicted(extractor(flux[order], wavelength[order])), predicted(extractor(flux, wavelength))
    torch.testing.assert_close(shuffled, sorted_, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("guise", "tolerance"),
    [
        (lambda a: a.astype(">f8"), 0.0),
        (lambda a: a.astype(">f4"), 1e-5),
        (lambda a: a.astype(np.float32), 1e-5),
        (lambda a: a.astype(object), 0.0),
        (lambda a: np.repeat(a, 2)[::2], 0.0),
        (lambda a: torch.from_numpy(a), 0.0),
        (list, 0.0),
    ],
    ids=["big-endian", "big-endian float32", "float32", "object", "strided", "tensor", "list"],
)
def test_kind_of_array_does_not_matter(extractor, star, guise, tolerance):
    wavelength, flux = star
    same(extractor(guise(flux), wavelength), extractor(flux, wavelength), tolerance)


def test_low_precision_and_counts_are_read(extractor, star):
    wavelength, flux = star
    reference = extractor(flux, wavelength)
    same(extractor(flux.astype(np.float16), wavelength), reference, 0.01)
    same(extractor(np.round(30_000 * flux).astype(np.int32), wavelength), reference, 0.01)
    same(extractor(np.round(30_000 * flux).astype(">i4"), wavelength), reference, 0.01)


def test_big_endian_wavelengths_are_read(extractor, star):
    same(extractor(star[1], star[0].astype(">f8")), extractor(star[1], star[0]))


def test_read_only_arrays_are_read_and_nothing_is_written_to_the_input(extractor, star):
    wavelength, flux = star[0].copy(), star[1].copy()
    bad = np.zeros(flux.size, dtype=bool)
    expected = extractor(flux, wavelength, bad)
    for array in (wavelength, flux, bad):
        array.flags.writeable = False
    same(extractor(flux, wavelength, bad), expected)


def test_masked_array_says_what_is_bad(extractor, star):
    wavelength, flux = star
    bad = (wavelength > 5230) & (wavelength < 5260)
    masked = np.ma.MaskedArray(np.where(bad, -9999.0, flux), mask=bad)
    same(extractor(masked, wavelength), extractor(flux, wavelength, bad))


@pytest.mark.parametrize("filling", [np.nan, 1e20, 0.0, 5000.0])
def test_masked_wavelengths_are_left_out_whatever_stands_there(extractor, star, filling):
    wavelength, flux = star
    gone = np.arange(flux.size) % 40 == 7
    masked = np.ma.MaskedArray(np.where(gone, filling, wavelength), mask=gone)
    told = {"flux_error": np.full(flux.size, 0.02), "resolving_power": np.full(flux.size, 2000.0)}
    expected = extractor(flux[~gone], wavelength[~gone], **{name: values[~gone] for name, values in told.items()})
    same(extractor(flux, masked, **told), expected)
    with pytest.raises(ValueError, match=r"all 467 pixels are masked in wavelength .vacuum Angstrom."):
        extractor(flux, np.ma.MaskedArray(wavelength, mask=True))


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_spectrum_filled_up_with_zeros_keeps_the_pixels_that_are_real(extractor, star, share):
    """Their median is 0, and 100 times 0 is less than any flux; nor is the filling a deep line."""
    wavelength, flux = star
    filling = np.arange(flux.size) < share * flux.size
    same(extractor(np.where(filling, 0.0, flux), wavelength), extractor(flux, wavelength, filling))
    with pytest.raises(ValueError, match=r"at least 400 good pixel.*, got [0-9]{1,3} of 467"):
        tiny_extractor(min_good_pixels=400)(np.where(filling, 0.0, flux), wavelength)


def test_a_few_clipped_lines_stay_flux(extractor, star):
    wavelength, flux = star
    clipped = np.abs(wavelength - 5300.0) < 1.5
    features = extractor(np.where(clipped, 0.0, flux), wavelength)
    assert features["attention_mask"][0, pixel(features, 5300.0)] == 1
    assert features["flux"][0, pixel(features, 5300.0)] < -8


@pytest.mark.parametrize("value", [0.0, -9999.0, 1e30, -1e30, np.nan, np.inf])
def test_flux_of_a_bad_pixel_does_not_matter(extractor, star, value):
    wavelength, flux = star
    bad = (np.arange(flux.size) % 37 == 5) | ((wavelength > 5230) & (wavelength < 5260))
    same(extractor(np.where(bad, value, flux), wavelength, bad), extractor(flux, wavelength, bad))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_flux_that_is_not_finite_is_bad(extractor, star, value):
    wavelength, flux = star
    bad = np.arange(flux.size) % 37 == 5
    same(extractor(np.where(bad, value, flux), wavelength), extractor(flux, wavelength, bad))


@pytest.mark.parametrize("value", [8.0, 50.0, 1e5, 1e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_spike_becomes_missing_and_disturbs_no_other_pixel(extractor, star, value, sign):
    wavelength, flux = star
    spike = np.abs(wavelength - 5300.0).argmin()
    spoilt = flux.copy()
    spoilt[spike] = sign * value
    expected, found = extractor(flux, wavelength), extractor(spoilt, wavelength)
    lost = (expected["attention_mask"] == 1) & (found["attention_mask"] == 0)
    assert 1 <= lost.sum() <= 3
    elsewhere = np.abs(found["wavelength"] - wavelength[spike]) > 2
    assert not lost[elsewhere].any()
    assert np.abs(found["flux"] - expected["flux"])[elsewhere].max() < 0.2  # 2 % of the continuum


def test_dead_columns_do_not_take_their_neighbours_along(extractor, star):
    """Six pixels far below zero pull the smoothed flux below zero too."""
    wavelength, flux = star
    dead = np.abs(wavelength - 5300.0) < 2.5
    spoilt = extractor(np.where(dead, -60.0, flux), wavelength)
    elsewhere = np.abs(spoilt["wavelength"] - 5300.0) > 5
    expected = extractor(flux, wavelength, dead)
    np.testing.assert_array_equal(spoilt["attention_mask"][elsewhere], expected["attention_mask"][elsewhere])
    np.testing.assert_allclose(spoilt["flux"][elsewhere], expected["flux"][elsewhere], atol=0.1)
    assert not spoilt["attention_mask"][np.abs(spoilt["wavelength"] - 5300.0) < 2].any()


def test_duplicates_are_averaged(extractor, star):
    wavelength, flux = star
    doubled = extractor(np.concatenate([1.1 * flux, 0.9 * flux]), np.concatenate([wavelength, wavelength]))
    same(doubled, extractor(flux, wavelength), 1e-5)


def test_of_two_duplicates_the_bad_one_is_ignored(extractor, star):
    wavelength, flux = star
    bad = np.repeat([False, True], flux.size)
    doubled = extractor(np.concatenate([flux, -flux]), np.concatenate([wavelength, wavelength]), bad)
    same(doubled, extractor(flux, wavelength))


def test_overlapping_orders_are_merged(extractor, star):
    """Two echelle orders on grids of their own, 60 Angstrom in common."""
    wavelength, flux = star
    blue, red = np.arange(4990.0, 5230.0, 0.7), np.arange(5170.0, 5410.0, 0.8)
    merged = extractor(star_flux(np.concatenate([blue, red])), np.concatenate([blue, red]))
    reference = extractor(flux, wavelength)
    assert (merged["attention_mask"] == reference["attention_mask"]).all()
    assert 0.1 * np.abs(merged["flux"] - reference["flux"]).max() < 0.06  # other pixels see a steep line differently
    assert 0.1 * np.abs(merged["flux"] - reference["flux"]).mean() < 0.003


def test_gaps_stay_missing(extractor, star):
    wavelength, flux = star
    gap = (wavelength > 5230) & (wavelength < 5260)
    features = extractor(flux[~gap], wavelength[~gap])
    inside = (features["wavelength"] > 5231) & (features["wavelength"] < 5259)
    assert 0 < inside.sum() < 27  # tokens that lie in it are not there at all
    assert not features["attention_mask"][inside].any()
    assert not features["flux"][inside].any()
    whole = extractor(flux, wavelength)
    in_gap = (whole["wavelength"] > 5230) & (whole["wavelength"] < 5260)
    assert features["attention_mask"].sum() == whole["attention_mask"].sum() - in_gap.sum()


def test_one_good_pixel_is_enough(extractor, star):
    wavelength, flux = star
    inside = int(np.argmin(np.abs(wavelength - 5170.5)))  # nearly all of it in the model's pixel 5170-5171
    features = extractor(flux, wavelength, np.arange(flux.size) != inside)
    assert features["attention_mask"].sum() == 1
    assert features["flux"].shape == (1, PATCH_SIZE)
    assert features["wavelength"][features["attention_mask"] == 1] == 5170.5
    assert features["flux"][features["attention_mask"] == 1] == pytest.approx(0.0, abs=1e-4)  # it is its own continuum
    assert predicted(features).isfinite().all()
    lone = extractor(flux[inside : inside + 1], wavelength[inside : inside + 1])
    same(lone, features, 1e-4)


def test_constant_flux_is_its_own_continuum(extractor, star):
    features = extractor(np.full(star[0].size, 42.0), star[0])
    np.testing.assert_allclose(features["flux"], 0.0, atol=1e-4)


def test_coarse_and_fine_pixels_give_the_same_spectrum(extractor):
    coarse, fine = np.arange(4990.0, 5410.0, 1.5), np.arange(4990.0, 5410.0, 0.05)
    lines = dict.fromkeys(MAGNESIUM, 0.4)
    one, other = (extractor(star_flux(w, lines, fwhm=8.0), w)["flux"] for w in (coarse, fine))
    assert 0.1 * np.abs(one - other).max() < 0.03


# ---------------------------------------------------------------- batches


def test_ragged_batch_equals_singles(extractor, star):
    wavelength, flux = star
    windows = [slice(0, 90), slice(150, 420), slice(300, None)]
    spectra, wavelengths = [flux[w] for w in windows], [wavelength[w] for w in windows]
    bad = [np.arange(s.size) % 9 == 0 for s in spectra]
    together = extractor(spectra, wavelengths, bad)
    for row, told in enumerate(zip(spectra, wavelengths, bad, strict=True)):
        single = extractor(*told)
        n = single["flux"].shape[1]
        for name in single:
            np.testing.assert_array_equal(together[name][row, :n], single[name][0])
        assert not together["attention_mask"][row, n:].any()
        torch.testing.assert_close(predicted(together)[row], predicted(single)[0], rtol=0, atol=1e-5)


def test_spectra_may_share_their_wavelengths(extractor, star):
    wavelength, flux = star
    shared = extractor(np.stack([flux, flux**2]), wavelength)
    same(shared, extractor([flux, flux**2], [wavelength, wavelength]))
    assert np.abs(shared["flux"][0] - shared["flux"][1]).max() > 0.5


def test_wavelengths_must_come_one_per_spectrum(extractor, star):
    with pytest.raises(ValueError, match="got 3, 2, 2, 2 for 2"):
        extractor([star[1]] * 2, [star[0]] * 3)


def test_bad_spectrum_of_a_batch_is_named(extractor, star):
    wavelength, flux = star
    with pytest.raises(ValueError, match=r"spectrum 1 of 3: .*good pixel"):
        extractor([flux, np.zeros_like(flux), flux], wavelength)


def labelled_rows(extractor, star):
    wavelength, flux = star
    rows = []
    for n_pixels, teff in ((90, 5000.0), (300, 6000.0)):
        told = {"labels": [[teff, 4.0, np.nan]], "label_errors": [[50.0, 0.1, np.nan]]}
        features = extractor(flux[:n_pixels], wavelength[:n_pixels], **told, given={"bp_rp": 1.0})
        rows.append({name: values[0] for name, values in features.items()})
    return rows


def test_a_stock_collator_keeps_labels_and_what_was_given(star):
    """Without labels a Trainer would stop, or learn nothing."""
    extractor = tiny_extractor(given_names=["bp_rp"])
    rows = labelled_rows(extractor, star)
    stock, own = DataCollatorWithPadding(extractor)(rows), SpectrumCollator(extractor)(rows)
    assert stock.keys() == own.keys() > {"labels", "label_errors", "given", "given_errors"}
    for name in own:
        assert stock[name].dtype == own[name].dtype
        torch.testing.assert_close(stock[name], own[name], rtol=0, atol=0, equal_nan=True, msg=name)
    assert tiny_model(given_names=["bp_rp"])(**stock).loss.isfinite()


def test_padding_stacks_numbers_all_rows_have_as_they_are(star):
    extractor = tiny_extractor(given_names=["bp_rp"])
    one, other = labelled_rows(extractor, star)
    one |= {"weight": np.float64(2.0), "number": 7, "star": "HD 1", "only_here": 1.0}
    other |= {"weight": np.float64(3.0), "number": 8, "star": "HD 2"}
    batch = extractor.pad([one, other], return_tensors="pt")
    assert batch["weight"].tolist() == [2.0, 3.0]
    assert (batch["weight"].dtype, batch["number"].dtype) == (torch.float64, torch.int64)
    assert not {"star", "only_here"} & batch.keys()  # names make no tensor, and of the other row nothing is known
    columns = {name: [one[name], other[name]] for name in other}
    assert extractor.pad(columns, return_tensors="np")["labels"].shape == (2, 3)
    del other["labels"]
    assert "labels" not in extractor.pad([one, other])
    filled = SpectrumCollator(extractor)([one, other])["labels"]
    assert filled[1].tolist() == [-100.0] * 3
    other["labels"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"labels must have one shape in all rows, got .2,., .3,."):
        extractor.pad([one, other])


# ---------------------------------------------------------------- refused, in words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, f: (np.zeros_like(f), w), "flux all zero"),
        (lambda w, f: (np.full_like(f, np.nan), w), "at least 1 good pixel.*got 0 of"),
        (lambda w, f: (f, w / 10), "Nanometres. Multiply by 10"),
        (lambda w, f: (f, w / 1e4), "Microns. By 1e4"),
        (lambda w, f: (f, np.log10(w)), "Logarithmic. Take 10"),
        (lambda w, f: (f, w + 9000), "no pixel lies in .5000, 5400. vacuum Angstrom.*got .13990"),
        (lambda w, f: (f[:-1], w), "one value per pixel"),
        (lambda w, f: (f[:0], w[:0]), "empty"),
        (lambda w, f: (f, np.where(w > 5300, np.nan, w)), "finite and positive"),
        (lambda w, f: (f, np.where(w > 5300, -w, w)), "finite and positive"),
        (lambda w, f: (f, np.where(w > 5300, np.inf, w)), "finite and positive"),
        (lambda w, f: (f, np.where(w > 5300, 0.0, w)), "finite and positive"),
        (lambda w, f: (-f, w), "good pixel"),
        (lambda w, f: (f + 0.1j, w), "flux must be real, got complex numbers"),
        (lambda w, f: (f, w + 0j), "wavelength must be real, got complex numbers"),
    ],
    ids=["zero", "nan", "nm", "micron", "log", "elsewhere", "shapes", "empty", "nan wavelength", "negative wavelength",
         "infinite wavelength", "zero wavelength", "negative", "complex", "complex wavelength"],
)  # fmt: skip
def test_spectrum_that_cannot_be_read_is_refused(extractor, star, change, message):
    with pytest.raises(ValueError, match=message):
        extractor(*change(*star))


def test_spectrum_without_a_good_pixel_is_refused(extractor, star):
    with pytest.raises(ValueError, match="True = do not trust"):
        extractor(star[1], star[0], np.ones(star[0].size, dtype=bool))


def test_mask_of_another_length_is_refused(extractor, star):
    with pytest.raises(ValueError, match="one value per pixel"):
        extractor(star[1], star[0], np.zeros(5, dtype=bool))


def test_more_good_pixels_may_be_asked_for(star):
    wavelength, flux = star
    with pytest.raises(ValueError, match="at least 200 good pixel"):
        tiny_extractor(min_good_pixels=200)(flux[:150], wavelength[:150])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_names": ["feh"]}, "unknown label 'feh'.*fe_h"),
        ({"label_center": [0.0]}, "one entry per label, got 3, 1 and 3"),
        ({"wavelength_range": (5400.0, 5000.0)}, "wavelength_range"),
        ({"pixel_width": 0.0}, "must be positive"),
        ({"flux_center": [1.0] * 5}, "flux_center must have one entry per pixel of wavelength_grid .416., got 5"),
        ({"flux_scale": [1.0] * 417}, "flux_scale must have one entry per pixel .* got 417"),
        ({"label_scale": [0.0, 1.0, 1.0]}, "label_scale positive and finite.*got 5200 and 0 K of teff"),
        ({"label_scale": [850.0, -1.4, 1.0]}, "got 3 and -1.4 dex of logg"),
        ({"label_scale": [850.0, 1.4, np.nan]}, "got -0.9 and nan dex of fe_h"),
        ({"label_scale": [np.inf, 1.4, 0.8]}, "got 5200 and inf K of teff"),
        ({"label_center": [np.nan, 3.0, 0.0]}, "label_center must be finite.*got nan and 850 K of teff"),
        ({"flux_scale": [0.1] * 415 + [0.0]}, "flux_scale must be positive.*got 1 of 416 entries that are not"),
        ({"flux_scale": [0.1] * 414 + [-0.1, np.nan]}, "flux_scale must be positive.*got 2 of 416"),
        ({"flux_range": (3.0, -0.5)}, r"flux_range must be increasing .*got .3.0, -0.5."),
        ({"flux_range": (1.0, 1.0)}, "flux_range must be increasing"),
        ({"label_names": ["teff", "logg", "teff"]}, "label_names must name each one once, got teff more than once"),
        ({"given_names": ["bp_rp", "teff", "bp_rp"]}, "given_names must name each one once, got bp_rp more than once"),
        ({"learned_ranges": {"mg_fe": [[5000, 5400]]}}, "learned_ranges must give labels of this model.*got mg_fe"),
        ({"learned_ranges": {"fe_h": [[5400, 5000]]}}, r"increasing and finite .vacuum.*fe_h: \[\[5400.0, 5000.0\]\]"),
        ({"learned_ranges": {"fe_h": [[5000, np.inf]]}}, "increasing and finite"),
        ({"learned_ranges": {"fe_h": [5000, 5400]}}, r"lists of \[lowest, highest\].*fe_h: \[5000.0, 5400.0\]"),
        ({"learned_ranges": {"fe_h": []}}, "got fe_h"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny_extractor(**wrong)


# ---------------------------------------------------------------- where labels were learned


def test_it_is_known_how_much_of_a_spectrum_lies_where_a_label_was_learned():
    """Of 4,000 to 4,999 Angstrom a quarter; ends count."""
    extractor = tiny_extractor(learned_ranges={"fe_h": [[4000, 4099], [4850, 9000]], "teff": [[15_152.2, 16_943.5]]})
    assert extractor.learned_share(np.arange(4000.0, 5000.0)) == {"fe_h": 0.25, "teff": 0.0}
    assert tiny_extractor().learned_share(np.arange(4000.0, 5000.0)) == {}


def test_what_is_learned_later_comes_on_top():
    """What touches or overlaps becomes one range: spectrographs have no gap of a thousandth of the wavelength."""
    extractor = tiny_extractor(learned_ranges={"fe_h": [[15_152.2, 16_943.5]], "teff": [[3584.5, 9087.5]]})
    extractor.learned_also({"fe_h": [(5800.5, 7399.54)], "logg": [(5000.0, 5400.0)], "teff": [(5000.0, 5400.0)]})
    extractor.learned_also({"fe_h": [(7402.0, 7600.0)]})
    assert extractor.learned_ranges == {
        "fe_h": [[5800.5, 7600.0], [15_152.2, 16_943.5]], "logg": [[5000.0, 5400.0]], "teff": [[3584.5, 9087.5]],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"learned_ranges must give labels of this model.*got o_fe"):
        extractor.learned_also({"o_fe": [(5000.0, 5400.0)]})


def test_where_labels_were_learned_is_saved_on_a_line(tmp_path):
    extractor = tiny_extractor(learned_ranges={"fe_h": np.array([[15_152.2, 16_943.5]])})
    extractor.save_pretrained(tmp_path)
    saved = (tmp_path / "preprocessor_config.json").read_text()
    assert '\n  "learned_ranges": {"fe_h": [[15152.2, 16943.5]]},\n' in saved
    loaded = SpectraFMFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.learned_ranges == extractor.learned_ranges
    assert loaded.to_json_string() == extractor.to_json_string()


# ---------------------------------------------------------------- labels


def test_labels_make_the_round_trip(extractor):
    labels = np.array([[5777.0, 4.44, 0.0], [4100.0, 1.2, -2.4]])
    scaled, _ = extractor.encode_labels(labels)
    np.testing.assert_allclose(scaled[0], [(5777 - 5200) / 850, (4.44 - 3.0) / 1.4, 0.9 / 0.8], rtol=1e-6)
    decoded = extractor.decode_labels(torch.from_numpy(scaled), torch.zeros(2, 3))
    assert list(decoded) == ["teff", "logg", "fe_h"]
    for column, name in enumerate(decoded):
        np.testing.assert_allclose(decoded[name]["value"], labels[:, column], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(decoded[name]["sigma"], LABEL_SCALE[column])  # unit variance is one scale
    assert "sigma" not in extractor.decode_labels(scaled)["teff"]


def test_sigma_is_the_root_of_the_variance(extractor):
    decoded = extractor.decode_labels(np.zeros((1, 3)), np.full((1, 3), np.log(0.25)))
    assert decoded["teff"]["value"][0] == LABEL_CENTER[0]
    assert decoded["teff"]["sigma"][0] == pytest.approx(0.5 * 850)


def test_missing_labels_become_what_a_trainer_counts_as_missing(extractor, star):
    features = extractor(star[1], star[0], labels=[[np.nan, 4.0, np.inf]], label_errors=[[50.0, np.nan, 0.1]])
    np.testing.assert_allclose(features["labels"], [[-100.0, (4.0 - 3.0) / 1.4, -100.0]], rtol=1e-6)
    assert features["labels"].dtype == features["label_errors"].dtype == np.float32


@pytest.mark.parametrize("placeholder", [-9999.0, -999.0, -100.0, 99.99, 1e30, -1e30])
def test_labels_of_no_star_are_missing(extractor, placeholder):
    """What surveys write where they have none: learned, it would outweigh all stars."""
    scaled, _ = extractor.encode_labels([[5777.0, placeholder, 0.0], [placeholder] * 3])
    np.testing.assert_allclose(scaled, [[577 / 850, -100.0, 0.9 / 0.8], [-100.0] * 3], rtol=1e-6)
    at_the_ends = [[2500.0, -1.0, -5.0], [50_000.0, 6.0, 1.5]]
    assert (extractor.encode_labels(at_the_ends)[0] != -100.0).all()


@pytest.mark.parametrize("error", [None, np.nan, 0.0, -0.1, np.inf])
def test_an_unpublished_error_is_the_default_never_certainty(extractor, error):
    errors = None if error is None else np.full((1, 3), error)
    _, scaled = extractor.encode_labels([[5000.0, 4.0, 0.0]], errors)
    np.testing.assert_allclose(scaled, [[100 / 850, 0.2 / 1.4, 0.1 / 0.8]], rtol=1e-6)


def test_published_errors_are_kept(extractor):
    _, scaled = extractor.encode_labels([[5000.0, 4.0, 0.0]], [[30.0, 0.05, 0.02]])
    np.testing.assert_allclose(scaled, [[30 / 850, 0.05 / 1.4, 0.02 / 0.8]], rtol=1e-6)


def test_labels_that_do_not_fit_are_refused(extractor, star):
    """A column too few must not be spread over the others."""
    with pytest.raises(ValueError, match="label"):
        extractor([star[1]] * 2, star[0], labels=[[0.1], [0.2]])
    with pytest.raises(ValueError, match="label"):
        extractor([star[1]] * 2, star[0], labels=[[5000.0, 4.0, 0.0]])


# ---------------------------------------------------------------- saved and loaded


def test_saved_extractor_is_the_same_extractor(extractor, star, tmp_path):
    wavelength, flux = star
    grid = extractor.wavelength_grid
    spread = 1 + 0.1 * np.random.default_rng(0).standard_normal((30, grid.size))
    extractor.fit_flux_norms(spread, np.ones(spread.shape, dtype=bool))
    expected = extractor(flux, wavelength, labels=[[5000.0, 2.0, -1.0]])
    extractor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["label_center"] == LABEL_CENTER
    loaded = SpectraFMFeatureExtractor.from_pretrained(tmp_path)
    same(loaded(flux, wavelength, labels=[[5000.0, 2.0, -1.0]]), expected)
    loaded.save_pretrained(tmp_path / "again")
    saved = tmp_path / "preprocessor_config.json"
    assert (tmp_path / "again" / "preprocessor_config.json").read_bytes() == saved.read_bytes()


def test_norms_of_two_instruments_are_saved_once_per_pixel(tmp_path):
    """Of APOGEE, whose detectors end before the tokens do: the same norms of every pixel, without a list of pixels."""
    extractor = two_instruments()
    for wavelength in (apogee_wavelength(), OPTICAL_WAVELENGTH):
        known = extractor.wavelength_grid[np.isin(extractor.wavelength_grid.round(3), wavelength.round(3))]
        spread = 1 + 0.1 * np.random.default_rng(0).standard_normal((30, known.size))
        extractor.fit_flux_norms(spread, np.ones(spread.shape, dtype=bool), known)
    extractor.save_pretrained(tmp_path)
    saved = (tmp_path / "preprocessor_config.json").read_text()
    assert json.loads(saved)["flux_wavelength"] is None
    assert saved.count("\n") < 40  # one line per parameter
    loaded = SpectraFMFeatureExtractor.from_pretrained(tmp_path)
    grid = extractor.wavelength_grid
    np.testing.assert_array_equal(loaded.wavelength_grid, grid)
    ones, good = np.ones(grid.size), np.ones(grid.size, dtype=bool)
    np.testing.assert_array_equal(loaded.scale(ones, good), extractor.scale(ones, good))
    loaded.fit_flux_norms(np.ones((2, 100)), np.ones((2, 100), dtype=bool), grid[:100])
    np.testing.assert_array_equal(loaded.scale(ones, good)[100:], extractor.scale(ones, good)[100:])


def test_auto_class_finds_the_extractor(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is SpectraFMFeatureExtractor


def test_what_is_kept_of_one_instrument_is_not_used_for_another(extractor):
    """More instruments than are kept, in turn: as a fresh extractor reads each."""
    low, high = extractor.wavelength_range
    grids = [np.arange(low, high, step) for step in (0.61, 0.73, 0.87, 0.99, 1.07, 1.21)]
    for turn in range(2):
        for number, wavelength in enumerate(grids):
            flux = 1 + 0.1 * np.sin(wavelength / (3 + number + turn))
            np.testing.assert_array_equal(
                extractor(flux, wavelength)["flux"], tiny_extractor()(flux, wavelength)["flux"]
            )


def test_pixels_wider_than_the_models_show_no_noise():
    """What is twelve model pixels wide is there twelve times alike; noise in pixels of the model is seen as it is."""
    extractor = tiny_extractor()
    low, high = extractor.wavelength_range
    rng = np.random.default_rng(8)
    fine = extractor.wavelength_grid
    found = extractor.noise(extractor(rng.normal(1, 0.02, fine.size), fine, return_tensors="np"))
    assert found[0] == pytest.approx(0.02, rel=0.15)
    wide = np.arange(low, high, 12.3 * extractor.pixel_width)
    assert np.isnan(extractor.noise(extractor(rng.normal(1, 0.02, wide.size), wide, return_tensors="np"))).all()


def test_an_extractor_is_told_in_a_line():
    """Of thousands of pixels, which a notebook would print."""
    told = repr(tiny_extractor())
    assert told.startswith("SpectraFMFeatureExtractor(teff, logg, fe_h; ")
    assert "vacuum Angstrom" in told
    assert len(told) < 200


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_gap_filled_up_with_zeros_is_a_gap(shuffled):
    """A tenth of the pixels, far from most of them; single zeros, as of clipped noise, are flux."""
    extractor = tiny_extractor()
    rng = np.random.default_rng(4)
    wavelength = np.linspace(*extractor.wavelength_range, 2000)
    flux = 1 + 0.1 * rng.standard_normal(2000)
    filled = np.zeros(2000, dtype=bool)
    filled[700:900] = True
    filled[1500] = True  # alone
    dark = np.where(filled, 0.0, flux)
    order = rng.permutation(2000) if shuffled else np.arange(2000)
    came = extractor.place(dark[order], wavelength[order])
    wanted = extractor.place(dark, wavelength, filled & (wavelength < wavelength[1000]))
    assert np.array_equal(came.good, wanted.good)
    assert np.array_equal(came.flux, wanted.flux)
    assert came.good.sum() < extractor.place(flux, wavelength).good.sum()
