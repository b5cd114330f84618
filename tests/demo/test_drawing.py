"""What the page draws and says, without a browser."""

import re
import shutil
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from survey_files import write_aspcapstar, write_lamost

import spectrafm_hf
from spectrafm_hf.examples import EXAMPLES, example
from spectrafm_hf.line_list import read_line_list
from spectrafm_hf.sources import read_source

from .conftest import APP, ROOT

GIANT = "h-band-red-giant"
NOTHING = ("", "", "", "")
"""Told: medium, unit, velocity, resolving power."""


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
    sentences, results, html, csv, ecsv, *_ = app.answer(None, GIANT, *NOTHING, "teff")
    table = spectrafm_hf.predict(example(GIANT))
    for row in table:
        digits = app.digits_of(row["sigma"])
        assert f"{row['value']:,.{digits}f} \u00b1 {row['sigma']:,.{digits}f} {row['unit']}" in html
    for path in (csv, ecsv):
        written = type(table).read(path, format=f"ascii.{Path(path).suffix[1:]}")
        np.testing.assert_array_equal(written["value"], table["value"])
    assert "4,650 K" in html
    assert len(re.findall(r"<td class='interval'>[-\d,.]+ to [-\d,.]+ (?:K|dex)</td>", html)) == len(table)
    assert f"spectrafm-small of spectrafm_hf {metadata.version('spectrafm_hf')}" in html
    assert table["revision"][0] in html
    assert results["visible"]
    assert "synthetic" in sentences


def test_what_was_not_learned_is_called_a_guess(app):
    sentences, _, html, *_ = app.answer(None, "optical-solar-like", *NOTHING, "teff")
    assert html.count("a guess") == 2  # [Mg/Fe] and [O/Fe]
    assert "Be careful" in sentences
    assert "[Mg/Fe], [O/Fe]: learned from" in sentences
    assert app.rests_on(True, np.bool_(False)) == app.rests_on(False, False)


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
    said, results, *rest = app.answer(str(path), None, *NOTHING, "teff")
    assert "<img" not in said
    assert "&lt;img" in said
    assert str(tmp_path) not in said
    assert not results["visible"]
    assert rest == ["", None, None, None, None, ""]


def test_what_is_too_large_is_not_even_read(app, tmp_path):
    path = tmp_path / "survey.fits"
    with path.open("wb") as file:
        file.truncate(51_000_000)
    said, *_ = app.answer(str(path), None, *NOTHING, "teff")
    assert "51 MB" in said
    assert "up to 50 MB" in said


