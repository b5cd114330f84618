"""Endless synthetic APOGEE spectra: the same bytes whoever computes them, and labels that mean what they say."""

import hashlib

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from spectrafm_hf.labels import LABELS
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.apogee import BLOCK, ApogeeSpectra, ApogeeSynthesizer
from spectrafm_hf.synthesis.cannon import BOUNDS, CannonSynthesizer
from spectrafm_hf.synthesis.dr17_sampler import LABEL_NAMES, Dr17LabelSampler
from spectrafm_hf.synthesis.instrument import ApogeeConditions
from spectrafm_hf.synthesis.synthesizer import Synthesizer

PER_PIXEL = {"flux": np.float32, "ivar": np.float32, "bad_pixel": np.bool_}


def fingerprint(block):
    return hashlib.sha256(b"".join(values.tobytes() for values in block.values())).hexdigest()


@pytest.fixture(scope="module")
def spectra():
    return ApogeeSpectra(seed=7)


@pytest.fixture(scope="module")
def block(spectra):
    return spectra.block(0)


class Stars:
    """Draws the same star over and over."""

    def __init__(self, label_names=LABEL_NAMES, **star):
        self.label_names = label_names
        self.star = {"teff": 4500.0, "logg": 2.0} | star

    def draw(self, rng, n):
        return np.tile([self.star.get(name, 0.0) for name in self.label_names], (n, 1))


# ---------------------------------------------------------------- what a block holds


def test_a_block_holds_256_spectra_on_the_apogee_pixels(spectra, block):
    np.testing.assert_array_equal(spectra.wavelength, apogee_wavelength())
    assert block["labels"].shape == (BLOCK, len(LABELS)) == (256, 5)
    for name, dtype in PER_PIXEL.items():
        assert block[name].shape == (256, 7514)
        assert block[name].dtype == dtype
    nuisances = {"snr", "vmacro", "velocity", "lsf_change", "c_fe", "n_fe", "alpha_fe"}
    assert set(block) == {"labels", *PER_PIXEL, *nuisances}
    assert {block[name].shape for name in nuisances} == {(256,)}
    for name, values in block.items():
        assert np.isfinite(values).all(), name


def test_a_block_is_a_row_group_of_the_builder():
    from spectrafm_hf.builders.parquet_layout import ROW_GROUP

    assert BLOCK == ROW_GROUP


def test_the_flux_is_that_of_the_labels_beside_it(spectra):
    """Observed without a flaw, a block is the synthesizer's answer to its own labels."""
    flawless = ApogeeConditions(
        snr=(1e9, 1e9), vmacro=(0.0, 0.0), velocity=0.0, resolving_power=0.0, continuum=0.0, missing=0.0
    )
    block = ApogeeSpectra(seed=7, conditions=flawless).block(0)
    columns = dict(zip((label.name for label in LABELS), block["labels"].T, strict=True)) | block
    labels = np.column_stack([columns[name] for name in spectra.synthesizer.label_names])
    np.testing.assert_allclose(block["flux"], spectra.synthesizer(labels), atol=2e-4)


def test_conditions_do_not_change_the_stars(block):
    other = ApogeeSpectra(seed=7, conditions=ApogeeConditions(snr=(20.0, 30.0), missing=0.2)).block(0)
    np.testing.assert_array_equal(other["labels"], block["labels"])
    assert other["snr"].max() < 30


def test_without_the_response_abundances_are_missing_labels():
    block = ApogeeSpectra(seed=7, response=False).block(0)
    assert np.isfinite(block["labels"][:, :3]).all()
    assert np.isnan(block["labels"][:, 3:]).all()
    assert not {"c_fe", "n_fe", "alpha_fe"} & set(block)


def test_a_nuisance_out_of_reach_is_pulled_in_and_says_so():
    block = ApogeeSpectra(seed=0, sampler=Stars(c_fe=-3.0)).block(0)
    np.testing.assert_allclose(block["c_fe"], ApogeeSynthesizer().bounds["c_fe"][0])


# ---------------------------------------------------------------- the same bytes


def test_blocks_do_not_depend_on_their_order(spectra, block):
    spectra.block(12)
    assert fingerprint(spectra.block(0)) == fingerprint(block)
    assert fingerprint(ApogeeSpectra(seed=7).block(0)) == fingerprint(block)


def test_blocks_and_seeds_differ(spectra, block):
    for other in (spectra.block(1), ApogeeSpectra(seed=8).block(0)):
        for name in ("labels", "flux", "ivar", "bad_pixel", "snr", "velocity"):
            assert not np.array_equal(other[name], block[name]), name


def on_threads(told):
    """In a process of its own: each block on two threads, then on one."""
    spectra = ApogeeSpectra(seed=7)
    for threads in (2, 1):
        with threadpool_limits(threads):
            used = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
            told.put((used, [fingerprint(spectra.block(number)) for number in (3, 0)]))


