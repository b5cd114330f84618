"""Spectra on their own pixels, from any instrument: what a pixel is, where it lies and how well it was measured.

Nothing here is resampled (`pixel_width=None`), but where a test says so.
"""

import numpy as np
import pytest
import torch
from conftest import MAGNESIUM, PATCH_SIZE, star_flux, tiny_extractor, tiny_model
from test_modeling import answer, assert_same

from spectrafm_hf import SpectraFMConfig, SpectraFMFeatureExtractor
from spectrafm_hf.modeling_spectrafm import PatchGeometry, WavelengthEncoding, deposit, log_snr
from spectrafm_hf.spectra import APOGEE_DETECTORS, apogee_wavelength, apstar_wavelength

RANGE = (3000.0, 25_000.0)
H_BAND_MAGNESIUM = {15_745.0: 0.3, 15_753.3: 0.35, 15_770.1: 0.35}
"""Mg I in APOGEE's spectra, vacuum Angstrom."""
MILES_PIXELS = np.arange(5100.0, 5260.0, 0.9)
APOGEE_PIXELS = apogee_wavelength()[(apogee_wavelength() > 15_730.0) & (apogee_wavelength() < 15_785.0)]
CENTRES = torch.arange(5000.0, 5000.0 + PATCH_SIZE, dtype=torch.float64)
"""Pixels of one patch, 1 Angstrom apart."""


def native_extractor(**changes):
    return tiny_extractor(**{"pixel_width": None, "wavelength_range": RANGE, "smoothing_length": 100.0, **changes})


def normalised_extractor(**changes):
    """For spectra that come continuum-normalised: a pixel then depends on nothing but itself."""
    return native_extractor(smoothing_length=None, **changes)


def optical_star():
    return star_flux(MILES_PIXELS), MILES_PIXELS


def h_band_star():
    return star_flux(APOGEE_PIXELS, H_BAND_MAGNESIUM, fwhm=0.7), APOGEE_PIXELS


def asked(features, model=None):
    """Mean and log-variance, shape (batch, 2 n_labels)."""
    told = {key: torch.as_tensor(np.asarray(value)) for key, value in features.items()}
    return answer(tiny_model() if model is None else model, told)


def tokens_of(features, model=None):
    """Embedded spectra, shape (batch, n_tokens, d)."""
    told = {key: torch.as_tensor(np.asarray(value)) for key, value in features.items()}
    with torch.no_grad():
        return (tiny_model() if model is None else model).encoder.embeddings(
            told["flux"],
            told["wavelength"],
            told["attention_mask"].bool(),
            told.get("flux_error"),
            told.get("resolving_power"),
        )[0]


def patches(features, name="wavelength"):
    """Shape (n_tokens, patch_size), of spectrum 0."""
    return np.asarray(features[name])[0].reshape(-1, PATCH_SIZE)


def same(one, other):
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# ---------------------------------------------------------------- one model, any pixels


def test_one_patch_size_serves_fine_and_coarse_pixels():
    extractor = native_extractor()
    spectra = [optical_star(), h_band_star()]
    together = extractor(*zip(*spectra, strict=True))
    patch = PatchGeometry.of(torch.from_numpy(together["wavelength"].reshape(2, -1, PATCH_SIZE)))
    assert patch.spacing[0][patch.spacing[0] > 0].numpy() == pytest.approx(0.9, rel=1e-6)
    h_band = patch.spacing[1][patch.spacing[1] > 0].numpy()
    assert h_band == pytest.approx(15_757 * 6e-6 * np.log(10), rel=3e-3)  # 0.22 Angstrom
    for row, (flux, wavelength) in enumerate(spectra):
        assert together["attention_mask"][row].sum() == wavelength.size
        assert_same(asked(extractor(flux, wavelength))[0], asked(together)[row])


@pytest.mark.parametrize(("star", "lines"), [(optical_star, MAGNESIUM), (h_band_star, H_BAND_MAGNESIUM)])
def test_lines_stay_at_their_wavelength_and_their_depth(star, lines):
    flux, wavelength = star()
    features = native_extractor()(flux, wavelength)
    normalised = 1.0 + 0.1 * features["flux"][0]  # scaled with centre 1 and spread 0.1
    spacing = np.median(np.diff(wavelength))
    for line, depth in lines.items():
        near = np.abs(features["wavelength"][0] - line) < 2
        deepest = features["wavelength"][0][near][np.argmin(normalised[near])]
        assert abs(deepest - line) <= spacing / 2 * 1.01
        assert 1 - depth - 0.02 < normalised[near].min() < 1 - 0.85 * depth


