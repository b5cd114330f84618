"""Training rows: functions of (seed, row number) and of nothing else."""

import numpy as np
import pytest
import torch
from conftest import LABEL_CENTER, LABEL_SCALE, PATCH_SIZE, tiny_extractor
from torch.utils.data import DataLoader, Dataset

from spectrafm_hf.collation import (
    Interleaved,
    ObservedSpectra,
    SpectrumCollator,
    SyntheticSpectra,
    draw_window,
    row_generator,
)
from spectrafm_hf.labels import MISSING_LABEL
from spectrafm_hf.synthesis.observing import ObservingConditions
from spectrafm_hf.synthesis.sampler import LabelSampler

CLEAN = ObservingConditions(
    noise=(1e-6, 1e-6), continuum_wiggle=0.0, velocity=0.0, fwhm=0.0, line_strength=0.0, line_list=0.0, missing=0.0
)


@pytest.fixture(scope="module")
def extractor():
    return tiny_extractor()


@pytest.fixture(scope="module")
def synthetic(extractor):
    return SyntheticSpectra(extractor, 1000, seed=7, context=6)


def same(one, other):
    """Equal; the flux but for the last digits, since a matrix product rounds differently in another batch."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=5e-5 if name == "flux" else 0, err_msg=name)


def decoded(extractor, rows):
    return np.stack([row["labels"] for row in rows]) * LABEL_SCALE + LABEL_CENTER


# ---------------------------------------------------------------- synthetic rows


def test_a_row_depends_on_seed_and_number_alone(extractor, synthetic):
    together = synthetic.__getitems__([3, 900, 5, 3])
    same(together[0], together[3])
    for row, index in zip(together, [3, 900, 5, 3], strict=True):
        same(row, synthetic[index])
        same(row, SyntheticSpectra(extractor, 10_000, seed=7, context=6)[index])


def test_rows_and_seeds_differ(extractor, synthetic):
    other_seed = SyntheticSpectra(extractor, 1000, seed=8, context=6)
    labels = [synthetic[0]["labels"], synthetic[1]["labels"], other_seed[0]["labels"], other_seed[1]["labels"]]
    for i, one in enumerate(labels):
        for other in labels[i + 1 :]:
            assert np.abs(one - other).min() > 0


def test_flux_belongs_to_the_labels(extractor):
    """A clean row is the star of its labels, synthesized and normalised by hand."""
    rows = SyntheticSpectra(extractor, 10, seed=1, conditions=CLEAN)
    row = rows[4]
    labels = decoded(extractor, [row])
    flux = rows.synthesizer(labels)[0]
    expected = extractor(flux, extractor.wavelength_grid)
    np.testing.assert_array_equal(row["attention_mask"], expected["attention_mask"][0])
    np.testing.assert_array_equal(row["wavelength"], expected["wavelength"][0])
    np.testing.assert_allclose(row["flux"], expected["flux"][0], atol=2e-3)
    np.testing.assert_array_equal(row["label_errors"], np.full(3, 0.03, dtype=np.float32))


def test_context_is_a_run_of_whole_tokens(extractor, synthetic):
    starts = []
    for row in synthetic.__getitems__(range(200)):
        assert row["flux"].shape == row["wavelength"].shape == row["attention_mask"].shape == (6 * PATCH_SIZE,)
        np.testing.assert_allclose(np.diff(row["wavelength"]), 1.0)
        starts.append((row["wavelength"][0] - 0.5) / PATCH_SIZE)
        assert starts[-1] == int(starts[-1])
    n_tokens, first = 26, 4992 / PATCH_SIZE
    counts = np.bincount(np.array(starts, dtype=int) - int(first), minlength=n_tokens - 6 + 1)
    assert counts.size == n_tokens - 6 + 1
    assert counts[0] >= 200 * 3 / 27 * 0.5  # both ends are seen
    assert counts[-1] >= 200 * 3 / 27 * 0.5
    assert (counts > 0).sum() > 15


def test_both_ends_are_seen_alone_as_often_as_the_middle_is():
    """Ends alone: half of all starts that overhang are pulled in to them."""
    rng = np.random.default_rng(0)
    windows = [draw_window(rng, 23, 11) for _ in range(6000)]
    assert all(w.stop - w.start == 11 and w.start >= 0 and w.stop <= 23 for w in windows)
    counts = np.bincount([w.start for w in windows], minlength=13)
    expected = np.array([6, *[1] * 11, 6]) / 23 * 6000  # 5 tokens of overhang and the place itself
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_context_longer_than_the_spectrum_is_the_spectrum(extractor):
    row = SyntheticSpectra(extractor, 10, seed=1, context=1000)[0]
    assert row["flux"].size == 26 * PATCH_SIZE
    assert draw_window(np.random.default_rng(0), 5, 5) == slice(0, 5)


def test_window_hides_all_else(extractor):
    rows = SyntheticSpectra(extractor, 10, seed=1, window=(5110.0, 5250.0)).__getitems__(range(10))
    for row in rows:
        good = row["attention_mask"] == 1
        assert row["wavelength"][good].min() >= 5110
        assert row["wavelength"][good].max() <= 5250
        assert row["flux"].size < 11 * PATCH_SIZE
        assert not row["flux"][~good].any()


def test_what_lies_outside_the_context_does_not_leak_in(extractor):
    """The same star and noise, shown in part: the pseudo-continuum sees the part alone, as it will at prediction."""
    part = SyntheticSpectra(extractor, 10, seed=1, context=6)
    labels, flux, good, _ = part.synthesize([2])
    row = part[2]
    inside = np.isin(extractor.wavelength_grid, row["wavelength"])
    by_hand = extractor(flux[0][inside], extractor.wavelength_grid[inside], ~good[0][inside])
    np.testing.assert_allclose(row["flux"], by_hand["flux"][0], atol=2e-3)
    np.testing.assert_allclose(decoded(extractor, [row]), labels, rtol=1e-5, atol=1e-5)


def test_labels_not_learned_are_missing(extractor):
    row = SyntheticSpectra(extractor, 10, seed=1, learned=["fe_h"])[0]
    np.testing.assert_array_equal(row["labels"][:2], [-100, -100])
    everything = SyntheticSpectra(extractor, 10, seed=1)[0]
    assert row["labels"][2] == everything["labels"][2]
    np.testing.assert_array_equal(row["flux"], everything["flux"])


def test_relabelled_rows_keep_their_flux(extractor):
    plain = SyntheticSpectra(extractor, 10, seed=1)
    tied = SyntheticSpectra(extractor, 10, seed=1, relabel=lambda labels: labels - np.array([0.0, 0.0, 0.2]))
    np.testing.assert_allclose(
        decoded(extractor, [tied[3]]) - decoded(extractor, [plain[3]]), [[0.0, 0.0, -0.2]], atol=2e-3
    )
    np.testing.assert_array_equal(tied[3]["flux"], plain[3]["flux"])


def test_order_of_the_models_labels_is_kept():
    turned = tiny_extractor(label_names=["fe_h", "teff"], label_center=[0.0, 0.0], label_scale=[1.0, 1.0])
    rows = SyntheticSpectra(turned, 50, seed=1).__getitems__(range(50))
    labels = np.stack([row["labels"] for row in rows])
    assert np.abs(labels[:, 0]).max() <= 2.5
    assert labels[:, 1].min() > 3000


def test_labels_the_grid_does_not_know_are_missing_and_them_alone_it_refuses():
    rows = SyntheticSpectra(tiny_extractor(label_names=["fe_h", "mg_fe", "teff"]), 20, seed=1).__getitems__(range(20))
    labels = np.stack([row["labels"] for row in rows])
    assert (labels[:, 1] == MISSING_LABEL).all()
    assert (labels[:, [0, 2]] != MISSING_LABEL).all()
    with pytest.raises(ValueError, match=r"knows teff, logg, fe_h, but mg_fe was asked for"):
        SyntheticSpectra(tiny_extractor(label_names=["mg_fe"], label_center=[0.0], label_scale=[1.0]), 10, seed=1)


def test_sampler_decides_which_stars(extractor):
    rows = SyntheticSpectra(extractor, 50, seed=1, sampler=LabelSampler(fe_h=(-2.5, -2.0))).__getitems__(range(50))
    assert decoded(extractor, rows)[:, 2].max() <= -2.0 + 1e-5


# ---------------------------------------------------------------- observed rows


@pytest.fixture(scope="module")
def stars(extractor):
    """Flux, good and labels of five stars on the extractor's grid; the last has no [Fe/H]."""
    labels, flux, good, _ = SyntheticSpectra(extractor, 5, seed=3, conditions=CLEAN).synthesize(range(5))
    labels[4, 2] = np.nan
    return flux, good, labels


