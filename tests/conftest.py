"""A tiny model, a tiny extractor, a fake star with known lines and a fake library; no network."""

import gc
import multiprocessing.connection
import multiprocessing.forkserver
import os
import runpy
import socket
import sys
import tempfile
import time
import traceback

if "PYTEST_XDIST_WORKER" in os.environ:  # tests beside each other: a thread each, before NumPy is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before huggingface_hub is imported. No test ever reaches the real Hub: tests/hub bring their own to this port.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{free.getsockname()[1]}"
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio-"))  # not among the person's own runs
os.environ["HF_HUB_DISABLE_XET"] = "1"  # with it every large upload would go to a Xet server, which no local Hub is

import numpy as np
import pytest
import torch
from hypothesis import settings

from spectrafm_hf import (
    SpectraFMConfig,
    SpectraFMFeatureExtractor,
    SpectraFMForLabelPrediction,
    Spectrum,
    air_to_vacuum,
)
from spectrafm_hf.builders.libraries import Library
from spectrafm_hf.builders.selection import SelectionReport
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.sampler import LabelSampler

settings.register_profile("beside others", deadline=None)  # who shares a processor may take long
settings.load_profile("beside others")


def pytest_collection_finish():
    """What is imported by now stays: each training ends in a search for garbage, which need not look there."""
    gc.collect()
    gc.freeze()


PATCH_SIZE = 16
WINDOW = (5000.0, 5400.0)
MAGNESIUM = {5168.76: 0.3, 5174.13: 0.5, 5185.05: 0.6}
"""The Mg b triplet: vacuum Angstrom (NIST) -> depth in the fake star."""
SEGMENTS = [
    ["wavelength", 3584.5, 1.0, 5504],
    ["log10_wavelength", 4.180476, 6e-6, 3072],
    ["log10_wavelength", 4.20051, 6e-6, 2560],
    ["log10_wavelength", 4.217064, 6e-6, 2048],
]
"""Pixels of the model that ships: the optical, and the three detectors of APOGEE."""
LABEL_CENTER, LABEL_SCALE = [5200.0, 3.0, -0.9], [850.0, 1.4, 0.8]
ARCHITECTURE = {
    "hidden_size": 32,
    "encoder_heads": [2, 2],
    "decoder_heads": [2],
    "encoder_sizes": [64, 64],
    "decoder_sizes": [64],
    "encoding_size": 16,
    "shortest_period": 16.0,
}


def tiny_config(**changes):
    return SpectraFMConfig(**{"patch_size": PATCH_SIZE, "initializer_range": 0.2, **ARCHITECTURE, **changes})


def tiny_model(seed=0, **changes):
    """A model whose answers depend on everything: weights are large, and no readout is zero."""
    torch.manual_seed(seed)
    model = SpectraFMForLabelPrediction(tiny_config(**changes))
    with torch.no_grad():
        for name in ("mean_weight", "mean_bias", "log_var_weight", "log_var_bias"):
            getattr(model.head, name).normal_(std=0.3)
    return model.eval()


def tiny_extractor(**changes):
    told = {"patch_size": PATCH_SIZE, "wavelength_range": WINDOW, "smoothing_length": 60.0}
    told |= {"label_center": LABEL_CENTER, "label_scale": LABEL_SCALE}
    return SpectraFMFeatureExtractor(**told | changes)


def two_instruments():
    """An extractor with the pixels of the model that ships, and its five labels."""
    names = ["teff", "logg", "fe_h", "mg_fe", "o_fe"]
    return SpectraFMFeatureExtractor(
        names, [5000.0, 3.0, -0.6, 0.1, 0.1], [800.0, 1.3, 0.7, 0.1, 0.1], patch_size=128, pixel_width=None,
        pixel_segments=SEGMENTS, wavelength_range=(3500.0, 17_000.0),
    )  # fmt: skip


def star_flux(wavelength, lines=MAGNESIUM, fwhm=2.5):
    """A flat continuum at 1 with Gaussian lines: vacuum Angstrom -> depth."""
    sigma = fwhm / 2.3548
    return 1.0 - sum(depth * np.exp(-0.5 * ((wavelength - line) / sigma) ** 2) for line, depth in lines.items())


def random_batch(n_spectra=4, n_tokens=6, seed=0):
    """What the extractor would give: some pixels missing everywhere, one whole token missing in spectrum 0."""
    rng = np.random.default_rng(seed)
    n_pixels = n_tokens * PATCH_SIZE
    good = rng.random((n_spectra, n_pixels)) > 0.1
    good[0, PATCH_SIZE : 2 * PATCH_SIZE] = False
    wavelength = np.tile(5000.5 + np.arange(n_pixels), (n_spectra, 1))
    return {
        "flux": torch.from_numpy(np.where(good, rng.normal(size=good.shape), 0.0).astype(np.float32)),
        "wavelength": torch.from_numpy(wavelength),
        "attention_mask": torch.from_numpy(good.astype(np.int64)),
    }


def miles_grid(low=4900.0, high=6100.0):
    """Pixels of MILES, 0.9 Angstrom apart in air, in part; vacuum Angstrom."""
    return air_to_vacuum(np.arange(low, high, 0.9))


