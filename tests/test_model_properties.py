"""What must not matter never does: properties drawn at random, for patch tokens and for pixel tokens."""

from functools import cache

import numpy as np
import pytest
import torch
from conftest import PATCH_SIZE, tiny_extractor, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_modeling import answer

PAPER_LIKE = {
    "tokens": "pixel",
    "patch_size": 1,
    "encoding_size": 32,
    "norm_first": False,
    "learned_key_value": True,
    "shared_readout": True,
    "head_sizes": [48, 32],
}
"""The published kind of network, in small."""

KINDS = pytest.mark.parametrize("kind", ["patch", "pixel"])
PROPERTY = settings(deadline=None, max_examples=20, derandomize=True, database=None)

INSTRUMENTS = {
    "MILES": lambda n: 5100.0 + 0.9 * np.arange(n),
    "LAMOST": lambda n: 4000.0 * 10 ** (1e-4 * np.arange(n)),
    "APOGEE": lambda n: 15_150.0 * 10 ** (6e-6 * np.arange(n)),
    "STIS": lambda n: np.cumsum(np.where(np.arange(n) % 7 == 6, 1.7, 1.1)) + 3300.0,  # irregular
}
instruments = st.sampled_from(list(INSTRUMENTS))
seeds, few = st.integers(0, 2**32 - 1), st.integers(1, 4)


@cache
def model_of(kind):
    return tiny_model(given_names=["bp_rp", "logg"], shortest_period=1.0, **(PAPER_LIKE if kind == "pixel" else {}))


@cache
def extractor_of(kind):
    patch_size = model_of(kind).config.patch_size
    return tiny_extractor(
        patch_size=patch_size, pixel_width=None, smoothing_length=None, wavelength_range=(3000.0, 25_000.0)
    )


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5, equal_nan=True)


def assert_answers_something(answers):
    """NaN is an answer for `logg` alone, where it was given."""
    assert answers[:, [0, 2, 3, 5]].isfinite().all()


@st.composite
def spectra(draw, least=1, most=70):
    """One spectrum as it comes to the door, some of it missing, some of it twice; at least one pixel is good."""
    rng = np.random.default_rng(draw(seeds))
    wavelength = INSTRUMENTS[draw(instruments)](draw(st.integers(least, most)))
    wavelength = np.concatenate([wavelength, rng.choice(wavelength, draw(st.integers(0, 10)))])
    bad = rng.random(wavelength.size) < draw(st.sampled_from([0.0, 0.2, 0.9]))
    bad[rng.integers(wavelength.size)] = False
    return {
        # Rounded, so that repeated pixels may share their flux too.
        "flux": np.round(1 + 0.2 * rng.standard_normal(wavelength.size), 1).clip(0.1, 2.0),
        "wavelength": wavelength,
        "bad_pixel": bad,
        "flux_error": np.where(rng.random(wavelength.size) < 0.3, np.nan, rng.uniform(0.01, 0.2, wavelength.size)),
        "resolving_power": rng.uniform(1500, 25_000, wavelength.size),
    }


def prepared(kind, *spectra):
    columns = {name: [spectrum[name] for spectrum in spectra] for name in spectra[0]}
    return extractor_of(kind)(columns.pop("flux"), columns.pop("wavelength"), **columns, return_tensors="pt")