def test_the_same_star_in_two_bands_is_two_pieces_of_evidence():
    """Both bands in one spectrum are the tokens of the one and the tokens of the other, and change the answer."""
    extractor = normalised_extractor()
    (optical, blue), (h_band, red) = optical_star(), h_band_star()
    both = extractor(np.concatenate([h_band, optical]), np.concatenate([red, blue]))
    separate = [extractor(optical, blue), extractor(h_band, red)]
    torch.testing.assert_close(tokens_of(both), torch.cat([tokens_of(part) for part in separate], dim=1))
    answers = [asked(features) for features in (*separate, both)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (answers[one] - answers[other]).abs().max() > 1e-3


def test_ragged_batch_of_several_instruments_equals_singles():
    extractor = native_extractor()
    rng = np.random.default_rng(0)
    wavelengths = [
        MILES_PIXELS,
        APOGEE_PIXELS,
        10 ** np.arange(3.70, 3.72, 1e-4),  # log-spaced, as SDSS and LAMOST
        np.arange(8460.0, 8700.0, 2.5),
        np.array([6562.8]),
    ]
    spectra = [1 + 0.1 * rng.standard_normal(wavelength.size) for wavelength in wavelengths]
    told = {
        "bad_pixel": [rng.random(w.size) < 0.2 for w in wavelengths[:-1]] + [np.zeros(1, bool)],
        "flux_error": [0.1 * np.ones(w.size) for w in wavelengths],
        "resolving_power": [2300.0, 22_500.0, np.nan, 1800.0, 5000.0],
    }
    together = extractor(spectra, wavelengths, **told)
    for row in range(len(spectra)):
        single = extractor(spectra[row], wavelengths[row], **{name: parts[row] for name, parts in told.items()})
        n_pixels = single["flux"].shape[1]
        for name in single:
            np.testing.assert_array_equal(together[name][row, :n_pixels], single[name][0], err_msg=name)
            assert not together[name][row, n_pixels:].any()
        assert_same(asked(together)[row], asked(single)[0])


@pytest.mark.parametrize("other", [3.0, 12.0])
def test_wavelength_tells_the_pixel_scale(other):
    """The same numbers on pixels 3 or 12 times as wide are another spectrum."""
    flux = star_flux(MILES_PIXELS)[:PATCH_SIZE]
    centre, offset = 5180.0, np.arange(PATCH_SIZE) - (PATCH_SIZE - 1) / 2
    fine, coarse = (normalised_extractor()(flux, centre + width * offset) for width in (0.9, 0.9 * other))
    assert (asked(fine) - asked(coarse)).abs().max() > 1e-3


@pytest.mark.parametrize("wavelength", [[4_000.0], [30_000.0], [2_999.9], [25_000.1], [1.5, 2.0]])
def test_wavelengths_outside_the_range_are_refused(wavelength):
    with pytest.raises(ValueError, match=r"no pixel lies in .3000, 25000. vacuum Angstrom|where this model works"):
        native_extractor(wavelength_range=(4500.0, 25_000.0) if wavelength == [4_000.0] else RANGE)(
            np.ones(len(wavelength)), wavelength
        )


@pytest.mark.parametrize("wrong", [(2_900.0, 9_000.0), (3_000.0, 25_001.0), (9_000.0, 4_000.0)])
def test_a_range_the_encoding_was_not_made_for_is_refused(wrong):
    with pytest.raises(ValueError, match=r"within .3000, 25000. vacuum Angstrom"):
        native_extractor(wavelength_range=wrong)


def test_pixels_outside_the_range_are_left_out():
    extractor = normalised_extractor(wavelength_range=(5150.0, 5200.0))
    inside = (MILES_PIXELS >= 5150) & (MILES_PIXELS <= 5200)
    flux = star_flux(MILES_PIXELS)
    same(extractor(np.where(inside, flux, 40.0), MILES_PIXELS), extractor(flux[inside], MILES_PIXELS[inside]))


# ---------------------------------------------------------------- the order pixels come in


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_order_of_pixels_changes_not_a_bit(repeats):
    """Orders of an echelle overlap: the same wavelength comes more than once, with a flux and an error of its own."""
    rng = np.random.default_rng(0)
    wavelength = np.concatenate([MILES_PIXELS] + [MILES_PIXELS[100:150]] * (repeats - 1))
    told = {
        "flux": star_flux(wavelength) + 0.02 * rng.standard_normal(wavelength.size),
        "wavelength": wavelength,
        "bad_pixel": rng.random(wavelength.size) < 0.1,
        "flux_error": rng.uniform(0.01, 0.05, wavelength.size),
        "resolving_power": rng.uniform(1800, 2200, wavelength.size),
    }
    expected = native_extractor()(**told)
    for order in (rng.permutation(wavelength.size), np.arange(wavelength.size)[::-1]):
        shuffled = native_extractor()(**{name: values[order] for name, values in told.items()})
        same(shuffled, expected)
        assert torch.equal(asked(shuffled), asked(expected))


def test_repeated_pixels_that_differ_in_their_error_alone_may_come_in_any_order():
    """Counts are whole numbers: the same flux twice is nothing rare."""
    wavelength, flux = np.repeat(MILES_PIXELS, 2), np.ones(2 * MILES_PIXELS.size)
    error, power = np.tile([0.01, 0.05], MILES_PIXELS.size), np.tile([1800.0, 2200.0], MILES_PIXELS.size)
    extractor, order = normalised_extractor(), np.arange(wavelength.size)[::-1]
    one = extractor(flux, wavelength, flux_error=error, resolving_power=power)
    other = extractor(flux[order], wavelength[order], flux_error=error[order], resolving_power=power[order])
    same(one, other)


@pytest.mark.parametrize("n_exposures", range(1, 9))
@pytest.mark.parametrize("shift", [0.0, 0.01, 0.1])
def test_exposures_on_top_of_each_other_are_no_gaps(n_exposures, shift):
    """Steps of nothing between repeated wavelengths do not make a gap of every step between pixels."""
    wavelength = np.concatenate([MILES_PIXELS + shift * exposure for exposure in range(n_exposures)])
    features = normalised_extractor()(star_flux(wavelength), wavelength)
    assert features["flux"].shape[1] // PATCH_SIZE == -(-wavelength.size // PATCH_SIZE)


def test_repeated_pixels_are_averaged():
    """As if the pixels had been averaged first; the token also knows that there were two."""
    model, extractor = tiny_model(), normalised_extractor()
    wavelength = np.repeat(MILES_PIXELS[: PATCH_SIZE // 2], 2)
    wiggle = np.tile([0.1, -0.1], PATCH_SIZE // 2)
    flux = star_flux(wavelength)
    assert_same(asked(extractor(flux + wiggle, wavelength), model), asked(extractor(flux, wavelength), model))
    uneven = extractor(flux + np.abs(wiggle), wavelength)
    assert (asked(uneven, model) - asked(extractor(flux, wavelength), model)).abs().max() > 1e-3


# ---------------------------------------------------------------- patches


def test_a_token_never_straddles_a_detector_gap_of_apogee():
    wavelength = apogee_wavelength()
    features = normalised_extractor()(np.ones(wavelength.size), wavelength)
    grid = apstar_wavelength()
    detectors = [(grid[part.start], grid[part.stop - 1]) for part in APOGEE_DETECTORS]
    for token in patches(features):
        there = token[token > 0]
        assert sum(low <= there.min() and there.max() <= high for low, high in detectors) == 1
    sizes = [part.stop - part.start for part in APOGEE_DETECTORS]
    assert len(patches(features)) == sum(-(-size // PATCH_SIZE) for size in sizes)


def test_apogees_pixels_become_a_few_hundred_tokens():
    wavelength = apogee_wavelength()
    features = normalised_extractor(patch_size=32)(np.ones(wavelength.size), wavelength)
    assert wavelength.size == features["attention_mask"].sum() == 7514
    assert 7514 / 32 <= features["flux"].shape[1] / 32 < 300


@pytest.mark.parametrize("n_exposures", [4, 6, 8])
@pytest.mark.parametrize("shift", [0.0, 0.005, 0.01, 0.015, 0.1])
def test_gaps_stay_gaps_however_many_exposures_overlap(n_exposures, shift):
    wavelength = np.concatenate([apogee_wavelength() + shift * exposure for exposure in range(n_exposures)])
    tokens = patches(normalised_extractor()(np.ones(wavelength.size), wavelength))
    sizes = [n_exposures * (part.stop - part.start) for part in APOGEE_DETECTORS]
    assert len(tokens) == sum(-(-size // PATCH_SIZE) for size in sizes)
    assert max(np.ptp(token[token > 0]) for token in tokens) < 5.0


@pytest.mark.parametrize("n_pixels", [1, 2, 3, 5])
def test_windows_around_lines_are_a_token_each(n_pixels):
    """Most of the length of such a spectrum is gaps, so that its steps alone do not tell them."""
    lines = np.arange(4000.0, 9000.0, 200.0)
    wavelength = (lines[:, None] + np.arange(n_pixels)).ravel()
    tokens = patches(normalised_extractor()(np.ones(wavelength.size), wavelength))
    assert [token[token > 0].tolist() for token in tokens] == wavelength.reshape(-1, n_pixels).tolist()


def test_a_far_gap_does_not_hide_the_near_ones():
    """Some lines in the optical, and APOGEE: most of the length is the gap between."""
    wavelength = np.concatenate([MILES_PIXELS, apogee_wavelength()])
    tokens = patches(normalised_extractor()(np.ones(wavelength.size), wavelength))
    sizes = [MILES_PIXELS.size, *(part.stop - part.start for part in APOGEE_DETECTORS)]
    assert len(tokens) == sum(-(-size // PATCH_SIZE) for size in sizes)


def test_pixels_at_one_wavelength_are_one_run():
    features = normalised_extractor()(np.ones(20), np.full(20, 5000.0))
    assert features["flux"].shape[1] == 2 * PATCH_SIZE


def test_a_spectrum_of_two_spectrographs_is_cut_by_the_pixels_of_each():
    """BOSS and APOGEE on one star, as in SDSS-V: pixels of 0.83 to 2.4 and of 0.2 Angstrom, and no gap in BOSS."""
    boss = 10 ** np.arange(np.log10(3600.0), np.log10(10_400.0), 1e-4)
    wavelength = np.concatenate([boss, apogee_wavelength()])
    n_tokens = [
        normalised_extractor()(np.ones(part.size), part)["flux"].shape[1] // PATCH_SIZE
        for part in (boss, apogee_wavelength(), wavelength)
    ]
    assert n_tokens[0] == -(-boss.size // PATCH_SIZE)
    assert n_tokens[2] == n_tokens[0] + n_tokens[1]


def test_what_lies_beyond_a_gap_does_not_move_the_tokens_before_it():
    flux = star_flux(MILES_PIXELS)
    cut = (MILES_PIXELS > 5160) & (MILES_PIXELS < 5190)
    extractor = normalised_extractor()
    with_gap = extractor(flux[~cut], MILES_PIXELS[~cut])
    blue = extractor(flux[MILES_PIXELS <= 5160], MILES_PIXELS[MILES_PIXELS <= 5160])
    n_pixels = blue["flux"].shape[1]
    for name in blue:
        np.testing.assert_array_equal(with_gap[name][:, :n_pixels], blue[name])


def test_a_patch_that_is_not_full_lies_where_the_full_one_does():
    full = PatchGeometry.of(CENTRES[None, None])
    part = torch.where(torch.arange(PATCH_SIZE) < 5, CENTRES, 0.0)
    part = PatchGeometry.of(part[None, None])
    assert part.centre.item() == full.centre.item() == 5007.5
    assert part.spacing.item() == full.spacing.item() == 1.0
    assert torch.equal(part.position[..., :5], full.position[..., :5])


def test_a_window_shows_the_model_nothing_of_the_rest():
    """Whole patches outside a window are not even there; a patch that straddles its edge has missing pixels."""
    flux, wavelength = star_flux(MILES_PIXELS), MILES_PIXELS
    outside = np.arange(flux.size) >= 3 * PATCH_SIZE
    extractor = normalised_extractor()
    window = extractor(np.where(outside, 50.0, flux), wavelength, outside)
    same(window, extractor(flux[~outside], wavelength[~outside]))
    for first in (0, 7):
        shown = np.arange(flux.size) >= first
        features = extractor(flux, wavelength, ~shown)
        assert features["attention_mask"].sum() == shown.sum()
        assert not features["flux"][features["attention_mask"] == 0].any()


# ---------------------------------------------------------------- cloud in cell


def shared_out(position, values=None, good=None):
    """Nodes of one patch: what they hold of one value per pixel, and how much of each is covered."""
    position = torch.as_tensor(position, dtype=torch.float32)[None, None]
    values = torch.ones_like(position) if values is None else torch.as_tensor(values).float()[None, None]
    good = torch.ones_like(position, dtype=torch.bool) if good is None else torch.as_tensor(good)[None, None]
    return deposit(values[..., None], good, position)[0, 0].unbind(-1)


@pytest.mark.parametrize(("start", "width"), [(5000.0, 1.0), (5000.3, 0.9), (15_145.17, 0.22), (24_000.1, 3.7)])
@pytest.mark.parametrize("patch_size", [2, 16, 160])
def test_evenly_spaced_pixels_stay_what_they_are(start, width, patch_size):
    """Bit for bit, whatever the pixel width; missing pixels stay missing, and their neighbours do not hear of it."""
    rng = np.random.default_rng(0)
    wavelength = torch.from_numpy(start + width * np.arange(patch_size))[None, None]
    patch = PatchGeometry.of(wavelength)
    assert torch.equal(patch.position[0, 0], torch.arange(patch_size).float())
    values = rng.normal(size=patch_size).astype(np.float32)
    good = rng.random(patch_size) > 0.3
    held, covered = shared_out(patch.position[0, 0], values, good)
    assert held.tolist() == np.where(good, values, 0).tolist()
    assert covered.tolist() == good.tolist()


def test_log_spaced_pixels_hardly_move():
    """6e-6 dex apart: the middle of 16 pixels is off its node by 1.4e-5 * 7.5^2 / 2 pixels."""
    wavelength = torch.from_numpy(apogee_wavelength()[:PATCH_SIZE])[None, None]
    off = (PatchGeometry.of(wavelength).position[0, 0] - torch.arange(PATCH_SIZE)).abs()
    assert off.max().item() == pytest.approx(6e-6 * np.log(10) * 7.5**2 / 2, rel=0.02)
    values = np.random.default_rng(0).normal(size=PATCH_SIZE)
    held, _ = shared_out(PatchGeometry.of(wavelength).position[0, 0], values)
    np.testing.assert_allclose(held, values, atol=2e-3)


@pytest.mark.parametrize("position", [0.0, 3.0, 3.1, 7.5, 7.999, 14.2, 15.0])
def test_shares_of_a_pixel_add_up_to_one_and_keep_its_place(position):
    """Nothing is lost or made, and the centre of gravity of the shares is where the pixel is."""
    only = np.arange(PATCH_SIZE) == 4
    held, covered = shared_out(np.full(PATCH_SIZE, position), np.full(PATCH_SIZE, 2.5), only)
    assert covered.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert held.sum().item() == pytest.approx(2.5, abs=1e-6)
    assert (covered * torch.arange(PATCH_SIZE)).sum().item() == pytest.approx(position, abs=1e-5)
    assert (covered > 0).sum() == (1 if position == int(position) else 2)


def test_a_lone_pixel_between_two_nodes_is_shared_by_its_distance():
    only = np.arange(PATCH_SIZE) == 0
    held, _ = shared_out(np.full(PATCH_SIZE, 3.25), np.full(PATCH_SIZE, 8.0), only)
    assert held.nonzero().flatten().tolist() == [3, 4]
    assert held[3:5].tolist() == [6.0, 2.0]


def test_any_pixels_of_a_flat_spectrum_are_flat():
    """However irregular: where a node is covered once or more, it holds the flux itself."""
    position = np.sort(np.random.default_rng(0).uniform(0, 15, PATCH_SIZE))
    held, covered = shared_out(position, np.full(PATCH_SIZE, 0.7))
    full = covered > 0.999999
    assert 3 < full.sum() < PATCH_SIZE
    np.testing.assert_allclose(held[full], 0.7, rtol=1e-5)
    assert (held[~full] < 0.7).all()


def test_shifting_a_pixel_by_a_tenth_moves_a_tenth_of_it_to_the_next_node():
    line = np.where(np.arange(PATCH_SIZE) == 6, -3.0, 0.0)  # one pixel deep in a line
    position = np.arange(PATCH_SIZE, dtype=float)
    good = np.arange(PATCH_SIZE) != 7  # room to its right
    held, covered = shared_out(position, line, good)
    assert (held[6], held[7], covered[7]) == (-3.0, 0.0, 0.0)
    position[6] += 0.1
    held, covered = shared_out(position, line, good)
    assert held[6:8].tolist() == pytest.approx([-2.7, -0.3], abs=1e-5)
    position[6] += 0.9
    held, covered = shared_out(position, line, good)
    assert held[6:8].tolist() == [0.0, -3.0]
    assert covered[6:8].tolist() == [0.0, 1.0]


def test_tokens_change_smoothly_with_wavelength():
    """A pixel off by a tenth changes its token a little, off by a whole pixel ten times as much."""
    model = tiny_model()
    good = torch.ones(1, PATCH_SIZE, dtype=torch.bool)
    good[0, 7] = False
    flux = torch.where(torch.arange(PATCH_SIZE) == 6, -3.0, 0.0)[None]
    tokens = []
    for shift in (0.0, 0.1, 1.0):
        moved = torch.where(torch.arange(PATCH_SIZE) == 6, CENTRES + shift, CENTRES)[None]
        with torch.no_grad():
            tokens.append(model.encoder.embeddings(flux, moved, good)[0])
    little, much = ((token - tokens[0]).norm().item() for token in tokens[1:])
    assert 0 < little < 0.3 * much


@pytest.mark.parametrize("missing", [0, 6, PATCH_SIZE - 1])
def test_a_missing_pixel_leaves_the_others_where_they_are(missing):
    """Even the first or last of a patch: patches are made of pixels that are there, not of good ones."""
    flux = star_flux(MILES_PIXELS)
    extractor = normalised_extractor()
    whole, holed = (extractor(flux, MILES_PIXELS, bad) for bad in (None, np.arange(flux.size) == missing))
    np.testing.assert_array_equal(whole["wavelength"], holed["wavelength"])
    nodes = []
    for features in (whole, holed):
        patch = PatchGeometry.of(torch.from_numpy(patches(features))[None])
        values = torch.from_numpy(patches(features, "flux"))[None, ..., None]
        nodes.append(deposit(values, torch.from_numpy(patches(features, "attention_mask"))[None] == 1, patch.position))
    changed = (nodes[0] != nodes[1]).any(-1).flatten()
    assert changed.nonzero().flatten().tolist() == [missing]


# ---------------------------------------------------------------- where in the spectrum


def test_a_hundredth_of_an_angstrom_is_seen_in_the_h_band():
    """0.2 km/s. In float32 the wavelength itself would step by 0.001, in bfloat16 by 64."""
    changes = {"patch_size": 1, "shortest_period": 0.5, "encoding_size": 64}
    model, extractor = tiny_model(**changes), normalised_extractor(patch_size=1)
    flux, wavelength = h_band_star()
    still, moved = (asked(extractor(flux, wavelength + shift), model) for shift in (0.0, 0.01))
    assert (moved - still).abs().max() > 1e-4
    rounded = asked(extractor(flux, (wavelength + 0.01).astype(np.float32)), model)
    assert 0 < (rounded - moved).abs().max() < (moved - still).abs().max()


@pytest.mark.parametrize("shortest_period", [0.5, 1.0, SpectraFMConfig().shortest_period])
def test_encoding_tells_all_wavelengths_apart(shortest_period):
    """Its distance depends on the difference alone; near ones differ by the shortest period's 4 sin^2(pi d / P)."""
    encoding = WavelengthEncoding(SpectraFMConfig(shortest_period=shortest_period, encoding_size=128))
    rng = np.random.default_rng(0)
    apart = np.exp(rng.uniform(np.log(0.1), np.log(RANGE[1] - RANGE[0] - 1), 40_000))
    one = RANGE[0] + rng.uniform(size=apart.size) * (RANGE[1] - RANGE[0] - apart)
    first, second = (encoding(torch.from_numpy(w)[None])[0] for w in (one, one + apart))
    distance = (first - second).square().sum(-1).sqrt().numpy()
    nearest = 2 * np.sin(np.pi * 0.1 / shortest_period)  # of one pair of sine and cosine, at 0.1 Angstrom
    assert distance.min() > nearest
    assert distance[apart > 10].min() > 4.0  # far ones do not alias


# ---------------------------------------------------------------- how well a pixel was measured


@pytest.mark.parametrize(("error", "dex"), [(0.1, 1.0), (0.01, 2.0), (1e-3, 3.0), (1e-9, 4.0), (3.0, 0.05)])
def test_signal_to_noise_is_told_in_orders_of_magnitude(error, dex):
    assert log_snr(torch.tensor([error])).item() == pytest.approx(dex, abs=1e-6)


@pytest.mark.parametrize("error", [0.0, -1.0, np.nan, np.inf, None])
def test_errors_not_known_are_the_same_whatever_stands_for_them(error):
    flux, wavelength = optical_star()
    extractor, model = normalised_extractor(), tiny_model()
    without = asked(extractor(flux, wavelength), model)
    told = None if error is None else np.full(flux.size, error)
    assert torch.equal(asked(extractor(flux, wavelength, flux_error=told), model), without)
    if error is not None:
        features = extractor(flux, wavelength, return_tensors="pt")
        features["flux_error"] = torch.full_like(features["flux"], error)
        assert torch.equal(asked(features, model), without)


def test_errors_matter_pixel_by_pixel():
    flux, wavelength = optical_star()
    extractor, model = normalised_extractor(), tiny_model()
    error = np.full(flux.size, 0.02)
    unknown, known, halved = (
        asked(extractor(flux, wavelength, flux_error=e), model) for e in (None, error, 0.5 * error)
    )
    assert (known - unknown).abs().max() > 1e-2
    assert (halved - known).abs().max() > 1e-3
    one = np.where(np.arange(flux.size) == 40, np.nan, error)
    assert (asked(extractor(flux, wavelength, flux_error=one), model) - known).abs().max() > 1e-5


def test_error_and_resolving_power_of_a_missing_pixel_do_not_matter():
    flux, wavelength = optical_star()
    bad = np.arange(flux.size) % 9 == 4
    told = {"flux_error": np.full(flux.size, 0.02), "resolving_power": np.full(flux.size, 2000.0)}
    spoilt = {name: np.where(bad, 1e-3 * values, values) for name, values in told.items()}
    one, other = (normalised_extractor()(flux, wavelength, bad, **known) for known in (told, spoilt))
    assert torch.equal(asked(one), asked(other))


@pytest.mark.parametrize("factor", [1e-17, 1.0, 1e17])
def test_errors_are_told_relative_to_the_continuum(factor):
    """Unit and level of the flux drop out: 2 % of the continuum is 2 %."""
    wavelength = np.arange(4500.0, 6000.0, 0.9)
    continuum = (wavelength / 5200.0) ** 4  # from 0.6 to 1.8
    flux, error = star_flux(wavelength) * continuum, 0.02 * continuum
    told = native_extractor(smoothing_length=60.0)(factor * flux, wavelength, flux_error=factor * error)
    relative = told["flux_error"][told["attention_mask"] == 1]
    far = (np.abs(wavelength - 5176.0) > 150) & (np.abs(wavelength - 5250.0) < 600)  # from lines and from the ends
    assert relative[far] == pytest.approx(0.02, rel=0.02)
    plain = native_extractor(smoothing_length=60.0)(flux, wavelength, flux_error=error)
    np.testing.assert_allclose(told["flux_error"], plain["flux_error"], rtol=1e-5)
    np.testing.assert_allclose(told["flux"], plain["flux"], atol=1e-5)


@pytest.mark.parametrize("pixel_width", [None, 1.0])
@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_errors_of_the_smallest_flux_are_not_lost(pixel_width, factor):
    """Squared before they are divided by the level, they would be 0 or infinite."""
    flux, wavelength = optical_star()
    extractor = native_extractor(pixel_width=pixel_width, wavelength_range=(5100.0, 5260.0))
    plain = extractor(flux, wavelength, flux_error=np.full(flux.size, 0.02))
    told = extractor(factor * flux, wavelength, flux_error=np.full(flux.size, 0.02 * factor))
    assert (told["flux_error"] > 0).sum() > 100
    np.testing.assert_allclose(told["flux_error"], plain["flux_error"], rtol=1e-5)


@pytest.mark.parametrize("error", [0.02, [0.02, 0.03, 0.04], np.full(3, 0.02), [np.full(3, 0.02), 0.02, None]])
def test_errors_are_shaped_like_the_flux(error):
    """Three spectra of three pixels that share their errors: one of each may be no error of a whole spectrum."""
    flux = 1 + 0.1 * np.arange(9.0).reshape(3, 3)
    with pytest.raises(ValueError, match=r"spectrum . of 3: flux_error must have one value per pixel .3,., got shape"):
        normalised_extractor()(flux, MILES_PIXELS[:3], flux_error=error)
    shaped = normalised_extractor()(flux, MILES_PIXELS[:3], flux_error=np.tile([0.02, 0.03, 0.04], (3, 1)))
    assert shaped["flux_error"][:, :3] == pytest.approx(np.tile([0.02, 0.03, 0.04], (3, 1)))
    powers = normalised_extractor()(flux, MILES_PIXELS[:3], resolving_power=[2000.0, 3000.0, 4000.0])
    assert powers["resolving_power"][:, 0].tolist() == [2000.0, 3000.0, 4000.0]


def test_complex_errors_are_refused():
    flux, wavelength = optical_star()
    with pytest.raises(ValueError, match="flux_error must be real, got complex numbers"):
        normalised_extractor()(flux, wavelength, flux_error=np.full(flux.size, 0.02 + 0j))


@pytest.mark.parametrize("smoothing_length", [None, 60.0])
def test_four_pixels_in_one_have_half_the_error(smoothing_length):
    """On a common grid of 1 Angstrom; errors are independent."""
    extractor = tiny_extractor(smoothing_length=smoothing_length, pixel_width=1.0)
    for width, expected in ((1.0, 0.02), (0.25, 0.01), (1 / 9, 0.02 / 3), (2.0, 0.02)):
        wavelength = np.arange(5000.0 + width / 2, 5400.0, width)
        features = extractor(np.ones(wavelength.size), wavelength, flux_error=np.full(wavelength.size, 0.02))
        error = features["flux_error"][features["attention_mask"] == 1]
        assert np.median(error) == pytest.approx(expected, rel=1e-3)
        assert error == pytest.approx(expected, rel=0.05)


def test_two_good_pixels_of_four_have_the_error_of_two():
    extractor = tiny_extractor(smoothing_length=None, pixel_width=1.0)
    wavelength = np.arange(5000.125, 5400.0, 0.25)
    bad = np.arange(wavelength.size) % 4 < 2
    features = extractor(np.ones(wavelength.size), wavelength, bad, flux_error=np.full(wavelength.size, 0.02))
    error = features["flux_error"][features["attention_mask"] == 1]
    assert error == pytest.approx(0.02 / np.sqrt(2), rel=0.01)


def test_on_a_common_grid_unknown_errors_stay_unknown():
    extractor = tiny_extractor(smoothing_length=None, pixel_width=1.0)
    wavelength = np.arange(5000.125, 5400.0, 0.25)
    error = np.where(wavelength < 5200, 0.02, np.nan)
    features = extractor(np.ones(wavelength.size), wavelength, flux_error=error, resolving_power=2000.0)
    good, blue = features["attention_mask"] == 1, features["wavelength"] < 5199
    assert features["flux_error"][good & blue] == pytest.approx(0.01, rel=0.05)
    assert not features["flux_error"][features["wavelength"] > 5201].any()
    assert features["resolving_power"][good] == pytest.approx(2000.0)


# ---------------------------------------------------------------- resolving power


def test_resolving_power_may_be_one_number_or_one_per_pixel():
    flux, wavelength = optical_star()
    extractor, model = normalised_extractor(), tiny_model()
    per_pixel = asked(extractor(flux, wavelength, resolving_power=np.full(flux.size, 2000.0)), model)
    assert torch.equal(asked(extractor(flux, wavelength, resolving_power=2000.0), model), per_pixel)
    features = extractor(flux, wavelength, return_tensors="pt")
    assert_same(asked({**features, "resolving_power": torch.tensor([2000.0])}, model), per_pixel, 1e-6)
    told = extractor([flux] * 2, wavelength, resolving_power=[2000.0, 22_500.0])
    assert_same(asked(told, model)[:1], per_pixel)
    assert (asked(told, model)[0] - asked(told, model)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("power", [0.0, -5.0, np.nan, np.inf, None])
def test_resolving_powers_not_known_are_the_same_whatever_stands_for_them(power):
    flux, wavelength = optical_star()
    extractor, model = normalised_extractor(), tiny_model()
    without = asked(extractor(flux, wavelength), model)
    assert torch.equal(asked(extractor(flux, wavelength, resolving_power=power), model), without)
    if power is not None:
        features = extractor(flux, wavelength, return_tensors="pt")
        assert torch.equal(asked({**features, "resolving_power": torch.tensor([power])}, model), without)
        half_known = torch.where(torch.arange(features["flux"].shape[1]) % 2 == 0, 2000.0, power)[None]
        known = asked({**features, "resolving_power": torch.tensor([2000.0])}, model)
        assert_same(asked({**features, "resolving_power": half_known}, model), known)


@pytest.mark.parametrize("power", [2.5, 49.9, 1.1e6, 1e30, 2.5e-10])
def test_a_width_in_angstrom_is_no_resolving_power(power):
    flux, wavelength = optical_star()
    for told in (power, np.where(np.arange(flux.size) == 7, power, 2000.0)):
        with pytest.raises(ValueError, match=r"resolving_power is lambda / FWHM, got .*; is that a FWHM in Angstrom\?"):
            normalised_extractor()(flux, wavelength, resolving_power=told)
    for edge in (50.0, 1e6):
        normalised_extractor()(flux, wavelength, resolving_power=edge)


def test_a_sharper_spectrograph_is_another_condition():
    flux, wavelength = optical_star()
    low, high, unknown = (
        asked(normalised_extractor()(flux, wavelength, resolving_power=power)) for power in (1800.0, 22_500.0, None)
    )
    for one, other in ((low, high), (low, unknown), (high, unknown)):
        assert (one - other).abs().max() > 1e-3


# ---------------------------------------------------------------- norms


def test_flux_norms_are_interpolated_between_the_wavelengths_they_are_known_at():
    known = {"flux_wavelength": [5000.0, 5100.0], "flux_center": [0.8, 0.6], "flux_scale": [0.1, 0.3]}
    extractor = normalised_extractor(**known)
    wavelength = np.array([5000.0, 5025.0, 5100.0])
    features = extractor(np.array([0.9, 0.9, 0.9]), wavelength)
    found = features["flux"][features["attention_mask"] == 1]
    np.testing.assert_allclose(found, [0.1 / 0.1, 0.15 / 0.15, 0.3 / 0.3], rtol=1e-5)
    elsewhere = extractor(np.array([0.9, 1.05]), np.array([4990.0, 15_000.0]))
    found = elsewhere["flux"][elsewhere["attention_mask"] == 1]
    np.testing.assert_allclose(found, [-1.0, 0.5], rtol=1e-5)  # centre 1 and spread 0.1, where nothing is known


def test_norms_of_two_instruments_live_side_by_side():
    rng = np.random.default_rng(0)
    extractor = normalised_extractor()
    for wavelength, center, spread in ((APOGEE_PIXELS, 0.9, 0.05), (MILES_PIXELS, 0.7, 0.1)):
        flux = center + spread * rng.standard_normal((400, wavelength.size))
        extractor.fit_flux_norms(flux, np.ones(flux.shape, bool), wavelength)
    assert (np.diff(extractor.flux_wavelength) > 0).all()
    assert len(extractor.flux_wavelength) == APOGEE_PIXELS.size + MILES_PIXELS.size
    for wavelength, center, spread in ((APOGEE_PIXELS, 0.9, 0.05), (MILES_PIXELS, 0.7, 0.1)):
        flux = center + spread * rng.standard_normal((100, wavelength.size))
        features = extractor(list(flux), wavelength)
        scaled = features["flux"][features["attention_mask"] == 1]
        assert scaled.mean() == pytest.approx(0.0, abs=0.05)
        assert scaled.std() == pytest.approx(1.0, abs=0.05)
    again = 0.5 + 0.2 * rng.standard_normal((400, MILES_PIXELS.size))
    extractor.fit_flux_norms(again, np.ones(again.shape, bool), MILES_PIXELS)  # replaces its own, not the other's
    assert len(extractor.flux_wavelength) == APOGEE_PIXELS.size + MILES_PIXELS.size
    assert np.median(extractor.flux_center[: MILES_PIXELS.size]) == pytest.approx(0.5, abs=0.02)
    assert np.median(extractor.flux_center[MILES_PIXELS.size :]) == pytest.approx(0.9, abs=0.01)


def test_a_pixel_no_training_spectrum_has_is_left_at_the_default():
    """Never seen is not "always 0, with no spread": the first star that has it would look 100 spreads bright."""
    flux = 0.9 + 0.02 * np.random.default_rng(0).standard_normal((50, MILES_PIXELS.size))
    good = np.ones(flux.shape, bool)
    good[:, 30:34] = False
    extractor = normalised_extractor()
    extractor.fit_flux_norms(flux, good, MILES_PIXELS)
    scaled = patches(extractor(np.full(MILES_PIXELS.size, 0.95), MILES_PIXELS), "flux").ravel()
    assert np.abs(scaled[30:34]).max() < 3


def test_norms_fitted_on_the_common_grid_replace_those_of_other_pixels():
    extractor = tiny_extractor(smoothing_length=None)
    for wavelength in (MILES_PIXELS, None):
        flux = np.full((3, (extractor.wavelength_grid if wavelength is None else wavelength).size), 0.9)
        extractor.fit_flux_norms(flux, np.ones(flux.shape, bool), wavelength)
    features = extractor(np.full(MILES_PIXELS.size, 0.9), MILES_PIXELS)
    np.testing.assert_allclose(features["flux"], 0.0, atol=1e-4)


def test_flux_norms_must_fit_their_wavelengths():
    with pytest.raises(ValueError, match=r"flux_center must have one entry per entry of flux_wavelength .2., got 3"):
        native_extractor(flux_wavelength=[5000.0, 5100.0], flux_center=[1.0] * 3)
    with pytest.raises(ValueError, match="flux_wavelength must be increasing"):
        native_extractor(flux_wavelength=[5100.0, 5000.0], flux_center=[1.0] * 2, flux_scale=[0.1] * 2)


def test_scaled_flux_beyond_a_limit_counts_as_missing():
    wavelength = MILES_PIXELS[:PATCH_SIZE]
    flux = np.full(PATCH_SIZE, 1.05)
    flux[[3, 8]] = 1.45, 0.55  # 4.5 spreads above and below
    for limit, lost in ((None, []), (5.0, []), (4.0, [3, 8])):
        features = normalised_extractor(largest_scaled=limit)(flux, wavelength)
        assert np.flatnonzero(features["attention_mask"][0] == 0).tolist() == lost
        assert features["flux"][0, [0, 5, 15]] == pytest.approx(0.5, abs=1e-4)
        assert not features["flux"][0, lost].any()


# ---------------------------------------------------------------- saved and loaded


def test_saved_extractor_prepares_every_spectrum_alike(tmp_path):
    extractor = native_extractor(given_names=["bp_rp", "logg"], largest_scaled=25.0)
    rng = np.random.default_rng(0)
    for _, wavelength in (optical_star(), h_band_star()):
        flux = 1 + 0.05 * rng.standard_normal((20, wavelength.size))
        extractor.fit_flux_norms(flux, np.ones(flux.shape, bool), wavelength)
    told = {
        "flux_error": [0.02 * np.ones(MILES_PIXELS.size), None],
        "resolving_power": [2300.0, 22_500.0],
        "given": {"bp_rp": [0.8, 1.2]},
    }
    spectra = tuple(zip(optical_star(), h_band_star(), strict=True))
    expected = extractor(*spectra, **told)
    assert {"flux_error", "resolving_power", "given", "given_errors"} < expected.keys()
    extractor.save_pretrained(tmp_path)
    loaded = SpectraFMFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.pixel_width is None
    same(loaded(*spectra, **told), expected)
    loaded.save_pretrained(tmp_path / "again")
    one, other = (tmp_path / folder / "preprocessor_config.json" for folder in (".", "again"))
    assert one.read_bytes() == other.read_bytes()
