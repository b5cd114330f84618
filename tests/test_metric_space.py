"""The metric's Space: loaded as anybody would, the package away, with the same figures to the last digit."""

import math
import os
import re
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import SpaceCard

from spectrafm_hf.labels import LABELS, get_label
from spectrafm_hf.metrics import summarise

SPACE = Path(__file__).parent.parent / "hub_cards" / "metric_space" / "spectra_regression"
NAMES = [label.name for label in LABELS]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """`evaluate` copies what it loads into its cache of modules, and imports it from there: here into a new one."""
    folder = tmp_path_factory.mktemp("modules")
    before = evaluate.config.HF_MODULES_CACHE
    evaluate.config.HF_MODULES_CACHE = str(folder)
    kept = list(sys.path)
    yield
    evaluate.config.HF_MODULES_CACHE = before
    sys.path[:] = kept


def random_stars(seed, n=400):
    """Predictions, references, sigma and errors, each (n, n_labels): some missing, the last label wholly."""
    rng = np.random.default_rng(seed)
    spread = np.array([label.default_error for label in LABELS])
    references = np.array([np.mean(label.valid) for label in LABELS]) + 5 * spread * rng.normal(size=(n, len(LABELS)))
    sigma, errors = spread * rng.uniform(0.2, 2, (2, n, len(LABELS)))
    predictions = references + np.hypot(sigma, errors) * rng.standard_t(3, size=references.shape)
    references[rng.random(references.shape) < 0.2] = np.nan
    references[:, -1] = np.nan
    errors[rng.random(errors.shape) < 0.3] = np.nan
    errors[rng.random(errors.shape) < 0.1] = 0.0
    unmeasured = np.isnan(references)
    predictions[unmeasured & (rng.random(references.shape) < 0.5)] = np.nan  # nobody looks at these
    sigma[unmeasured & (rng.random(references.shape) < 0.5)] = np.nan
    return {"predictions": predictions, "references": references, "sigma": sigma, "references_err": errors}


def of_package(name, stars, column):
    one = {key: values[:, column] for key, values in stars.items()}
    figures = summarise(
        get_label(name), one["predictions"], one["references"], one.get("sigma"), one.get("references_err")
    )
    return {**figures, "unit": get_label(name).unit}


@pytest.mark.parametrize("told", [("sigma", "references_err"), ("sigma",), ()])
def test_figures_are_those_of_the_package(told):
    stars = random_stars(seed=len(told))
    stars = {key: values for key, values in stars.items() if key in ("predictions", "references", *told)}
    expected = {name: of_package(name, stars, column) for column, name in enumerate(NAMES)}
    assert expected["fe_h"]["n"] > 200
    assert (expected["fe_h"]["coverage68"] is not None) == ("sigma" in told)
    assert expected[NAMES[-1]]["n"] == 0
    assert evaluate.load(str(SPACE)).compute(**stars, labels=NAMES) == expected
    for column, name in enumerate(NAMES):
        one = {key: values[:, column] for key, values in stars.items()}
        assert evaluate.load(str(SPACE), name).compute(**one) == expected[name]


def test_order_of_the_columns_is_that_of_the_names():
    stars = random_stars(seed=9)
    backwards = {key: values[:, ::-1] for key, values in stars.items()}
    metric = evaluate.load(str(SPACE))
    assert metric.compute(**backwards, labels=NAMES[::-1]) == metric.compute(**stars, labels=NAMES)


def test_it_can_be_combined_and_fed_in_batches():
    stars = random_stars(seed=3)
    one = {key: stars[key][:, 2] for key in ("predictions", "references")}
    metric = evaluate.load(str(SPACE), "fe_h")
    for start in range(0, 400, 150):
        metric.add_batch(**{key: values[start : start + 150] for key, values in one.items()})
    assert (
        metric.compute()
        == evaluate.combine([metric]).compute(**one)
        == of_package("fe_h", {k: v[:, None] for k, v in one.items()}, 0)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"rows need labels=\[...\]"),
        ({"labels": ["teff", "logg"]}, "for rows of 5"),
        ({"labels": ["teff", "logg", "fe_h", "mg_fe", "vmic"]}, "vmic"),
        ({"sigma": np.ones((400, 4))}, r"sigma must have one value per star and label \(400, 5\), got \(400, 4\)"),
        ({"sigma": np.full((400, 5), -1.0)}, "teff: sigma must be finite and >= 0"),
        ({"predictions": np.full((400, 5), np.nan)}, "teff: predictions must be finite"),
    ],
)
def test_what_makes_no_figure_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate.load(str(SPACE)).compute(**{**random_stars(seed=1), "labels": NAMES} | change)


def test_a_label_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="loaded with one of teff, logg"):
        evaluate.load(str(SPACE), "vmic")


def figures_without_the_package(code, folder, found):
    """In a process of its own, which finds no `spectrafm_hf`."""
    for name in list(sys.modules):
        if name.split(".")[0] == "spectrafm_hf":
            del sys.modules[name]
    sys.modules["spectrafm_hf"] = None
    evaluate.config.HF_MODULES_CACHE = str(folder)
    os.chdir(folder)
    told = {}
    exec(code, told)
    found.put(told["figures"])


def test_it_needs_neither_the_package_nor_a_network(tmp_path, fresh_processes):
    """What the README shows is what runs."""
    text = (SPACE / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)).replace("REPO_OR_FOLDER", str(SPACE))
    found = fresh_processes.SimpleQueue()
    process = fresh_processes.Process(target=figures_without_the_package, args=(code, tmp_path, found))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    figures = found.get()
    assert figures["teff"]["rmse"] == pytest.approx(math.sqrt((8**2 + 14**2) / 2))
    assert (figures["logg"]["n"], figures["logg"]["unit"], figures["teff"]["unit"]) == (1, "dex", "K")


def test_the_folder_is_a_space():
    card = SpaceCard.load(SPACE / "README.md")
    assert SpaceCard(str(card)).data.to_dict() == card.data.to_dict()
    data = card.data.to_dict()
    assert (data["sdk"], data["app_file"], data["license"]) == ("gradio", "app.py", "mit")
    assert re.fullmatch(r"\d+\.\d+\.\d+", data["sdk_version"])
    assert {"evaluate", "metric"} <= set(data["tags"])
    assert len(data["short_description"]) <= 60  # the Hub's limit
    assert (SPACE / data["app_file"]).is_file()
    for label in LABELS:
        assert f"`{label.name}`" in card.text
        assert f"| {label.unit} | {label.default_error:g} |" in card.text
    needed = {line.split(">=")[0] for line in (SPACE / "requirements.txt").read_text().split()}
    assert {"evaluate", "numpy", "datasets"} == needed  # gradio comes with the Space


def test_the_page_computes(monkeypatch):
    monkeypatch.syspath_prepend(str(SPACE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the folder is what goes to the Hub
    import app

    expected = summarise(get_label("fe_h"), *np.array(app.EXAMPLE).T)
    assert app.figures([*app.EXAMPLE, ["", 1.0, "", ""]], "fe_h") == {**expected, "unit": "dex"}
    assert app.figures([[5700, 5720, "", None]], "teff")["coverage68"] is None
    with pytest.raises(ValueError, match="at least one star"):
        app.figures([["", "", "", ""]], "teff")
    with pytest.raises(ValueError, match="five"):
        app.figures([["five", 5, 1, 1]], "teff")
    assert sorted(app.LABELS) == sorted(NAMES)