def observed(extractor, stars, **told):
    flux, good, labels = stars
    return ObservedSpectra(extractor, flux, good, labels, None, **{"n_spectra": 20, "seed": 1, **told})


def test_stars_take_turns_with_fresh_noise(extractor, stars):
    rows = observed(extractor, stars)
    assert len(rows) == 20
    np.testing.assert_array_equal(rows[2]["labels"], rows[7]["labels"])
    assert np.abs(rows[2]["flux"] - rows[7]["flux"]).max() > 0.05
    assert not np.array_equal(rows[2]["labels"], rows[3]["labels"])
    same(rows.__getitems__([11, 2, 7])[1], rows[2])


def test_observed_flux_stays_that_of_the_star(extractor, stars):
    flux, good, _ = stars
    still = observed(extractor, stars, noise=0.0, continuum_wiggle=0.0)
    expected = extractor(flux[1], extractor.wavelength_grid, ~good[1])
    np.testing.assert_allclose(still[1]["flux"], expected["flux"][0], atol=1e-4)
    noisy = observed(extractor, stars, noise=0.02, continuum_wiggle=0.0)
    difference = 0.1 * np.stack([noisy[i]["flux"] - still[1]["flux"] for i in range(1, 20, 5)])
    assert difference.std() == pytest.approx(0.02, rel=0.25)
    np.testing.assert_array_equal(stars[0], flux)


