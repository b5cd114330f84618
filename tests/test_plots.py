"""Pictures are written, hold every method, and leave matplotlib as it was."""

import matplotlib
import numpy as np
import pytest

from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import METHOD_NAMES, summarise_subsets
from spectrafm_hf.plots import method_name, plot_learning_curve, plot_metal_poor_rmse, plot_predicted_against_true

FE_H = get_label("fe_h")
PNG = b"\x89PNG"


@pytest.fixture
def truth():
    return np.random.default_rng(0).uniform(-2.5, 0.5, 80)


@pytest.fixture
def predictions(truth):
    rng = np.random.default_rng(1)
    return {name: (truth + 0.2 * rng.normal(size=80), np.full(80, 0.2)) for name in METHOD_NAMES}


@pytest.fixture
def results(truth, predictions):
    methods = {name: summarise_subsets(FE_H, mean, truth, truth, sigma) for name, (mean, sigma) in predictions.items()}
    return {
        "seed": 0,
        "n_train": 100,
        "n_test": 80,
        "n_test_metal_poor": int((truth < -1).sum()),
        "label": "fe_h",
        "unit": "dex",
        "methods": methods,
    }


def is_png(path):
    return path.read_bytes()[:4] == PNG and path.stat().st_size > 5_000


def test_every_method_has_a_panel(predictions, truth, tmp_path):
    before = dict(matplotlib.rcParams)
    path = tmp_path / "figures" / "panels.png"
    figure = plot_predicted_against_true(predictions, truth, FE_H, path)
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes if axes.get_title()]
    assert titles == [METHOD_NAMES[name] for name in predictions]
    assert is_png(path)
    assert dict(matplotlib.rcParams) == before


def test_panels_say_rmse_and_units_and_share_their_axes(predictions, truth, tmp_path):
    figure = plot_predicted_against_true(predictions, truth, FE_H, tmp_path / "panels.png")
    assert "[dex]" in figure.get_supxlabel()
    assert "[dex]" in figure.get_supylabel()
    poor = summarise_subsets(FE_H, *predictions["ridge"][:1], truth, truth)["metal_poor"]["rmse"]
    panel = next(axes for axes in figure.axes if axes.get_title() == METHOD_NAMES["ridge"])
    assert any(f"{poor:.2f} dex" in text.get_text() for text in panel.texts)
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1


def test_other_labels_need_fe_h_for_their_colours(truth, tmp_path):
    teff = np.linspace(4000, 6500, 80)
    one = {"ridge": (teff + 50, None)}
    with pytest.raises(ValueError, match="pass fe_h"):
        plot_predicted_against_true(one, teff, get_label("teff"), tmp_path / "teff.png")
    figure = plot_predicted_against_true(one, teff, get_label("teff"), tmp_path / "teff.png", fe_h=truth)
    assert "Teff [K]" in figure.get_supxlabel()
    assert any("RMSE 50 K" in text.get_text() for text in figure.axes[0].texts)


def test_stars_without_catalogue_value_are_not_drawn(predictions, truth, tmp_path):
    truth[:5] = np.nan
    figure = plot_predicted_against_true(predictions, truth, FE_H, tmp_path / "panels.png")
    points = [group for group in figure.axes[0].collections if str(group.get_label()).startswith("metal-")]
    assert sum(len(group.get_offsets()) for group in points) == 75


def test_bars_of_one_and_of_several_seeds(results, tmp_path):
    figure = plot_metal_poor_rmse(results, tmp_path / "one.png")
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert sorted(names) == sorted(METHOD_NAMES.values())
    lengths = [bar.get_width() for bar in figure.axes[0].patches]
    assert lengths == sorted(lengths, reverse=True)  # the best on top
    several = plot_metal_poor_rmse(results | {"seeds": [results, results]}, tmp_path / "several.png")
    assert "2 seeds" in several.axes[0].get_xlabel()
    assert [bar.get_width() for bar in several.axes[0].patches] == pytest.approx(lengths)
    assert is_png(tmp_path / "one.png")
    assert is_png(tmp_path / "several.png")


def test_bars_need_metal_poor_stars(results, tmp_path):
    for figures in results["methods"].values():
        figures["metal_poor"]["rmse"] = None
    with pytest.raises(ValueError, match="metal-poor"):
        plot_metal_poor_rmse(results, tmp_path / "none.png")


def test_learning_curve_counts_spectra(tmp_path):
    history = [{"step": step, "loss": 1 / step} for step in (10, 20, 30)]
    history += [{"step": 30, "eval_loss": 0.2}, {"step": 30, "train_runtime": 3.0}]
    figure = plot_learning_curve(history, tmp_path / "curve.png", spectra_per_step=64, title="1-synthetic")
    training, validation = figure.axes[0].lines
    assert training.get_xdata().tolist() == [640, 1280, 1920]
    assert validation.get_ydata().tolist() == [0.2]
    assert is_png(tmp_path / "curve.png")
    with pytest.raises(ValueError, match="log_history"):
        plot_learning_curve([{"step": 1, "train_runtime": 3.0}], tmp_path / "curve.png", 64)


def test_nothing_to_draw_is_refused(truth, tmp_path):
    with pytest.raises(ValueError, match="at least one method"):
        plot_predicted_against_true({}, truth, FE_H, tmp_path / "none.png")


def test_a_method_of_your_own_keeps_its_name():
    assert method_name("payne") == "payne"