def test_what_nobody_foresaw_is_a_sentence_as_well(app, tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(app, "look", fails)
    said, *_ = app.answer(str(write_aspcapstar(tmp_path / "star.fits")), None, *NOTHING, "teff")
    assert "not foreseen" in said
    assert "secret" not in said
    assert "secret" in caplog.text


def uploaded(app, path, medium="", unit="", velocity="", power=""):
    """Sentences and table of a file of the user's."""
    said, _, table, *_ = app.answer(str(path), None, medium, unit, velocity, power, "teff")
    return said, table


@pytest.mark.parametrize("name", ["optical-solar-like", "h-band-dwarf"])
def test_of_real_stars_the_table_says_what_synthetic_ones_cannot(app, tmp_path, name):
    """The page cannot know that this copy is synthetic, too."""
    shutil.copy(example(name), tmp_path / "mine.fits")
    _, table = uploaded(app, tmp_path / "mine.fits")
    assert "never saw a real star" in table or "Real optical stars differ" in table
    record = (Path(spectrafm_hf.shipped("spectrafm-small")) / "stage.json").read_text()
    offset = r"(?:Teff|log g|\[Fe/H\]) by [-+][\d.]+ (?:K|dex) \(scatter [\d.]+; \d+% inside the 68 % interval\)"
    figures = re.findall(offset, record)
    assert len(figures) == 3
    optical = name == "optical-solar-like"
    assert all((one in table) == optical for one in figures)
    assert table.count("too narrow for real ones") == 3 * optical  # not of [Mg/Fe] and [O/Fe], which are guesses
    example_table = app.answer(None, name, *NOTHING, "teff")[2]
    assert "eal optical stars" not in example_table
    assert "real ones" not in example_table


def text_of(path, factor=1.0):
    """The solar-like example as two columns of text, at rest; wavelengths of vacuum Angstrom times a factor."""
    (reading,) = read_source(example("optical-solar-like"))
    np.savetxt(path, np.column_stack([factor * reading.spectrum.wavelength, reading.spectrum.flux]))
    return path


def test_an_empty_velocity_is_none_and_0_is_told(app, tmp_path):
    path = text_of(tmp_path / "star.txt")
    said, table = uploaded(app, path, medium="vacuum")
    assert "could not be read" in said
    assert not table
    said, table = uploaded(app, path, medium="vacuum", velocity="0", power="1800")
    assert "Told by you" in said
    assert "adial velocity 0 km/s" in said
    assert "esolving power 1,800" in said
    assert "avelengths are in vacuum" in said
    assert "Told by you" not in uploaded(app, example(GIANT))[0]


@pytest.mark.parametrize(
    ("typed", "number"), [("", None), ("  ", None), (None, None), ("0", 0.0), ("\u221212.5", -12.5)]
)
def test_a_field_holds_a_number_or_nothing(app, typed, number):
    assert app.number_in("radial velocity", "in km/s", typed) == number


@pytest.mark.parametrize("typed", ["fast", "1,800", "12 km/s", "nan", "inf"])
def test_what_is_no_number_is_a_sentence(app, typed):
    said, _ = uploaded(app, example(GIANT), velocity=typed)
    assert f"\u201cradial velocity\u201d must be one number, in km/s and positive = receding, got \u201c{typed}" in said
    said, _ = uploaded(app, example(GIANT), power=typed)
    assert "\u201cresolving power\u201d must be one number, wavelength / FWHM" in said


def refusals(app, folder):
    """Name of a field -> what is said of a file that needs it."""
    text, in_nm = text_of(folder / "star.txt"), text_of(folder / "nm.txt", 0.1)
    axis = {"CRVAL1": 4000.0, "CDELT1": 1.0, "CRPIX1": 1.0}
    fits.PrimaryHDU(np.ones(3000, "f4"), fits.Header(axis)).writeto(folder / "axis.fits")
    yield app.MEDIUM, uploaded(app, text)[0]
    yield app.VELOCITY, uploaded(app, text)[0]
    yield app.VELOCITY, uploaded(app, text, medium="air")[0]
    yield app.MEDIUM, uploaded(app, folder / "axis.fits", velocity="0")[0]
    yield app.VELOCITY, uploaded(app, folder / "axis.fits", medium="air")[0]
    yield app.VELOCITY, uploaded(app, write_lamost(folder / "no-z.fits", layout="dr10", z=-9999.0))[0]
    yield app.UNIT, uploaded(app, in_nm, medium="vacuum", velocity="0")[0]
    yield app.VELOCITY, uploaded(app, text, medium="air", velocity="5000")[0]
    yield app.POWER, uploaded(app, text, medium="air", velocity="0", power="-3")[0]


def test_refusals_name_fields_of_the_page(app, tmp_path):
    for field, said in refusals(app, tmp_path):
        said = re.sub(r"<[^>]+>", " ", said)
        assert f"\u201c{field}\u201d" in said
        assert app.TOLD in said
        assert not re.search(r"[a-z_]=(?! )|--|None", said), said  # neither Python nor the command line


def test_what_the_page_has_no_field_for_the_package_has(app):
    error = ValueError("/x/rows.fits, HDU 1: holds 3 spectra, one per row; say which with row=.")
    said = app.friendly(error, Path("/x/rows.fits"))
    assert "no field for row" in said
    assert "reader={&quot;row&quot;: ...}" in said


def test_what_contradicts_the_file_is_refused_where_it_can_be_mended(app):
    for said in (
        app.answer(None, GIANT, "", "", "100", "", "teff")[0],
        app.answer(None, "optical-solar-like", "", "", "100", "", "teff")[0],
    ):
        assert "could not be read" in said
        assert "100 km/s was told" in said
        assert "reader=" not in said
        assert app.TOLD in said


def test_few_good_pixels_do_not_set_the_scale_of_attention(app, shown):
    """LAMOST's first patch begins outside of its spectrum: 13 of 128 pixels are left, and share what it gets."""
    (reading,) = read_source(example("optical-solar-like"))
    optical = app.look(app.the_labeller(), reading.spectrum)
    few = optical.seen < 3712
    np.testing.assert_array_equal(optical.few, few)
    for label in ("teff", "o_fe"):
        curve = optical.attention[label]
        top = app.draw(optical, label).layout.yaxis2.range[1]
        assert curve[~few].max() < top < 1.2 * curve[~few].max()
        assert curve[few].max() > top
        words = app.places_html(optical, label)
        assert f"3,700 to 3,712 \u00c5 attention rises out of the picture, to {curve[few].max():.1f}" in words
        assert "13 good pixels" in words
        assert "without a triangle holds no line of the list" in words
    assert not shown.few.any()
    assert app.draw(shown, "teff").layout.yaxis2.range[1] > shown.attention["teff"].max()
    assert "out of the picture" not in app.places_html(shown, "teff")


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
