"""Comparisons from few labels: nobody is both learned from and asked about, and what is combined keeps its promise."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import tiny_extractor, tiny_model, two_instruments

from spectrafm_hf.baselines import MLP, MLPPretraining
from spectrafm_hf.benchmark import (
    BenchmarkPlan,
    answers_of,
    central_95,
    coverage_interval,
    identity,
    mean_interval,
    resampled_rmse,
    run_benchmark,
    table,
)
from spectrafm_hf.checkpoints import shipped
from spectrafm_hf.hub import load_pretrained
from spectrafm_hf.prediction import Observed
from spectrafm_hf.protocols.apogee_window import read_window_stars
from spectrafm_hf.protocols.combined import choose_share, combine, linear_answers, nearness
from spectrafm_hf.protocols.few_labels import METHODS, Answer, Task, figures, read_by_network, seeds_of, sha256_of
from spectrafm_hf.protocols.synthetic_h_band import (
    FEW_SHOT_PIXELS,
    FIRST_HALF,
    Nature,
    stage_folder,
    theory_stars,
    tune,
)
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.instrument import ApogeeConditions
from spectrafm_hf.synthesis.sampler import LabelSampler


def stars(extractor, n, seed, prefix, fe_h=(-2.5, 0.5)):
    """Synthetic stars with a little noise, and their true labels with published errors of 0.05 dex."""
    rng = np.random.default_rng(seed)
    labels = np.stack([LabelSampler(fe_h=fe_h).draw(rng) for _ in range(n)])
    flux = CannonSynthesizer(extractor.wavelength_grid, fwhm=2.5)(labels)
    flux = (flux * (1 + 0.005 * rng.standard_normal(flux.shape))).astype(np.float32)
    good = np.broadcast_to(extractor.in_range, flux.shape).copy()
    errors = np.tile([50.0, 0.1, 0.05], (n, 1))
    return Observed([f"{prefix}{i:04d}" for i in range(n)], flux, good, labels, errors)


@pytest.fixture(scope="module")
def task():
    extractor = tiny_extractor()
    pool, test = stars(extractor, 150, 0, "pool-", (-1.0, 0.5)), stars(extractor, 80, 1, "test-")
    anchors = stars(extractor, 100, 2, "anchor-")
    return Task("trial", "A trial.", tiny_model(), extractor, pool, test, (anchors.flux, anchors.good), -1.0)


@pytest.fixture(scope="module")
def synthetic(task):
    """Row numbers -> synthetic stars; those of the same numbers are made once for all tests."""

    @cache
    def made(start, stop):
        found = stars(task.extractor, stop - start, 100 + start, "synthetic-")
        return found.labels, found.flux, found.good

    return lambda rows: made(rows.start, rows.stop)


# ---------------------------------------------------------------- no leaks


def test_a_star_that_is_learned_from_and_asked_about_is_refused(task):
    leaky = task.test.chosen(range(5))
    leaky.star_ids[2] = "pool-0003"
    with pytest.raises(ValueError, match="1 stars are to be learned from and asked about: pool-0003"):
        Task("leaky", "", task.model, task.extractor, task.pool, leaky, task.anchors)


def test_no_metal_poor_star_is_drawn_and_the_draw_hangs_on_the_seed_alone(task):
    drawn = task.draw(30, 0)
    assert len(set(drawn)) == 30
    assert (task.pool.labels[drawn, 2] > -1).all()
    assert drawn == task.draw(30, 0)
    assert drawn != task.draw(30, 1)


def test_no_method_hangs_on_the_labels_of_stars_that_were_not_drawn(task):
    drawn = task.draw(40, 0)
    labels = np.where(np.isin(np.arange(150), drawn)[:, None], task.pool.labels, 99.0)
    pool = Observed(task.pool.star_ids, task.pool.flux, task.pool.good, labels, task.pool.label_errors)
    blind = Task("trial", "", task.model, task.extractor, pool, task.test, task.anchors, -1.0)
    for name in ("spectrafm", "spectrafm_combined", "ridge", "median"):
        one, other = (METHODS[name](who, drawn, 0) for who in (task, blind))
        np.testing.assert_array_equal(one.mean, other.mean, err_msg=name)
        np.testing.assert_array_equal(one.sigma, other.sigma, err_msg=name)


def test_the_manifest_names_every_star_and_its_sum_hangs_on_the_names_only(task):
    told = task.manifest(range(2), (10, 30))
    assert set(told) == {"test", "pool", *(f"draw {s} of {n}" for n in (10, 30) for s in (0, 1))}
    assert set(told["draw 1 of 30"]["star_ids"]) <= set(told["pool"]["star_ids"])
    assert told["test"]["sha256"] == sha256_of(list(reversed(task.test.star_ids)))
    assert told["test"]["sha256"] != sha256_of(task.test.star_ids[1:])


# ---------------------------------------------------------------- our ways


def test_the_left_out_answer_of_a_star_does_not_hang_on_its_label(task):
    drawn = np.array(task.draw(40, 0))
    _, before = read_by_network(task, drawn)
    labels = task.pool.labels.copy()
    labels[drawn[7], 2] += 0.01
    pool = Observed(task.pool.star_ids, task.pool.flux, task.pool.good, labels, task.pool.label_errors)
    changed = Task("trial", "", task.model, task.extractor, pool, task.test, task.anchors, -1.0)
    _, after = read_by_network(changed, drawn)
    assert after[7] == pytest.approx(before[7], abs=1e-6)
    assert np.abs(np.delete(after - before, 7)).max() > 1e-6  # the others learned from it


def test_far_from_the_labelled_stars_the_network_alone_answers():
    labels = np.linspace(-0.9, 0.4, 100)
    network = np.array([-2.5, -1.8, 0.0, 0.3])
    near = nearness(network, labels)
    assert near[0] < 1e-3
    assert near[3] > 0.99
    combined = combine(network, np.full(4, 5.0), near, share=1.0)
    assert combined[0] == pytest.approx(-2.5, abs=0.01)
    assert combined[3] > 4.9


def test_the_share_is_chosen_by_who_is_right_about_the_labelled_stars():
    rng = np.random.default_rng(0)
    labels = rng.uniform(-0.9, 0.4, 200)
    good, bad = labels + 0.05 * rng.standard_normal(200), labels + 0.4 * rng.standard_normal(200)
    assert choose_share(bad, good, labels) > 0.7
    assert choose_share(good, bad, labels) < 0.2
    assert choose_share(good, good, labels) == 0.0  # where both say the same, the network answers
    assert choose_share(bad[:19], good[:19], labels[:19]) == 0.0  # so few stars cannot tell


def test_linear_answers_are_exact_where_the_label_is_linear_and_left_out_ones_have_not_seen_it():
    rng = np.random.default_rng(0)
    inputs, weight = rng.standard_normal((80, 6)), np.arange(6.0)
    labels = inputs @ weight + 2
    split = [(inputs[:60], inputs[60:]), (3 * inputs[:60], 3 * inputs[60:])]
    answers, left_out = linear_answers(split, labels[:60], seed=0)
    np.testing.assert_allclose(answers, labels[60:], atol=0.02)
    np.testing.assert_allclose(left_out, labels[:60], atol=0.02)
    _, of_nothing = linear_answers(split, rng.standard_normal(60), seed=0)
    assert np.abs(of_nothing).mean() < 0.5  # labels that the inputs do not tell are not learned by heart


def test_figures_tell_subsets_apart_and_95_percent_by_its_own_interval(task):
    truth = task.test.labels[:, 2]
    error = np.where(truth < -1, 0.5, 0.1)
    told = figures(task, Answer(truth + error, np.full(80, 0.2), np.full(80, 10.0)))
    assert told["metal_poor"]["rmse"] == pytest.approx(0.5)
    assert told["metal_rich"]["rmse"] == pytest.approx(0.1)
    assert told["metal_poor"]["coverage68"] == 0.0
    assert told["all"]["coverage95"] == 1.0


@pytest.fixture
def small_mlp(monkeypatch):
    """The MLP with narrower layers: the same in a tenth of the time."""
    whole, widths = MLPPretraining.run, (256, 160, 128)
    monkeypatch.setattr(MLPPretraining, "run", lambda draw, n: whole(draw, n, widths=widths))
    monkeypatch.setattr(MLP, "WIDTHS", widths)


def test_the_pretrained_mlp_is_made_once_and_knows_metal_poor_stars_that_no_labelled_one_is(
    task, synthetic, tmp_path, small_mlp
):
    told = replace(task, synthetic=synthetic, folder=tmp_path, n_synthetic=4096)
    rows, poor = told.draw(100, 0), task.test.labels[:, 2] < -1
    answer = METHODS["mlp_pretrained"](told, rows, 0)
    scratch = METHODS["mlp_scratch"](task, rows, 0)
    error, error_of_scratch = (
        np.sqrt(np.mean((found.mean - task.test.labels[:, 2])[poor] ** 2)) for found in (answer, scratch)
    )
    assert error < 0.7 * error_of_scratch
    (kept,) = tmp_path.glob("mlp-*.safetensors")
    written = kept.stat().st_mtime_ns
    again = METHODS["mlp_pretrained"](replace(told), rows, 0)
    np.testing.assert_array_equal(again.mean, answer.mean)
    assert kept.stat().st_mtime_ns == written
    assert replace(told, n_synthetic=2048).mlp is not None  # another pre-training, another file
    assert len(list(tmp_path.glob("mlp-*.safetensors"))) == 2


def test_a_network_that_adapts_knows_its_window_better_and_is_adapted_once(task, synthetic, tmp_path):
    told = replace(task, synthetic=synthetic, folder=tmp_path, n_synthetic=2048, adapts=True)
    before, after = task.read[1], told.read[1]
    error, error_before = (np.abs(seen.mean - task.test.labels).mean(axis=0) for seen in (after, before))
    assert (error < 0.8 * error_before).all()
    (kept,) = tmp_path.glob("adapted-*")
    written = (kept / "model.safetensors").stat().st_mtime_ns
    np.testing.assert_array_equal(replace(told).read[1].mean, after.mean)
    assert (kept / "model.safetensors").stat().st_mtime_ns == written
    weights = task.model.state_dict(), told.model.state_dict()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])  # the parent stays what it was
    assert identity(told, "spectrafm") != identity(replace(told, adapts=False), "spectrafm")
    assert identity(told, "ridge") == identity(replace(told, adapts=False), "ridge")


def test_a_network_that_does_not_adapt_sees_no_synthetic_star(task):
    def refuse(rows):
        raise AssertionError("it was asked for")

    assert replace(task, synthetic=refuse).network is task.model


def test_a_task_without_synthetic_stars_says_so(task):
    with pytest.raises(ValueError, match="trial has no synthetic stars"):
        _ = task.mlp


@pytest.mark.parametrize("ends", [(15_200.0, 15_400.0), (16_106.0, 16_220.0)])
def test_synthetic_h_band_stars_are_those_of_theory_in_the_window(ends):
    extractor = two_instruments()
    labels, flux, good = theory_stars(extractor, np.array(ends))(range(5, 8))
    again = theory_stars(extractor, np.array(ends))(range(7, 8))
    assert labels.shape == (3, len(extractor.label_names))
    assert np.isfinite(labels).all()
    np.testing.assert_allclose(again[1][0], flux[2], atol=1e-5)  # row 7 is row 7
    shown = extractor.wavelength_grid[good.any(axis=0)]
    assert ends[0] - 1 < shown[0] < ends[0] + 1
    assert ends[1] - 1 < shown[-1] < ends[1] + 1


# ---------------------------------------------------------------- what it costs


def test_a_narrow_task_shows_the_same_and_a_wide_one_stays_whole(task):
    model, extractor = load_pretrained(shipped("spectrafm-small"))
    drawn = theory_stars(extractor, np.array([16_106.0, 16_220.0]))

    def observed(rows, prefix):
        labels, flux, good = drawn(rows)
        return Observed([f"{prefix}{row}" for row in rows], flux, good, labels, np.full(labels.shape, 0.05))

    pool, test = observed(range(12), "pool-"), observed(range(12, 20), "test-")
    whole = Task("trial", "A trial.", model, extractor, pool, test, drawn(range(20, 24))[1:], synthetic=drawn)
    narrow = whole.narrowed()
    assert narrow.extractor.wavelength_grid.size <= 512 + 3 * extractor.patch_size
    scale = extractor.label_scale
    for seen, told in zip(narrow.read, whole.read, strict=True):
        np.testing.assert_allclose(seen.mean / scale, told.mean / scale, atol=1e-4)
    for seen, told in zip(narrow.pixels, whole.pixels, strict=True):
        np.testing.assert_allclose(seen, told, atol=1e-5)
    for seen, told in zip(narrow.draw_synthetic(range(3)), whole.draw_synthetic(range(3)), strict=True):
        np.testing.assert_allclose(seen, told, atol=1e-5)
    assert task.narrowed() is task  # its grid is no detector's


def test_only_the_slowest_method_has_fewer_seeds_of_a_hundred_stars_and_never_where_metal_poor_ones_are_missing():
    for protocol in ("optical", "paper_synthetic", "across_instruments", "apogee_window"):
        for method in METHODS:
            few = method == "transformer_scratch" and protocol in ("across_instruments", "apogee_window")
            assert len(seeds_of(method, 100, protocol, 10)) == (3 if few else 10)
    assert len(seeds_of("ridge", 300, "optical", 10)) == 10
    assert len(seeds_of("mlp_scratch", 300, "optical", 10)) == 3
    assert seeds_of("transformer_scratch", 10, "optical", 10) == range(1)


# ---------------------------------------------------------------- nature


def test_in_nature_the_same_lines_err_in_every_star_and_theory_knows_none_of_it():
    """Divided by what theory says of the same stars, nature shows one pattern: its own lines."""
    extractor = two_instruments()
    quiet = ApogeeConditions(
        snr=(1e4, 1e4), vmacro=(3.0, 3.0), velocity=0.0, resolving_power=0.0, continuum=0.0, missing=0.0
    )
    nature, theory = (
        Nature(strength, lines, (0.0, 0.0), quiet).stars(extractor, 40, 0.0, seed=1, prefix="n-")
        for strength, lines in ((0.1, 0.02), (0.0, 0.0))
    )
    assert (nature.labels == theory.labels).all()
    there = theory.good.all(axis=0)
    ratio = np.log(nature.flux[:, there] / theory.flux[:, there])
    alike = np.corrcoef(ratio)[np.triu_indices(40, 1)]
    assert np.median(alike) > 0.6
    assert ratio.std() > 0.005
    assert nature.label_errors[0, 2] == 0.03


def test_windows_are_those_of_the_paper():
    wavelength = apogee_wavelength()
    assert wavelength[FIRST_HALF][[0, -1]] == pytest.approx([15_152.2, 16_028.8], abs=1.5)
    assert wavelength[FEW_SHOT_PIXELS].size == 512
    assert wavelength[FEW_SHOT_PIXELS][[0, -1]] == pytest.approx([16_106, 16_220], abs=1.5)


# ---------------------------------------------------------------- the command


def test_the_interval_of_an_rmse_counts_stars_and_draws():
    """Of Gaussian errors the RMSE of n stars is known to 1 / sqrt(2 n), however many draws they are asked after."""
    rng = np.random.default_rng(0)
    errors = 0.2 * rng.standard_normal(200)
    same = central_95(resampled_rmse(np.tile(errors**2, (10, 1))))
    assert same[0] < np.sqrt(np.mean(errors**2)) < same[1]
    assert same[1] - same[0] == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(400), rel=0.2)
    draws = central_95(resampled_rmse(np.outer(np.linspace(0.5, 2.0, 10), errors**2)))
    assert draws[1] - draws[0] > 1.3 * (same[1] - same[0])


def test_a_difference_between_two_methods_is_known_better_than_either():
    rng = np.random.default_rng(0)
    errors = 0.2 * rng.standard_normal((1, 200)) + 0.02 * rng.standard_normal((10, 200))
    worse = 1.1 * errors
    low, high = central_95(resampled_rmse(worse**2) - resampled_rmse(errors**2))
    assert 0 < low < 0.1 * np.sqrt(np.mean(errors**2)) < high
    apart = central_95(resampled_rmse(errors**2))
    assert high - low < 0.3 * (apart[1] - apart[0])


def test_the_interval_over_draws():
    low, high = mean_interval([0.30, 0.32, 0.34])
    assert (high - low) / 2 == pytest.approx(4.303 * 0.02 / np.sqrt(3), rel=1e-3)  # Student's t, two degrees of freedom
    assert mean_interval([0.3]) is None


def test_the_interval_of_a_share_holds_what_was_asked():
    low, high = coverage_interval(0.68, 100)
    assert 0.57 < low < 0.60 < 0.68 < 0.75 < high < 0.78
    assert coverage_interval(0.68, 10_000)[1] - coverage_interval(0.68, 10_000)[0] < 0.02


def test_an_answer_is_known_by_all_it_hangs_on_and_by_nothing_else(task):
    other_network = replace(task, model=tiny_model(seed=1))
    other_sigma = replace(task, extractor=tiny_extractor())
    other_sigma.extractor.sigma_factors = {"fe_h": [2.0, 2.0]}
    other_pixels = replace(task, test=replace(task.test, flux=task.test.flux * 1.01))
    other_errors = replace(task, pool=replace(task.pool, label_errors=2 * task.pool.label_errors))
    for changed, network, linear in (
        (other_network, True, False), (other_sigma, True, False),
        (other_pixels, True, True), (other_errors, True, True),
    ):  # fmt: skip
        assert (identity(changed, "spectrafm") != identity(task, "spectrafm")) == network
        assert (identity(changed, "ridge") != identity(task, "ridge")) == linear
    assert identity(replace(task, n_synthetic=9), "mlp_pretrained") != identity(task, "mlp_pretrained")


def test_while_something_is_being_chosen_no_test_star_is_asked(tmp_path):
    parts = ("paper_synthetic", "across_instruments", "apogee_window", "paper")
    results = run_benchmark(BenchmarkPlan(tmp_path, protocols=parts, development=True))
    assert all("no validation stars" in results["protocols"][name]["left_out"] for name in parts)


def test_a_stage_2_is_taken_for_done_only_when_it_is_and_only_for_its_parent(tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_extractor().save_pretrained(tmp_path / name)
    folders = [stage_folder(str(tmp_path / name), tmp_path, told) for name in ("one", "other") for told in ("a", "b")]
    assert len(set(folders)) == 4
    assert stage_folder(str(tmp_path / "one"), tmp_path, "a") == folders[0]
    folders[0].mkdir()
    (folders[0] / "model.safetensors").write_bytes(b"half")

    def began(extractor):
        raise InterruptedError("it began")

    with pytest.raises(InterruptedError):
        tune(str(tmp_path / "one"), folders[0], began, 32, "stage 2")


def test_unknown_protocols_and_methods_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no protocol radio; there are paper_synthetic"):
        BenchmarkPlan(tmp_path, protocols=("radio",))
    with pytest.raises(ValueError, match="no method magic; there are spectrafm"):
        BenchmarkPlan(tmp_path, methods=("magic",))


def test_a_run_writes_its_schema_and_does_nothing_twice(task, tmp_path, monkeypatch):
    monkeypatch.setattr("spectrafm_hf.benchmark.optical_task", lambda *told: task)
    monkeypatch.setattr("spectrafm_hf.benchmark.load_library", lambda name: None)
    monkeypatch.setattr("spectrafm_hf.benchmark.located", lambda name: str(tmp_path))
    monkeypatch.setattr("spectrafm_hf.benchmark.SIZES", (10, 100))
    methods = ("spectrafm", "spectrafm_combined", "ridge", "cannon", "median")
    plan = BenchmarkPlan(tmp_path, n_seeds=2, protocols=("optical", "apogee_window"), methods=methods, n_processes=2)
    results = run_benchmark(plan)
    told = results["protocols"]["optical"]
    assert list(told["methods"]) == list(methods)
    assert [record["seed"] for record in told["methods"]["ridge"]["per_seed"]] == [0, 1]
    for subset in ("all", "metal_poor", "metal_rich"):
        assert set(told["methods"]["ridge"][subset]) >= {"n", "rmse", "bias", "scatter", "coverage68", "coverage95"}
    assert "20 stars" in told["by_n"]["10"]["cannon"]["left_out"]  # ten coefficients per pixel
    assert "window-stars" in results["protocols"]["apogee_window"]["left_out"]
    assert (tmp_path / "figures" / "benchmark.png").stat().st_size > 10_000
    assert "Ridge regression" in table(results)

    def refuse(*told):
        raise AssertionError("it was kept")

    monkeypatch.setattr("spectrafm_hf.benchmark._answer", refuse)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "trial" / "predictions").glob("*.npz")}
    assert len(kept) == 18  # 5 methods, 2 sizes, 2 draws, but for the Cannon of 10 stars
    again = run_benchmark(replace(plan, n_processes=1, methods=methods[:3]))
    assert again["protocols"]["optical"]["methods"]["ridge"] == told["methods"]["ridge"]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_processes_share_one_pretraining_of_the_mlp(task, synthetic, tmp_path, small_mlp):
    made = [replace(task, synthetic=synthetic, folder=tmp_path / str(n), n_synthetic=2048) for n in (1, 2)]
    assert not made[0].mlp_is_ready
    methods = "mlp_pretrained", "ridge"
    found = [
        answers_of(BenchmarkPlan(tmp_path / str(n), n_seeds=2, methods=methods, n_processes=n), told, (100,))
        for n, told in enumerate(made, start=1)
    ]
    assert made[1].mlp_is_ready
    assert len(found[0]) == 4
    for job, answer in found[0].items():
        np.testing.assert_array_equal(answer.mean, found[1][job].mean)


def test_window_stars_need_their_arrays(tmp_path):
    np.savez(tmp_path / "stars.npz", wavelength=np.arange(3.0), flux=np.ones((2, 3)))
    with pytest.raises(ValueError, match="lacks labels, label_names, apogee_id"):
        read_window_stars(tmp_path / "stars.npz", ["teff"])


def test_window_stars_need_their_label_and_lose_what_is_no_label(tmp_path):
    stored = {"wavelength": np.arange(3.0), "flux": np.ones((2, 3)), "apogee_id": ["2M1", "2M2"]}
    np.savez(tmp_path / "a.npz", **stored, labels=[[4500.0], [5000.0]], label_names=["TEFF"])
    with pytest.raises(ValueError, match="needs a label FE_H, its label_names are TEFF"):
        read_window_stars(tmp_path / "a.npz", ["teff"])
    np.savez(tmp_path / "b.npz", **stored, labels=[[4500.0, -9999.0], [5000.0, 0.1]], label_names=["TEFF", "FE_H"])
    names, _, _, labels = read_window_stars(tmp_path / "b.npz", ["fe_h", "teff", "mg_fe"])
    assert names == ["2M1", "2M2"]
    np.testing.assert_array_equal(labels, [[np.nan, 4500.0, np.nan], [0.1, 5000.0, np.nan]])
