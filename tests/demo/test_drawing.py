"""What the page draws and says, without a browser."""

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from survey_files import write_aspcapstar

import spectrafm_hf
from spectrafm_hf.examples import EXAMPLES, example
from spectrafm_hf.line_list import read_line_list
from spectrafm_hf.sources import read_source

from .conftest import APP, ROOT

GIANT = "h-band-red-giant"


@pytest.fixture(scope="module")
def shown(app):
    (reading,) = read_source(example(GIANT))
    return app.look(app.the_labeller(), reading.spectrum)


def parts(figure):
    """Spectrum, marks of lines, attention."""
    assert len(figure.data) == 3
    return figure.data


def test_attention_is_even_in_the_mean_and_of_every_label(shown, app):
    assert list(shown.attention) == app.the_labeller().labels
    for curve in shown.attention.values():
        assert np.mean(curve) == pytest.approx(1, rel=1e-5)
        assert curve.min() >= 0
    assert not np.allclose(shown.attention["teff"], shown.attention["mg_fe"])


def test_the_spectrum_is_drawn_without_its_bad_pixels_and_gaps(shown, app):
    spectrum, _, attention = parts(app.draw(shown, "teff"))
    (reading,) = read_source(example(GIANT))
    good = ~reading.spectrum.bad_pixel
    drawn = np.isfinite(np.asarray(spectrum.y, dtype=float))
    np.testing.assert_array_equal(np.asarray(spectrum.x)[drawn], reading.spectrum.wavelength[good])
    np.testing.assert_array_equal(np.asarray(spectrum.y)[drawn], reading.spectrum.flux[good])
    for curve in (spectrum, attention):  # nothing is drawn across the gaps between detectors
        x, y = np.asarray(curve.x), np.asarray(curve.y, dtype=float)
        assert np.diff(x[np.isfinite(y)]).max() > 50
        across = np.flatnonzero(np.diff(x) > 10)
        assert all(np.isnan(y[place]) or np.isnan(y[place + 1]) for place in across)


def test_the_deepest_line_and_all_but_a_spike_are_in_the_picture(shown, app):
    flux = shown.flux.copy()
    flux[1000], flux[3000] = 300.0, -50.0  # cosmic rays that nobody flagged
    for one in (shown, replace(shown, flux=flux)):
        low, high = app.draw(one, "teff").layout.yaxis.range
        assert low < np.nanmin(shown.flux)
        assert low > np.nanmin(shown.flux) - 0.8
        assert np.nanmax(shown.flux) < high < 2


@pytest.mark.parametrize("label", ["teff", "mg_fe"])
def test_marks_are_listed_lines_inside_the_shaded_patches(shown, app, label):
    figure = app.draw(shown, label)
    _, marks, _ = parts(figure)
    shaded = [(one.x0, one.x1) for one in figure.layout.shapes if one.type == "rect"]
    listed = {(line.species, line.wavelength) for line in read_line_list()}
    assert len({low for low, _ in shaded}) == app.N_PLACES
    assert len(marks.x) >= app.N_PLACES
    assert {(told[0], where) for told, where in zip(marks.customdata, marks.x, strict=True)} <= listed
    assert all(any(low <= where <= high for low, high in shaded) for where in marks.x)
    named = [where for where, name in zip(marks.x, marks.text, strict=True) if name]
    assert named
    assert all(np.diff(named) > 0.05 * (shown.wavelength[-1] - shown.wavelength[0]))  # no two on top of each other


def test_places_are_those_with_most_of_the_attention(shown, app):
    places = app.places(shown, "fe_h")
    shares = [place.attention for place in places]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) < 1
    for place in places:
        inside = (shown.seen >= place.low) & (shown.seen <= place.high)
        curve = shown.attention["fe_h"]
        assert place.attention == pytest.approx(curve[inside].sum() / curve.sum(), rel=1e-4)
        assert place.over_even == pytest.approx(curve[inside].mean(), rel=1e-4)