def fake_spectra(n_stars=420, seed=0, noise=0.005, wavelength=None):
    """Stars of the Cannon grid as MILES would have seen them, named so that `split_of` spreads them over the splits."""
    wavelength = miles_grid() if wavelength is None else wavelength
    rng = np.random.default_rng(seed)
    sampler = LabelSampler(teff=(4200.0, 6500.0))
    labels = np.stack([sampler.draw(rng) for _ in range(n_stars)])
    flux = CannonSynthesizer(wavelength, fwhm=2.5)(labels)
    flux = flux * (1 + noise * rng.standard_normal(flux.shape)) * (wavelength / 5500.0) ** rng.normal(size=(n_stars, 1))
    return [
        Spectrum(
            wavelength=wavelength,
            flux=1e-14 * flux[i],
            bad_pixel=np.zeros(wavelength.size, dtype=bool),
            star_id=f"HD{i + 1}",
            survey="miles",
            fwhm=2.5,
            labels=dict(zip(("teff", "logg", "fe_h"), map(float, labels[i]), strict=True)),
        )
        for i in range(n_stars)
    ]


def as_rank(rank, n_ranks, port, errors, work, arguments):
    """One of the processes of `on_ranks`."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "LOCAL_WORLD_SIZE": n_ranks}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    gc.freeze()  # as above
    try:
        work(*arguments)
    except BaseException:
        errors.put(f"rank {rank}: {traceback.format_exc()}")
        raise


def on_ranks(fresh, work, *arguments, n_ranks=2, timeout=300):
    """Run `work(*arguments)` in processes that train one model together, as torchrun would begin them.

    Args:
        fresh: The fixture `fresh_processes`.
        work: Function of a test module; RANK tells it which process it is.
        timeout: Seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors = fresh.SimpleQueue()
    ranks = [
        fresh.Process(target=as_rank, args=(rank, n_ranks, port, errors, work, arguments)) for rank in range(n_ranks)
    ]
    for process in ranks:
        process.start()
    running, deadline = ranks, time.monotonic() + timeout
    # The others would wait for one that failed for ever.
    while running and not any(process.exitcode for process in ranks) and time.monotonic() < deadline:
        multiprocessing.connection.wait([process.sentinel for process in running], deadline - time.monotonic())
        running = [process for process in running if process.is_alive()]
    for process in ranks:
        process.kill()
        process.join()
    said = f"no error within {timeout} s" if errors.empty() else errors.get()
    assert [process.exitcode for process in ranks] == [0] * n_ranks, said


def as_main(script, arguments, home):
    """The process of `run_script`."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (home / name).open("wb") as stream:
            os.dup2(stream.fileno(), number)
    sys.argv = [script, *arguments]
    (runpy.run_path if script.endswith(".py") else runpy.run_module)(script, run_name="__main__")


def run_script(fresh, script, *arguments, home, timeout=120):
    """Exit code, standard output and standard error of `python SCRIPT ...`, or of `python -m` and a module.

    Args:
        fresh: The fixture `fresh_processes`.
        script: Path of a file, or a module's dotted name.
        arguments: Further words of the command.
        home: Folder for what it says.
        timeout: Seconds.
    """
    process = fresh.Process(target=as_main, args=(str(script), [str(one) for one in arguments], home))
    process.start()
    process.join(timeout)
    process.kill()  # nothing, where it has ended
    process.join()
    return process.exitcode, *((home / name).read_text() for name in ("stdout", "stderr"))


@pytest.fixture(scope="session")
def fresh_processes():
    """Begins processes that have imported what they need, and nothing else has happened in them.

    A new Python would import it again, for several seconds each. The command line comes first, as in its own Python.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["spectrafm_hf.cli", "spectrafm_hf.stages", "spectrafm_hf.catalogue", "spectrafm_hf.readers.mangadap_wheel"]
    )
    multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def extractor():
    return tiny_extractor()


@pytest.fixture
def batch():
    return random_batch()


def render_nothing(monkeypatch):
    """From now on figures are put together as always, but their files stay empty: for when nobody looks at them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: path.touch())


@pytest.fixture
def unrendered(monkeypatch):
    render_nothing(monkeypatch)


@pytest.fixture
def star():
    """The fake star on 0.9 Angstrom pixels: wavelength and flux."""
    wavelength = np.arange(4990.0, 5410.0, 0.9)
    return wavelength, star_flux(wavelength)


@pytest.fixture(scope="session")
def fake_library():
    spectra = fake_spectra()
    return Library("miles", spectra, SelectionReport(len(spectra), ()))


def patched_library(patch, library):
    """From now on `load_library` gives this one, to the stages and to the transfer."""

    def load(name, split=None, **kwargs):
        assert name == "miles"
        return library if split is None else Library("miles", library.split(split), library.report)

    patch.setattr("spectrafm_hf.stage_data.load_library", load)
    patch.setattr("spectrafm_hf.transfer.load_library", load)


@pytest.fixture
def use_fake_library(monkeypatch, fake_library):
    """`load_library` gives the fake stars."""
    patched_library(monkeypatch, fake_library)
    return fake_library
