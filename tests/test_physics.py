"""What any synthesizer of APOGEE spectra must show; here the default one, Cannon grid times abundance response.

Wavelengths in vacuum Angstrom; those of OH and CN lines are published in air.
"""

import numpy as np
import pytest

from spectrafm_hf.spectra import air_to_vacuum
from spectrafm_hf.synthesis.apogee import ApogeeSynthesizer
from spectrafm_hf.synthesis.dr17_sampler import Dr17LabelSampler

MAGNESIUM = (15_745.02, 15_753.29, 15_770.15)
IRON = (15_211.69, 15_298.74, 15_595.76, 15_625.92, 15_636.22, 15_652.79, 15_666.29, 15_727.89, 16_013.97)
HYDROXYL = tuple(air_to_vacuum(np.array([15_278.52, 15_281.05, 15_409.17, 15_568.78])))
CYANOGEN = tuple(air_to_vacuum(np.array([15_254.2, 15_260.5, 15_262.3])))
CO_HEADS = (15_982.0, 16_189.0, 16_400.0)
"""12CO second overtone; the band lies redward."""
RYDBERG = 109_677.58
"""Of hydrogen, cm^-1."""
BRACKETT = tuple(1e8 / RYDBERG / (1 / 4**2 - 1 / upper**2) for upper in (11, 12, 13, 14, 15))
"""16,811 ... 15,705 Angstrom."""
SUN, CLUMP, DWARF = {"teff": 5777.0, "logg": 4.44}, {"teff": 4700.0, "logg": 2.4}, {"teff": 4000.0, "logg": 4.6}
COOL_GIANT = {"teff": 4000.0, "logg": 1.2}
STARS = pytest.mark.parametrize("star", [SUN, CLUMP, COOL_GIANT, DWARF], ids=["sun", "clump", "cool giant", "dwarf"])


@pytest.fixture(scope="module")
def synthesizer():
    return ApogeeSynthesizer()


def flux_of(synthesizer, *stars):
    """Flux (n_stars, n_pixels) of stars given by name; what is not said is 0 (solar)."""
    return synthesizer(np.array([[star.get(name, 0.0) for name in synthesizer.label_names] for star in stars]))


def at(synthesizer, flux, line, within=0.4):
    """Flux of each star in a line's core: the lowest within 0.4 Angstrom (two pixels)."""
    return flux[:, np.abs(synthesizer.wavelength - line) < within].min(axis=1)


def series(synthesizer, star, name, values):
    return flux_of(synthesizer, *(star | {name: value} for value in values))


@STARS
def test_lines_deepen_with_metallicity(synthesizer, star):
    flux = series(synthesizer, star, "fe_h", np.arange(-2.0, 0.51, 0.25))
    for line in IRON:
        core = at(synthesizer, flux, line)
        assert (np.diff(core) < 0.002).all(), line  # a line not yet there may waver by a little
        assert (np.diff(core[-7:]) < 0).all(), line
        assert core[-1] < core[0] - 0.15, line
    assert (np.diff((1 - flux).mean(axis=1)) > 0).all()


@STARS
@pytest.mark.parametrize("line", MAGNESIUM)
def test_magnesium_lines_stand_and_deepen_with_magnesium(synthesizer, star, line):
    flux = series(synthesizer, star, "mg_fe", [-0.3, 0.0, 0.3, 0.6])
    near = np.abs(synthesizer.wavelength - line) < 1.0
    assert synthesizer.wavelength[near][np.argmin(flux[1, near])] == pytest.approx(line, abs=0.25)
    core = at(synthesizer, flux, line)
    assert (np.diff(core) < -0.005).all()
    assert 0.03 < core[0] - core[-1] < 0.4


def test_magnesium_lines_are_among_the_pixels_that_magnesium_changes_most(synthesizer):
    solar, rich = series(synthesizer, CLUMP, "mg_fe", [0.0, 0.4])
    strongest = synthesizer.wavelength[np.argsort(rich / solar)[:60]]
    for line in MAGNESIUM[1:]:
        assert np.abs(strongest - line).min() < 0.5


