"""The page in a browser, as a visitor meets it: examples, own files, bad files, downloads, a phone."""

import re

import numpy as np
import pytest
from astropy.table import Table
from survey_files import write_aspcapstar, write_lamost

from spectrafm_hf.examples import EXAMPLES, example

from .conftest import PICTURES

NUMBER = r"(-?[\d,]+\.?\d*)"


def labels_on(page):
    """Label -> value and sigma, as the table shows them."""
    found = {}
    for row in page.query_selector_all("#labels tr[data-label]"):
        told = re.match(rf"{NUMBER} ± {NUMBER} (K|dex)", row.query_selector("td.value").inner_text())
        found[row.get_attribute("data-label")] = tuple(float(told[i].replace(",", "")) for i in (1, 2))
    return found


def choose(page, name):
    """An example star, and wait for it."""
    page.click("#example input")
    page.click(f"[role=option]:has-text('{EXAMPLES[name].what}')")
    said(page, f"{name}.fits")


def upload(page, path):
    page.set_input_files("#file input[type=file]", path)
    said(page, path.name)


def said(page, text):
    page.wait_for_selector(f"#said:has-text('{text}')")


def drawn(page):
    """Points of all curves of the picture."""
    page.wait_for_selector("#picture .scatterlayer path.js-line")
    paths = page.eval_on_selector_all("#picture path.js-line", "all => all.map(one => one.getAttribute('d'))")
    return sum(path.count(",") for path in paths)


def ticks(page):
    """Wavelengths along the axis."""
    return page.eval_on_selector_all("#picture .x2tick", "all => all.map(one => one.textContent)")


def right(page, name):
    found, made_with = labels_on(page), EXAMPLES[name].labels
    assert set(made_with) <= set(found)
    for label, value in made_with.items():
        assert abs(found[label][0] - value) < 5 * found[label][1]