def test_neither_processes_nor_threads_change_a_byte(spectra, fresh_processes):
    here = [fingerprint(spectra.block(number)) for number in (3, 0)]
    told = fresh_processes.SimpleQueue()
    process = fresh_processes.Process(target=on_threads, args=(told,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert [told.get() for _ in range(2)] == [({2}, here), ({1}, here)]


@pytest.mark.parametrize("wrong", [-1, 2**63])
def test_numbers_that_are_no_seed_or_block_are_refused(spectra, wrong):
    with pytest.raises(ValueError, match="seed must be a non-negative whole number"):
        ApogeeSpectra(seed=wrong)
    with pytest.raises(ValueError, match="block_index must be a non-negative whole number"):
        spectra.block(wrong)


# ---------------------------------------------------------------- synthesizers


@pytest.mark.parametrize("response", [True, False])
def test_synthesizers_look_alike_from_outside(response):
    cannon: Synthesizer = CannonSynthesizer(apogee_wavelength(), resolving_power=22_500)
    apogee: Synthesizer = ApogeeSynthesizer(response)
    for synthesizer in (cannon, apogee):
        assert tuple(synthesizer.bounds) == synthesizer.label_names
        middle = [np.mean(synthesizer.bounds[name]) for name in synthesizer.label_names]
        flux = synthesizer(np.array([middle]))
        assert flux.shape == (1, synthesizer.wavelength.size)
        assert flux.dtype == np.float32


def test_solar_abundance_ratios_are_the_cannon_grid():
    labels = np.array([[4500.0, 2.0, -0.3], [5777.0, 4.44, 0.0]])
    cannon = CannonSynthesizer(apogee_wavelength(), resolving_power=22_500)(labels)
    solar = np.column_stack([labels, np.zeros((2, 5))])
    np.testing.assert_allclose(ApogeeSynthesizer()(solar), cannon, atol=1e-6)
    np.testing.assert_array_equal(ApogeeSynthesizer(response=False)(labels), cannon)


def test_clipping_is_rare_where_stars_are():
    synthesizer = ApogeeSynthesizer()
    flux = synthesizer.unclipped(Dr17LabelSampler().draw(np.random.default_rng(0), 2000))
    assert ((flux < 0.01) | (flux > 1.05)).mean() < 1e-5


def test_flux_of_any_star_allowed_is_physical():
    synthesizer = ApogeeSynthesizer()
    low, high = np.array([synthesizer.bounds[name] for name in synthesizer.label_names]).T
    labels = np.random.default_rng(0).uniform(low, high, (500, len(low)))
    flux = synthesizer(labels)
    assert flux.min() > 0
    assert flux.max() <= np.float32(1.05)


@pytest.mark.parametrize(
    ("star", "message"),
    [
        ({"teff": 3300.0}, r"teff in \[3500, 8000\] K, got \[3300, 3300\] K"),
        ({"logg": 5.5}, r"logg in \[0, 5\] dex, got \[5.5, 5.5\] dex"),
        ({"fe_h": -4.0}, r"fe_h in \[-2.5, 0.5\] dex"),
        ({"mg_fe": 1.5}, r"mg_fe in \[-0.4, 0.8\] dex, got \[1.5, 1.5\] dex"),
        ({"o_fe": np.nan}, r"o_fe in \[-0.4, 0.8\] dex, got \[nan, nan\] dex"),
    ],
)
def test_stars_out_of_reach_are_refused(star, message):
    with pytest.raises(ValueError, match=message):
        ApogeeSpectra(seed=0, sampler=Stars(**star)).block(0)


def test_labels_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"columns teff, logg, fe_h, mg_fe, .*, got shape \(1, 3\)"):
        ApogeeSynthesizer()(np.array([5777.0, 4.44, 0.0]))


def test_a_sampler_must_draw_what_the_synthesizer_needs():
    three = Stars(label_names=tuple(BOUNDS["cool"]))
    with pytest.raises(
        ValueError, match=r"the sampler draws no mg_fe, o_fe, c_fe, n_fe, alpha_fe\. Use another sampler"
    ):
        ApogeeSpectra(seed=0, sampler=three)
    assert ApogeeSpectra(seed=0, sampler=three, response=False).block(0)["flux"].shape == (256, 7514)


def test_another_synthesizer_can_take_its_place():
    class Flat:
        label_names = ("teff",)
        bounds = {"teff": (1000.0, 9000.0)}
        wavelength = apogee_wavelength()

        def __call__(self, labels):
            return np.tile((labels / 10_000).astype(np.float32), (1, 7514))

    block = ApogeeSpectra(seed=0, sampler=Stars(teff=5000.0), synthesizer=Flat()).block(0)
    assert np.median(block["flux"]) == pytest.approx(0.5, abs=0.01)
    assert np.isnan(block["labels"][:, 1:]).all()


class StarByStar:
    """Like Synspec: slow, one star at a time, and star 2 of every call fails."""

    star_by_star = True

    def __init__(self):
        self._fast = ApogeeSynthesizer()
        self.label_names, self.bounds, self.wavelength = (
            self._fast.label_names,
            self._fast.bounds,
            self._fast.wavelength,
        )
        self.asked: list[int] = []

    def __call__(self, labels):
        self.asked.append(len(labels))
        flux = self._fast(labels)
        flux[2:3] = np.nan
        return flux


def test_a_slow_synthesizer_computes_only_what_is_wanted_and_its_failures_are_bad_rows():
    slow = StarByStar()
    block = ApogeeSpectra(seed=3, synthesizer=slow).block(0, stop=5)
    assert slow.asked == [5]
    failed = block["bad_pixel"].all(axis=1)
    assert np.flatnonzero(failed).tolist() == [2, *range(5, BLOCK)]
    assert (block["ivar"][failed] == 0).all()
    assert np.isfinite(block["flux"]).all()
    whole = ApogeeSpectra(seed=3).block(0)
    assert np.array_equal(block["labels"], whole["labels"])
    assert np.allclose(block["flux"][[0, 1, 3, 4]], whole["flux"][[0, 1, 3, 4]], atol=1e-4)
