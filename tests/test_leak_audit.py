"""No star in two splits: by name, by system, by place on the sky."""

import numpy as np
import pytest

from spectrafm_hf.builders.leak_audit import LeakError, audit_splits, close_pairs, star_groups

ARCSEC = 1 / 3600


def stars(names, ra=None, dec=None):
    nothing = np.full(len(names), np.nan)
    return {
        "object_id": np.array(names, dtype=object),
        "ra": nothing if ra is None else np.asarray(ra, dtype=float),
        "dec": nothing if dec is None else np.asarray(dec, dtype=float),
    }


def test_a_clean_set_passes_and_says_what_was_checked():
    audit = audit_splits(
        {
            "train": stars(["HD1", "HD2", "HD2"], [10, 20, 20], [5, 5, 5]),
            "test": stars(["HD3"]),
            "validation": stars([]),
        }
    )
    assert audit.spectra == {"train": 3, "test": 1, "validation": 0}
    assert audit.systems == {"train": 2, "test": 1, "validation": 0}
    assert audit.with_position == 3
    assert "3 of 4 rows have a position" in str(audit)
    assert "no row has a position" in str(audit_splits({"train": stars(["HD1"])}))


@pytest.mark.parametrize("twin", ["HD1", "hd 0001", "HD1B"])
def test_one_name_in_two_splits_is_a_leak(twin):
    with pytest.raises(LeakError, match=r"1 stars are in two splits: HD1 \(in train and test\)"):
        audit_splits({"train": stars(["HD1", "HD2"]), "test": stars(["HD3", twin])})


@pytest.mark.parametrize(("ra", "dec"), [(83.0, 10.0), (0.0, 0.0), (359.99999, -60.0), (200.0, 89.999)])
def test_half_an_arcsecond_apart_is_a_leak_two_are_not(ra, dec):
    def near(arcsec, across):
        step = arcsec * ARCSEC
        other = (ra, dec - step) if not across else ((ra + step / np.cos(np.radians(dec))) % 360, dec)
        return {"train": stars(["2MA"], [ra], [dec]), "test": stars(["2MB"], [other[0]], [other[1]])}

    for across in (False, True):
        with pytest.raises(LeakError, match=r"2MA \(train\) and 2MB \(test\), 0.50 arcsec apart"):
            audit_splits(near(0.5, across))
        assert audit_splits(near(2.0, across)).with_position == 2


def test_the_message_names_ten_and_counts_the_rest():
    names = [f"HD{number}" for number in range(1, 31)]
    with pytest.raises(LeakError, match=r"30 stars are in two splits: HD1 .* and 20 more") as caught:
        audit_splits({"train": stars(names), "test": stars(names)})
    assert str(caught.value).count("(in train and test)") == 10


def test_groups_keep_twins_together_and_leave_others_alone():
    names = np.array(["2MC", "APX", "HD1A", "HD1B", "2MD", "2MB"], dtype=object)
    ra = np.array([10.0, 10.0 + 0.8 * ARCSEC, np.nan, np.nan, 50.0, 10.0 + 1.6 * ARCSEC])
    groups = star_groups(names, ra, np.zeros(6))
    assert groups.tolist() == ["2MB", "2MB", "HD1", "HD1", "2MD", "2MB"]  # a chain; the first name leads
    order = np.array([5, 1, 4, 2, 0, 3])
    assert star_groups(names[order], ra[order], np.zeros(6)).tolist() == groups[order].tolist()


def test_close_pairs_agree_with_a_direct_search():
    rng = np.random.default_rng(0)
    ra, dec = 10 + rng.uniform(0, 60 * ARCSEC, 200), -30 + rng.uniform(0, 60 * ARCSEC, 200)
    pairs = {tuple(pair) for pair in close_pairs(ra, dec).tolist()}
    east = (ra[:, None] - ra) * np.cos(np.radians(-30))
    apart = np.hypot(east, dec[:, None] - dec) / ARCSEC
    wanted = {(i, j) for i, j in zip(*np.nonzero(apart < 1.0), strict=True) if i < j}
    assert pairs == wanted
    assert len(pairs) > 5
    assert close_pairs(np.array([np.nan]), np.array([1.0])).shape == (0, 2)