def picture(page, name):
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)  # plotly draws itself anew for the width it has
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def fits_in(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_examples_are_labelled_drawn_and_explained(page):
    right(page, "h-band-red-giant")
    assert drawn(page) > 3000
    assert "no telescope saw it" in page.inner_text("#said")
    assert fits_in(page)
    picture(page, "1280x900")
    choose(page, "optical-metal-poor")
    right(page, "optical-metal-poor")
    assert "a guess" in page.inner_text("#labels")

    page.click("#label label:has-text('[Fe/H]')")
    page.wait_for_selector("#places:has-text('[Fe/H] looks most')")
    words = page.inner_text("#places")
    page.click("#label label:has-text('Teff')")
    page.wait_for_selector("#places:has-text('Teff looks most')")
    assert words.splitlines()[1:] != page.inner_text("#places").splitlines()[1:]
    picture(page, "1280x900-optical")


def test_the_picture_zooms(page):
    drawn(page)
    before = ticks(page)
    assert "15,500" in before
    box = page.query_selector("#picture .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_timeout(700)
    assert ticks(page) != before


def test_a_phone_shows_one_column(page):
    page.set_viewport_size({"width": 390, "height": 844})
    drawn(page)
    picture(page, "390x844")
    assert fits_in(page)
    left = {name: page.query_selector(name).bounding_box() for name in ("#file", "#labels", "#picture", "#places")}
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in left.values())
    assert [box["y"] for box in left.values()] == sorted(box["y"] for box in left.values())
    assert left["#picture"]["width"] > 300


def test_an_own_file_is_labelled_and_can_be_downloaded(page, tmp_path):
    star = tmp_path / "my star.fits"
    star.write_bytes(example("h-band-dwarf").read_bytes())
    upload(page, star)
    right(page, "h-band-dwarf")
    assert "no telescope saw it" not in page.inner_text("#said")
    shown = labels_on(page)
    for kind in ("csv", "ecsv"):
        with page.expect_download() as download:
            page.click(f"#{kind}")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.name == f"labels.{kind}"
        table = Table.read(path, format=f"ascii.{kind}")
        assert set(table["name"]) == {"my star.fits"}
        for row in table:
            np.testing.assert_allclose(row["value"], shown[row["label"]][0], rtol=1e-3, atol=6e-4)
    right(page, "h-band-dwarf")
    choose(page, "h-band-red-giant")  # and back to the examples
    right(page, "h-band-red-giant")


def test_a_star_unlike_all_others_is_labelled_with_a_warning(page, tmp_path):
    upload(page, write_aspcapstar(tmp_path / "five-lines.fits"))  # a continuum with five lines is no star
    assert "Be careful" in page.inner_text("#said")
    assert set(labels_on(page)) == {"teff", "logg", "fe_h", "mg_fe", "o_fe"}
    picture(page, "1280x900-warning")


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.fits", b""),
        ("picture.fits", PNG),
        ("half.fits", example("h-band-dwarf").read_bytes()[:60_000]),
        ("flipped.fits", example("h-band-dwarf").read_bytes().replace(b"\x3f\x80", b"\x3f\x00", 5)),
    ],
    ids=["no-bytes", "a-png", "truncated", "other-bits"],
)
def test_a_bad_file_gets_a_sentence(page, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    upload(page, tmp_path / name)
    words = page.inner_text("#refused")
    assert f"{name} could not be read" in words
    assert len(words) > 60
    assert "Traceback" not in page.inner_text("body")
    assert str(tmp_path) not in words
    assert "/gradio" not in words
    assert not page.is_visible("#labels")
    assert not page.is_visible("#picture")
    if name == "half.fits":
        picture(page, "1280x900-refused")


def test_a_file_that_is_taken_away_takes_its_refusal_along(page, tmp_path):
    (tmp_path / "empty.fits").write_bytes(b"")
    upload(page, tmp_path / "empty.fits")
    assert page.is_visible("#refused")
    page.click("#file button[aria-label='Clear']")
    said(page, "Choose an example star")
    assert not page.is_visible("#refused")


WATCH = """() => {
    window.changed = 0;
    const all = {subtree: true, childList: true, characterData: true, attributes: true};
    new MutationObserver(() => { window.changed = performance.now(); }).observe(document.querySelector("#said"), all);
}"""


def read_again(page):
    """And wait until it has been read: where nothing becomes another, only the clock that runs meanwhile tells."""
    page.evaluate(WATCH)
    page.click("#again")
    page.wait_for_function("window.changed > 0 && performance.now() - window.changed > 1500")


def test_what_nobody_typed_is_not_told(page, tmp_path):
    """The header's velocity, -152 km/s, must not become 0 because its field was looked at."""
    star = tmp_path / "moving.fits"
    star.write_bytes(example("optical-metal-poor").read_bytes())
    upload(page, star)
    before = labels_on(page)
    page.click("#conventions button")
    page.wait_for_selector("#velocity", state="visible")
    fields = page.query_selector_all("#velocity input, #velocity textarea, #power input, #power textarea")
    assert [field.input_value() for field in fields] == ["", ""]
    read_again(page)
    assert "Told by you" not in page.inner_text("#said")
    assert labels_on(page) == before
    right(page, "optical-metal-poor")
    picture(page, "1280x900-own-optical")


def test_what_a_file_does_not_tell_can_be_told(page, tmp_path):
    """A LAMOST file without a redshift is refused, until its velocity is given."""
    upload(page, write_lamost(tmp_path / "no-redshift.fits", layout="dr10", z=-9999.0))
    assert "redshift" in page.inner_text("#refused")
    assert "Fill in \u201cradial velocity\u201d" in page.inner_text("#refused")
    page.click("#conventions button")
    page.fill("#velocity input, #velocity textarea", "fast")
    page.click("#again")
    page.wait_for_selector("#refused:has-text('must be one number, in km/s')")
    page.fill("#velocity input, #velocity textarea", "0")
    page.click("#again")
    page.wait_for_selector("#labels table.labels")
    assert "no-redshift.fits" in page.inner_text("#said")
    assert "adial velocity 0 km/s" in page.inner_text("#said")
    choose(page, "h-band-red-giant")  # which is at rest: what was told was of another star
    right(page, "h-band-red-giant")
    assert "Told by you" not in page.inner_text("#said")