def test_observed_labels_and_errors_are_scaled(extractor, stars):
    rows = observed(extractor, stars)
    np.testing.assert_allclose(decoded(extractor, [rows[1]])[0], stars[2][1], rtol=1e-5)
    np.testing.assert_allclose(rows[1]["label_errors"], [100 / 850, 0.2 / 1.4, 0.1 / 0.8], rtol=1e-6)
    assert rows[4]["labels"][2] == -100


def test_tokens_are_hidden_up_to_the_fraction_asked_for(extractor, stars):
    whole, holed = (observed(extractor, stars, n_spectra=200, missing_tokens=fraction) for fraction in (0.0, 0.6))
    n_pixels = stars[1][0].sum()
    hidden = np.array([1 - row["attention_mask"].sum() / n_pixels for row in holed.__getitems__(range(200))])
    assert max(1 - row["attention_mask"].sum() / n_pixels for row in whole.__getitems__(range(20))) < 0.01
    assert hidden.mean() == pytest.approx(0.3, abs=0.05)
    assert hidden.max() < 0.85
    row = holed[int(np.argmax(hidden))]
    tokens = row["attention_mask"].reshape(-1, PATCH_SIZE).mean(axis=1)
    assert ((tokens == 0) | (tokens > 0.4)).all()  # tokens vanish whole


# ---------------------------------------------------------------- taking turns


class Numbers(Dataset):
    def __init__(self, name):
        self.name = name

    def __getitems__(self, indices):
        return [(self.name, index) for index in indices]


def test_sets_take_turns():
    mixed = Interleaved(Numbers("observed"), Numbers("synthetic"), n_spectra=12, n_first=3, period=4)
    assert len(mixed) == 12
    rows = [mixed[i] for i in range(8)]
    assert [name for name, _ in rows] == (["observed"] * 3 + ["synthetic"]) * 2
    assert [number for _, number in rows] == [0, 1, 2, 0, 3, 4, 5, 1]


def test_order_of_a_batch_is_kept_whoever_the_rows_come_from():
    mixed = Interleaved(Numbers("a"), Numbers("b"), n_spectra=12)
    indices = [5, 0, 3, 2, 9]
    assert mixed.__getitems__(indices) == [mixed[i] for i in indices]


def test_no_row_is_shown_twice():
    mixed = Interleaved(Numbers("a"), Numbers("b"), n_spectra=400, n_first=1, period=4)
    rows = mixed.__getitems__(range(400))
    assert len(set(rows)) == 400
    assert sum(name == "a" for name, _ in rows) == 100


# ---------------------------------------------------------------- batches


def test_collator_pads_and_keeps_float64_wavelengths(extractor, synthetic, stars):
    rows = [synthetic[0], observed(extractor, stars)[0]]
    batch = SpectrumCollator(extractor)(rows)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "flux": torch.float32, "wavelength": torch.float64, "attention_mask": torch.int64,
        "labels": torch.float32, "label_errors": torch.float32,
    }  # fmt: skip
    n = rows[0]["flux"].size
    assert n < batch["flux"].shape[1] == rows[1]["flux"].size
    np.testing.assert_array_equal(batch["flux"][0, :n], rows[0]["flux"])
    np.testing.assert_array_equal(batch["wavelength"][0, :n], rows[0]["wavelength"])
    assert not batch["attention_mask"][0, n:].any()
    np.testing.assert_array_equal(batch["labels"][1], rows[1]["labels"])


def test_rows_without_labels_make_a_batch_without_labels(extractor, synthetic):
    row = {name: synthetic[0][name] for name in ("flux", "wavelength", "attention_mask")}
    assert set(SpectrumCollator(extractor)([row, row])) == set(row)


def test_number_of_workers_changes_nothing(extractor, synthetic):
    def batches(workers):
        told = {"batch_size": 8, "sampler": range(24), "collate_fn": SpectrumCollator(extractor)}
        return list(DataLoader(synthetic, num_workers=workers, **told))

    alone, shared = batches(0), batches(2)
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_neighbouring_seeds_of_any_size_give_other_numbers():
    drawn = {row_generator(seed, 7).random() for seed in (0, 1, 2**63 + 5, 2**63 + 6, 2**64 - 1)}
    assert len(drawn) == 5
