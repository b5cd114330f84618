"""The table of labels."""

import re
from pathlib import Path

import pytest

import spectrafm_hf.labels
from spectrafm_hf.labels import LABELS, MISSING_LABEL, get_label


def test_names_and_units():
    units = {label.name: label.unit for label in LABELS}
    assert list(units.items())[:5] == [
        ("teff", "K"), ("logg", "dex"), ("fe_h", "dex"), ("mg_fe", "dex"), ("o_fe", "dex"),
    ]  # fmt: skip
    assert set(units.values()) == {"K", "dex"}
    assert len({label.apogee_column for label in LABELS}) == len(LABELS)


def test_the_sun_is_a_valid_star():
    for name, value in {"teff": 5772.0, "logg": 4.44, "fe_h": 0.0, "mg_fe": 0.0, "o_fe": 0.0}.items():
        low, high = get_label(name).valid
        assert low < value < high


@pytest.mark.parametrize("placeholder", [-9999.0, -999.0, 99.99, 99_999.0, MISSING_LABEL])
def test_placeholders_of_surveys_are_valid_values_of_no_label(placeholder):
    for label in LABELS:
        low, high = label.valid
        assert not low <= placeholder <= high, label.name


def test_no_label_is_ever_certain():
    assert {label.name: label.default_error for label in LABELS[:3]} == {"teff": 100.0, "logg": 0.2, "fe_h": 0.1}
    assert all(label.default_error > 0 for label in LABELS)


def test_missing_is_what_a_stock_trainer_does_not_count():
    assert MISSING_LABEL == -100.0


def test_axis_says_the_unit():
    assert get_label("teff").axis == "Teff [K]"
    assert get_label("fe_h").axis == "[Fe/H] [dex]"


def test_unknown_label_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown label 'feh'.*teff, logg, fe_h, mg_fe, o_fe"):
        get_label("feh")


def test_table_is_frozen():
    with pytest.raises(AttributeError):
        get_label("teff").unit = "kK"


def test_table_needs_the_standard_library_only():
    imported = re.findall(r"^(?:from|import) (\w+)", Path(spectrafm_hf.labels.__file__).read_text(), flags=re.M)
    assert set(imported) == {"__future__", "dataclasses"}