@st.composite
def batches(draw, kind, n_spectra=few, n_tokens=few):
    """A batch as the model gets it: each row with an instrument, missing pixels and inputs of its own."""
    rng = np.random.default_rng(draw(seeds))
    patch_size = model_of(kind).config.patch_size
    shape = draw(n_spectra), draw(n_tokens) * (patch_size if kind == "patch" else 8)
    wavelength = np.stack([INSTRUMENTS[draw(instruments)](shape[1]) for _ in range(shape[0])])
    good = rng.random(shape) > draw(st.sampled_from([0.0, 0.2, 0.9]))
    good[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    batch = {
        "flux": np.where(good, rng.normal(size=shape), draw(st.sampled_from([0.0, 1e30, np.nan]))).astype(np.float32),
        "wavelength": wavelength,
        "attention_mask": good.astype(np.int64),
        "flux_error": np.where(rng.random(shape) < 0.3, 0.0, rng.uniform(0.01, 0.2, shape)).astype(np.float32),
        "resolving_power": rng.uniform(1500, 25_000, shape).astype(np.float32),
        "given": np.where(rng.random((shape[0], 2)) < 0.5, rng.normal(size=(shape[0], 2)), np.nan).astype(np.float32),
        "given_errors": rng.uniform(0.1, 0.5, (shape[0], 2)).astype(np.float32),
    }
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def reordered(batch, order):
    """Pixels of each row in an order of its own, (batch, n_pixels)."""
    n_pixels = batch["flux"].shape[1]
    return {
        name: values.gather(1, order) if values.shape[1] == n_pixels and "given" not in name else values
        for name, values in batch.items()
    }


def rows(batch, numbers):
    return {name: values[numbers] for name, values in batch.items()}


# ---------------------------------------------------------------- at the door


@KINDS
@given(data=st.data())
@PROPERTY
def test_pixels_come_to_the_door_in_any_order(kind, data):
    """Not a bit changes, repeated wavelengths or not."""
    spectrum = data.draw(spectra())
    order = np.random.default_rng(data.draw(seeds)).permutation(spectrum["flux"].size)
    shuffled = {name: values[order] for name, values in spectrum.items()}
    one, other = prepared(kind, spectrum), prepared(kind, shuffled)
    for name in one:
        assert torch.equal(one[name], other[name]), name
    answers = answer(model_of(kind), one)
    assert_answers_something(answers)
    assert torch.equal(answer(model_of(kind), other), answers)


@KINDS
@given(data=st.data())
@PROPERTY
def test_chunks_of_a_spectrum_come_to_the_door_in_any_order(kind, data):
    """Detectors, orders or arms: where one ends and the next begins is told by the wavelengths alone."""
    spectrum = data.draw(spectra(least=4))
    size = spectrum["flux"].size
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), min_size=1, max_size=4)))
    chunks = data.draw(st.permutations(np.split(np.arange(size), cuts)))
    other = {name: values[np.concatenate(chunks)] for name, values in spectrum.items()}
    expected, found = prepared(kind, spectrum), prepared(kind, other)
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


@KINDS
@given(data=st.data())
@PROPERTY
def test_instruments_mixed_in_one_batch_do_not_hear_of_each_other(kind, data):
    mixed = data.draw(st.lists(spectra(), min_size=2, max_size=4))
    together = answer(model_of(kind), prepared(kind, *mixed))
    assert_answers_something(together)
    for row, spectrum in enumerate(mixed):
        assert_same(together[row : row + 1], answer(model_of(kind), prepared(kind, spectrum)))


@KINDS
@given(data=st.data())
@PROPERTY
def test_one_good_pixel_gives_an_answer(kind, data):
    """The same, whatever stands in those that are missing beside it."""
    spectrum = data.draw(spectra())
    only = data.draw(st.integers(0, spectrum["flux"].size - 1))
    spectrum["bad_pixel"] = np.arange(spectrum["flux"].size) != only
    spoilt = spectrum.copy()
    for name in ("flux", "flux_error", "resolving_power"):
        spoilt[name] = np.where(spectrum["bad_pixel"], data.draw(st.floats(-1e9, 1e9)), spectrum[name])
    answers = answer(model_of(kind), prepared(kind, spectrum))
    assert answers.isfinite().all()
    assert torch.equal(answer(model_of(kind), prepared(kind, spoilt)), answers)


# ---------------------------------------------------------------- in the model


