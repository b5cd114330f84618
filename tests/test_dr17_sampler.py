"""The label sampler has the moments of DR17 that are published, and can be narrowed and widened."""

import numpy as np
import pytest

from spectrafm_hf.synthesis.cannon import BOUNDS
from spectrafm_hf.synthesis.dr17_sampler import LABEL_NAMES, Dr17LabelSampler


def draw(n=6000, seed=0, **options):
    return dict(zip(LABEL_NAMES, Dr17LabelSampler(**options).draw(np.random.default_rng(seed), n).T, strict=True))


def test_the_distribution_is_that_of_dr17():
    """Quantiles of the published training labels: Teff 4250, 4700, 4990 K; 2.5 % of the stars below [Fe/H] = -1."""
    stars = draw()
    assert np.percentile(stars["teff"], [25, 50, 75]) == pytest.approx([4310, 4715, 4995], abs=60)
    assert np.percentile(stars["fe_h"], [25, 50, 75]) == pytest.approx([-0.37, -0.16, 0.01], abs=0.03)
    assert np.mean(stars["fe_h"] < -1) == pytest.approx(0.025, abs=0.008)
    assert np.mean(stars["logg"] < 3.5) == pytest.approx(0.71, abs=0.06)


def test_alpha_elements_fall_with_iron_and_go_together():
    stars = draw()
    correlation = np.corrcoef([stars["fe_h"], stars["mg_fe"], stars["o_fe"]])
    assert correlation[0, 1] < -0.5
    assert correlation[0, 2] < -0.5
    assert correlation[1, 2] > 0.75


def test_dwarfs_are_hotter_the_brighter_giants_the_cooler():
    giants, dwarfs = draw(stars="giants"), draw(stars="dwarfs")
    assert giants["logg"].max() < 3.5 <= dwarfs["logg"].min()
    assert np.corrcoef(giants["teff"], giants["logg"])[0, 1] > 0.7
    assert np.corrcoef(dwarfs["teff"], dwarfs["logg"])[0, 1] < -0.3


def test_the_dredge_up_trades_carbon_for_nitrogen():
    giants, dwarfs = draw(stars="giants"), draw(stars="dwarfs")
    assert giants["c_fe"].mean() < dwarfs["c_fe"].mean() - 0.03
    assert giants["n_fe"].mean() > dwarfs["n_fe"].mean() + 0.1


def test_labels_stay_inside_the_cannon_model():
    stars = draw(20_000, metal_poor_share=0.5, extra_scatter=0.2)
    for name, (low, high) in BOUNDS["cool"].items():
        assert stars[name].min() >= low
        assert stars[name].max() <= high
    assert stars["mg_fe"].min() >= -0.4
    assert stars["mg_fe"].max() <= 0.8


def test_metal_poor_stars_can_be_asked_for():
    stars = draw(metal_poor_share=0.4)
    poor = stars["fe_h"] < -1
    assert poor.mean() == pytest.approx(0.4 + 0.6 * 0.025, abs=0.03)
    assert stars["mg_fe"][poor].mean() > 0.15  # the halo and the thick disc
    assert stars["fe_h"].min() < -2.2


def test_ranges_restrict():
    stars = draw(500, teff=(4000.0, 4500.0), logg=(1.0, 2.0), fe_h=(-0.5, 0.0))
    assert 4000 <= stars["teff"].min() <= stars["teff"].max() <= 4500
    assert 1 <= stars["logg"].min() <= stars["logg"].max() <= 2
    assert -0.5 <= stars["fe_h"].min() <= stars["fe_h"].max() <= 0


def test_extra_scatter_loosens_magnesium_from_oxygen():
    tight, loose = draw(), draw(extra_scatter=0.2)
    differences = [np.std(stars["mg_fe"] - stars["o_fe"]) for stars in (tight, loose)]
    assert differences[1] > 2 * differences[0]


def test_a_draw_is_a_function_of_its_generator():
    assert all(np.array_equal(a, b) for a, b in zip(draw(50).values(), draw(50).values(), strict=True))
    assert not np.array_equal(draw(50)["teff"], draw(50, seed=1)["teff"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teff": (3000.0, 5000.0)}, r"teff must be a range within \[3500, 8000\] K"),
        ({"fe_h": (0.0, -1.0)}, r"fe_h must be a range within \[-2.5, 0.5\] dex"),
        ({"stars": "subgiants"}, "stars must be all, dwarfs or giants"),
        ({"metal_poor_share": 1.5}, r"metal_poor_share must lie in \[0, 1\]"),
        ({"extra_scatter": 3.0}, r"extra_scatter in \[0, 0.5\] dex"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Dr17LabelSampler(**options)


def test_a_corner_without_stars_says_so():
    with pytest.raises(ValueError, match=r"fewer than 1 in 400 .* Widen"):
        draw(10, teff=(7900.0, 8000.0), stars="giants")