def test_oxygen_makes_hydroxyl_and_takes_the_carbon_from_cyanogen(synthesizer):
    """At 4,000 K and log g = 1.2 oxygen binds carbon in CO; what is left for CN shrinks."""
    flux = series(synthesizer, COOL_GIANT, "o_fe", [-0.2, 0.0, 0.4])
    for line in HYDROXYL:
        poor, solar, rich = at(synthesizer, flux, line)
        assert poor > solar > rich, line
        assert solar - rich > 0.03, line
    for line in CYANOGEN:
        poor, solar, rich = at(synthesizer, flux, line)
        assert poor < solar < rich, line
        assert rich - poor > 0.02, line


def test_hydroxyl_fades_in_hot_stars(synthesizer):
    cool, hot = flux_of(synthesizer, COOL_GIANT, {"teff": 5500.0, "logg": 3.6})
    oxygen_cool, oxygen_hot = flux_of(
        synthesizer, COOL_GIANT | {"o_fe": 0.4}, {"teff": 5500.0, "logg": 3.6, "o_fe": 0.4}
    )
    for line in HYDROXYL[:2]:
        pixel = np.argmin(np.abs(synthesizer.wavelength - line))
        assert cool[pixel] - oxygen_cool[pixel] > 2 * (hot[pixel] - oxygen_hot[pixel])


def band_head(synthesizer, flux, head):
    """How much lower the flux is on the 8 Angstrom redward of a head than blueward of it; per star."""
    from_head = synthesizer.wavelength - head
    blue, red = (from_head > -11) & (from_head < -3), (from_head > 0) & (from_head < 8)
    return flux[:, blue].mean(axis=1) - flux[:, red].mean(axis=1)


@pytest.mark.parametrize("head", CO_HEADS)
def test_co_bandheads_belong_to_cool_giants(synthesizer, head):
    giants = [{"teff": 4500.0, "logg": 2.0}, {"teff": 4200.0, "logg": 1.5}, {"teff": 3800.0, "logg": 1.0}]
    depth = band_head(synthesizer, flux_of(synthesizer, *giants, {"teff": 3800.0, "logg": 4.6}, SUN), head)
    warm, middle, cool, dwarf, sun = depth
    assert 0.04 < warm < middle < cool
    assert dwarf < 0.5 * cool
    assert abs(sun) < 0.06


@pytest.mark.parametrize("head", CO_HEADS)
def test_co_bandheads_deepen_with_carbon(synthesizer, head):
    depth = band_head(synthesizer, series(synthesizer, COOL_GIANT, "c_fe", [-0.3, 0.0, 0.3]), head)
    assert (np.diff(depth) > 0.01).all()


@pytest.mark.parametrize("line", BRACKETT)
def test_brackett_lines_come_up_in_hot_stars(synthesizer, line):
    """Metal-poor ones, whose spectrum holds little else."""
    stars = [{"teff": teff, "logg": 4.2, "fe_h": -1.0} for teff in (5500.0, 6500.0, 7000.0, 7500.0)]
    from_line = np.abs(synthesizer.wavelength - line)
    flux = flux_of(synthesizer, *stars)
    depth = flux[:, (from_line > 25) & (from_line < 40)].mean(axis=1) - flux[:, from_line < 4].mean(axis=1)
    assert (np.diff(depth[1:]) > 0.003).all()
    assert depth[1] > depth[0]
    assert depth[1] > 0.01
    assert depth[-1] > 0.025


def test_brackett_lines_are_where_rydberg_puts_them():
    np.testing.assert_allclose((BRACKETT[0], BRACKETT[-1]), (16_811.1, 15_705.0), atol=0.3)


@pytest.mark.parametrize("stars", ["dwarfs", "giants"])
def test_flux_is_physical_without_clipping(synthesizer, stars):
    """Never dark, never brighter than its continuum by more than an error of it; DR17's stars and metal-poor ones."""
    sampler = Dr17LabelSampler(stars=stars, metal_poor_share=0.2, extra_scatter=0.1)
    labels = sampler.draw(np.random.default_rng(0), 2000)
    flux = synthesizer.unclipped(labels)
    assert 0 < flux.min() < 0.7
    assert (flux > 1.05).mean() < 1e-5
    continuum = np.percentile(flux, 98, axis=1)
    assert continuum.min() > 0.93
    assert continuum.max() < 1.03