@KINDS
@given(data=st.data())
@PROPERTY
def test_order_of_tokens_carries_nothing(kind, data):
    batch = data.draw(batches(kind))
    n_spectra, n_pixels = batch["flux"].shape
    patch_size = model_of(kind).config.patch_size
    generator = torch.Generator().manual_seed(data.draw(seeds))
    tokens = torch.rand(n_spectra, n_pixels // patch_size, generator=generator).argsort(dim=1)
    order = (tokens[..., None] * patch_size + torch.arange(patch_size)).flatten(1)
    expected = answer(model_of(kind), batch)
    assert_answers_something(expected)
    assert_same(answer(model_of(kind), reordered(batch, order)), expected)


@given(data=st.data())
@PROPERTY
def test_order_of_pixels_inside_a_patch_carries_nothing(data):
    batch = data.draw(batches("patch"))
    generator = torch.Generator().manual_seed(data.draw(seeds))
    inside = torch.rand(*batch["flux"].unflatten(1, (-1, PATCH_SIZE)).shape, generator=generator).argsort(dim=-1)
    order = (inside + PATCH_SIZE * torch.arange(inside.shape[1])[:, None]).flatten(1)
    assert_same(answer(model_of("patch"), reordered(batch, order)), answer(model_of("patch"), batch))


@KINDS
@given(data=st.data())
@PROPERTY
def test_padding_carries_nothing(kind, data):
    """Any number of masked tokens, at either end, with or without a wavelength, whatever stands in them."""
    batch = data.draw(batches(kind))
    patch_size = model_of(kind).config.patch_size
    before, after = (data.draw(st.integers(0, 4)) * patch_size for _ in range(2))
    padded = batch.copy()
    for name in ("flux", "wavelength", "attention_mask", "flux_error", "resolving_power"):
        padded[name] = torch.nn.functional.pad(batch[name], (before, after))
    added = torch.ones(padded["flux"].shape, dtype=torch.bool)
    added[:, before : before + batch["flux"].shape[1]] = False
    for name, values in (("flux", [0.0, 7.0, 1e30, np.nan, np.inf]), ("wavelength", [0.0, 5000.5, 16_000.0]),
                         ("flux_error", [0.0, 0.1, np.nan]), ("resolving_power", [0.0, 2000.0, np.nan])):  # fmt: skip
        padded[name] = torch.where(added, data.draw(st.sampled_from(values)), padded[name])
    assert_same(answer(model_of(kind), padded), answer(model_of(kind), batch))


@KINDS
@given(data=st.data())
@PROPERTY
def test_what_stands_in_a_missing_pixel_carries_nothing(kind, data):
    batch = data.draw(batches(kind))
    anything, good = np.random.default_rng(data.draw(seeds)), batch["attention_mask"].bool()
    spoilt = batch.copy()
    for name in ("flux", "flux_error", "resolving_power"):
        junk = anything.choice([-1.0, 0.0, 1e-4, 7.0, 1e30, np.nan, np.inf], size=good.shape)
        spoilt[name] = torch.where(good, batch[name], torch.from_numpy(junk).float())
    assert_same(answer(model_of(kind), spoilt), answer(model_of(kind), batch))


@KINDS
@given(data=st.data())
@PROPERTY
def test_companions_in_a_batch_carry_nothing(kind, data):
    """Nor does the order of the batch, or how often a spectrum is in it."""
    batch = data.draw(batches(kind, n_spectra=st.integers(2, 4)))
    alone = torch.cat([answer(model_of(kind), rows(batch, [row])) for row in range(len(batch["flux"]))])
    chosen = data.draw(st.lists(st.integers(0, len(alone) - 1), min_size=1, max_size=6))
    assert_same(answer(model_of(kind), rows(batch, chosen)), alone[chosen])


@KINDS
@given(data=st.data())
@PROPERTY
def test_a_missing_token_is_a_token_left_out(kind, data):
    """Whole tokens may be masked or not be there at all."""
    batch = data.draw(batches(kind, n_spectra=st.just(1), n_tokens=st.integers(2, 5)))
    patch_size = model_of(kind).config.patch_size
    n_tokens = batch["flux"].shape[1] // patch_size
    kept = data.draw(st.sets(st.integers(0, n_tokens - 1), min_size=1, max_size=n_tokens))
    kept = torch.isin(torch.arange(n_tokens), torch.tensor(sorted(kept))).repeat_interleave(patch_size)
    kept[batch["attention_mask"][0].argmax()] = True  # at least one good pixel
    kept = kept.unflatten(0, (-1, patch_size)).any(-1).repeat_interleave(patch_size)
    masked = batch | {"attention_mask": batch["attention_mask"] * kept}
    cut = {name: values[:, kept] if len(kept) == values.shape[1] else values for name, values in batch.items()}
    assert_same(answer(model_of(kind), masked), answer(model_of(kind), cut))


@KINDS
@given(data=st.data())
@PROPERTY
def test_every_good_pixel_says_something(kind, data):
    """Else all of the above would hold for a model that looks at nothing."""
    batch = data.draw(batches(kind))
    good = batch["attention_mask"].bool()
    row, pixel = good.nonzero()[data.draw(st.integers(0, int(good.sum()) - 1))].tolist()
    changed = batch | {"flux": batch["flux"].clone()}
    changed["flux"][row, pixel] += 1.0
    difference = (answer(model_of(kind), changed) - answer(model_of(kind), batch)).abs().nan_to_num(0).amax(dim=1)
    assert difference[row] > 1e-4
    assert not difference[torch.arange(len(difference)) != row].gt(2e-5).any()