def test_long_spectra_are_thinned_for_the_eye_alone(app):
    wavelength = 5000 + 0.01 * np.arange(100_003)
    x, y = app.thinned(wavelength, 2 + np.sin(wavelength))
    assert x.size <= app.MOST_PIXELS
    np.testing.assert_allclose(y, 2 + np.sin(x), atol=1e-3)


def test_the_table_has_the_numbers_of_predict(app):
    sentences, results, html, csv, ecsv, *_ = app.answer(None, GIANT, "", None, None, "teff")
    table = spectrafm_hf.predict(example(GIANT))
    for row in table:
        digits = app.digits_of(row["sigma"])
        assert f"{row['value']:,.{digits}f} \u00b1 {row['sigma']:,.{digits}f} {row['unit']}" in html
    for path in (csv, ecsv):
        written = type(table).read(path, format=f"ascii.{Path(path).suffix[1:]}")
        np.testing.assert_array_equal(written["value"], table["value"])
    assert "4,650" in html
    assert results["visible"]
    assert "synthetic" in sentences


def test_what_was_not_learned_is_called_a_guess(app):
    sentences, _, html, *_ = app.answer(None, "optical-solar-like", "", None, None, "teff")
    assert html.count("a guess") == 2  # [Mg/Fe] and [O/Fe]
    assert "Be careful" in sentences
    assert "[Mg/Fe], [O/Fe]: learned from" in sentences


@pytest.mark.parametrize(("sigma", "digits"), [(47.0, 0), (8.0, 1), (0.13, 2), (0.026, 3), (0.0004, 3), (np.nan, 3)])
def test_a_sigma_is_told_to_two_figures(app, sigma, digits):
    assert app.digits_of(sigma) == digits


def test_no_answer_is_said_not_drawn_as_a_number(app):
    nothing = SimpleNamespace(value=np.nan, sigma=np.nan, low68=np.nan, high68=np.nan, unit="K", calibrated=False)
    html = app.table_html(SimpleNamespace(labels={"teff": nothing}))
    assert "no answer" in html
    assert "nan" not in html


def test_names_from_outside_cannot_write_into_the_page(app, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.fits"
    path.write_bytes(b"SIMPLE  = nothing")
    said, results, *rest = app.answer(str(path), None, "", None, None, "teff")
    assert "<img" not in said
    assert "&lt;img" in said
    assert str(tmp_path) not in said
    assert not results["visible"]
    assert rest == ["", None, None, None, None, ""]


def test_what_is_too_large_is_not_even_read(app, tmp_path):
    path = tmp_path / "survey.fits"
    with path.open("wb") as file:
        file.truncate(51_000_000)
    said, *_ = app.answer(str(path), None, "", None, None, "teff")
    assert "51 MB" in said
    assert "up to 50 MB" in said


def test_what_nobody_foresaw_is_a_sentence_as_well(app, tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(app, "look", fails)
    said, *_ = app.answer(str(write_aspcapstar(tmp_path / "star.fits")), None, "", None, None, "teff")
    assert "not foreseen" in said
    assert "secret" not in said
    assert "secret" in caplog.text


def test_a_velocity_for_a_star_at_rest_is_refused_where_it_can_be_mended(app):
    said, *_ = app.answer(None, GIANT, "", 100.0, None, "teff")
    assert "could not be read" in said
    assert app.TOLD in said


def test_the_space_asks_for_what_the_package_asks_for():
    """Its repository holds the package itself, so its requirements are those of the package and of the page."""
    wanted = set((APP.parent / "requirements.txt").read_text().split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]
    ours = {*project["dependencies"], *extra["libraries"], *extra["specutils"], *extra["demo"]}
    ours = {one for one in ours if not one.startswith(("spectrafm_hf", "playwright", "pip"))}
    assert wanted == ours


def test_every_example_can_be_chosen(app):
    (choice,) = [one for one in app.page().blocks.values() if getattr(one, "elem_id", None) == "example"]
    assert [name for _, name in choice.choices] == list(EXAMPLES)
