"""A stage's folder -> its card -> its repository on the Hub -> the Collection of the stages."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from .checkpoints import SHIPPED, shipped
from .hub import (
    BESIDE,
    CHECKPOINT_FILES,
    HubError,
    Pushed,
    check_checkpoint,
    collect,
    is_dataset,
    push,
    read_pushed,
    staged,
)
from .model_card import CardFacts, eval_results_yaml, render_model_card

logger = logging.getLogger(__name__)

COLLECTION = "SpectraFM"
EVAL_RESULTS = ".eval_results/spectrafm.yaml"

NEEDED = (
    "recipe", "label_ranges", "parent", "parent_fingerprint", "fwhm", "snr_range", "training_data", "datasets",
    "n_parameters", "calibration", "seed", "versions",
)  # fmt: skip
"""Of stage.json, for a card."""

FIGURES = {
    "predicted_against_true": "Predicted against catalogue [Fe/H] of the test stars, by every method.",
    "metal_poor_rmse": "RMSE of [Fe/H] of the metal-poor test stars, by every method.",
    "learning_curve": "Loss in training, in nats per label, against spectra seen.",
    "out_of_fold": "Predicted against published labels, each star by a model that knew nothing of it.",
    "candidates": "Error of everything that was tried, in units of that of a constant offset.",
}
"""Beginning of a figure's name, in figures/ beside the card -> what it shows."""


def repository_of(namespace: str, stage: str) -> str:
    """Where a stage is published: `namespace/spectrafm-STAGE`."""
    return f"{namespace}/{published_name(stage)}"


def published_name(stage: str) -> str:
    """A stage's name for the world, which has other models too: `spectrafm-STAGE`."""
    return stage if stage.startswith("spectrafm-") else f"spectrafm-{stage}"


def card_facts(folder: Path, repo: str | None = None, parent: Pushed | None = None) -> CardFacts:
    """What the card of a finished stage says beside its results, from its stage.json.

    Args:
        folder: Of the stage.
        repo: Hub id the card is for; None = the card of the folder itself.
        parent: Version on the Hub that the stage began from; None = what stage.json knows of it, or the folder beside
            this one if it was pushed after all.

    Raises:
        ValueError: The stage is not done, or something a card needs is not known.
    """
    record = _read(folder / "stage.json")
    recipe = record.get("recipe", {})
    needed = NEEDED if recipe.get("beside") is None else (*NEEDED, "surveys")
    if missing := [name for name in needed if name not in record]:
        raise ValueError(
            f"{folder}/stage.json lacks {', '.join(missing)}: an older version of this package wrote it. Run the stage "
            "again (--again)."
        )
    ranges, began_from = record["label_ranges"], record["parent"]
    if parent is None and began_from is not None and began_from["revision"] is None:
        parent = _pushed_since(folder.parent / began_from["id"], record["parent_fingerprint"])
    if parent is not None:
        began_from = {"id": parent.repo_id, "revision": parent.revision}
    if lacking := [name for name in (*recipe["labels"], "teff") if name not in ranges]:
        raise ValueError(
            f"the card of {folder.name} needs the range of {', '.join(lacking)} in training, which no training "
            "spectrum tells; give the stars these labels."
        )
    if record["fwhm"] is None:
        raise ValueError(
            f"the card of {folder.name} needs the sharpness of the training spectra; give the dataset lsf_sigma "
            "(Angstrom) or resolving_power."
        )
    facts = CardFacts(
        model_name=published_name(record["stage"]),
        folder=folder.name,
        license="mit",
        labels={name: tuple(ranges[name]) for name in recipe["labels"]},
        wavelength_range=tuple(recipe["window"]),
        teff_range=tuple(ranges["teff"]),
        fwhm=record["fwhm"],
        n_parameters=record["n_parameters"],
        recipe="stage.json",
        training_data=record["training_data"],
        parent=began_from and began_from["id"],
        spectra_seen=recipe["n_spectra"],
        seed=record["seed"],
        versions=record["versions"],
        repo=repo,
        datasets=record["datasets"],
        snr_range=record["snr_range"] and tuple(record["snr_range"]),
        resolving_power=(power := record.get("resolving_power")) and tuple(power),
        calibration=record["calibration"],
        surveys=record.get("surveys"),
        true_labels=recipe["data"] == "synthetic" or recipe.get("true_labels", False),
        ships_as=_ships_as(record),
        figures=_figures(folder),
    )
    if recipe["data"] == "dataset":
        facts["survey"] = None  # whom to cite stands in the dataset's own card
    for name in ("survey", "citations", "weaknesses"):
        if name in record:
            facts[name] = record[name]
    if began_from and began_from["revision"]:
        facts |= {"base_model": began_from["id"], "base_model_revision": began_from["revision"]}
    config = folder / "preprocessor_config.json"
    if config.is_file() and (where := _read(config).get("learned_ranges")):
        facts["learned_ranges"] = where
    return facts


def _figures(folder: Path) -> list[tuple[str, str]]:
    """Figures beside the card of a folder, as paths in it, and what they show."""
    return [
        (path.relative_to(folder).as_posix(), caption)
        for beginning, caption in FIGURES.items()
        for path in sorted((folder / "figures").glob(f"{beginning}*.png"))
    ]


def _ships_as(record: Mapping[str, Any]) -> str | None:
    """Under which name this very model ships with the package; None = it does not."""
    for name in SHIPPED:
        if _read(shipped(name) / "stage.json")["fingerprint"] == record["fingerprint"]:
            return name
    return None


def _pushed_since(parent: Path, fingerprint: str | None) -> Pushed | None:
    """As which version a parent's folder was pushed, if it still holds the parent and not another run's."""
    try:
        same = json.loads((parent / "stage.json").read_text())["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return read_pushed(parent) if same else None


def write_card(folder: Path, results: Mapping[str, Any], facts: CardFacts) -> None:
    """README.md and, where the stars tested on are on the Hub, .eval_results, into a stage's folder.

    Raises:
        ValueError, jinja2.UndefinedError: See `render_model_card`.
    """
    stage = _read(folder / "stage.json")["stage"]
    (folder / "README.md").write_text(render_model_card(results, stage, facts))
    test = facts.get("test_dataset") or next(iter(facts.get("datasets", ())), None)
    told = eval_results_yaml(results, facts, test["id"], test["revision"]) if test else None
    if told is not None:
        (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
        (folder / EVAL_RESULTS).write_text(told)


def draw_learning_curve(record: Mapping[str, Any], path: Path) -> None:
    """Draw the curve that stage.json holds, if it holds any."""
    if record["learning_curve"]:
        from .plots import plot_learning_curve  # matplotlib, which a push of finished figures does not need

        curve = [{"step": point["spectra"], "loss": point["loss"]} for point in record["learning_curve"]]
        plot_learning_curve(curve, path, 1, title=record["stage"])


@contextmanager
def prepared(
    folder: Path, to: str, parent: Pushed | None = None, change: bool = True
) -> Iterator[tuple[Path, str, str]]:
    """A folder as it can go, where it goes, and as what: folder, repository, and `model` or `dataset`.

    The card of a stage is rendered for that repository, with a learning curve if the stage has no figures yet: into the
    stage's folder, or into a passing copy of what is published of it, where the folder cannot be written, or is one of
    this package's own. A dataset has its card already.

    Args:
        parent: See `card_facts`.
        change: False = leave the folder as it is: a copy in any case.

    Raises:
        ValueError: See `publish`; HubError: no room for a copy.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give one that a stage, or `spectrafm build`, has written.")
    if is_dataset(folder):
        yield folder, to if "/" in to else f"{to}/spectrafm-{folder.resolve().name}", "dataset"
        return
    record = _read(folder / "stage.json")
    repo = to if "/" in to else repository_of(to, record["stage"])
    # All that may be wrong is found before a copy is made: messages name the folder.
    facts, results = card_facts(folder, repo, parent), _read(folder / "results.json")
    check_checkpoint(str(folder), folder)
    with nullcontext(folder) if change and _may_be_changed(folder) else _copied(folder) as place:
        if next((place / "figures").glob("*.png"), None) is None:
            draw_learning_curve(record, place / "figures" / "learning_curve.png")
            facts["figures"] = _figures(place)
        write_card(place, results, facts)
        yield place, repo, "model"


def _may_be_changed(folder: Path) -> bool:
    """Whether a card can be written into a folder, which is none of this package's own."""
    changed = (folder, *(folder / name for name in ("README.md", "figures", EVAL_RESULTS)))
    own = folder.resolve().is_relative_to(Path(__file__).resolve().parent)
    return not own and all(os.access(path, os.W_OK) for path in changed if path.exists())


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    """What is published of a stage's folder, in another one of the same name that does not last.

    Raises:
        HubError: There is no room for it.
    """
    with tempfile.TemporaryDirectory(prefix="spectrafm-card-") as home:
        copy = Path(home) / folder.resolve().name
        found = {path for pattern in (*CHECKPOINT_FILES, *BESIDE) for path in folder.glob(pattern)}
        needed = (*CHECKPOINT_FILES, "stage.json")  # of other files a link is not followed, as in `hub.staged`
        try:
            for path in found:
                if not path.is_symlink() or path.name in needed:
                    to = copy / path.relative_to(folder)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
        except OSError as error:
            raise HubError(
                f"no copy of {folder} could be written to {tempfile.gettempdir()} ({error.strerror}). Nothing was "
                "sent; free some room, or set TMPDIR to a larger disk."
            ) from error
        yield copy


def what_goes(folder: Path, to: str) -> tuple[str, str, dict[str, int]]:
    """What `publish` would do: repository, its kind (`model` or `dataset`), and path in it -> size in bytes.

    The folder stays as it is.

    Raises:
        ValueError: See `publish`.
    """
    with prepared(folder, to, change=False) as (place, repo, kind), staged(place, repo) as files:
        return repo, kind, {name: path.stat().st_size for name, path in files.items()}


def publish(folder: Path, to: str, private: bool = True, parent: Pushed | None = None) -> Pushed:
    """Push a finished stage - model, extractor, code, card, results - or a built dataset.

    A stage goes into the namespace's Collection too. Its folder keeps the card, and as what it was published, unless it
    cannot be written, or is one of this package's own.

    Args:
        folder: Of the stage, see `stages.run_stage`; or of `spectrafm build`.
        to: `namespace` (user or organisation on the Hub), or `namespace/name`.
        private: Of a new repository and Collection.
        parent: See `card_facts`.

    Raises:
        ValueError: The stage is not done, or its card lacks something; HubError: see `hub.push`.
    """
    with prepared(folder, to, parent) as (place, repo, kind):
        pushed = push(place, repo, private)
    logger.info("%s is now %s at %s", folder.name, pushed.url, pushed.revision)
    if kind == "model":
        what = "Labels of stars from spectra: pre-trained on synthetic, then observed ones, then on a few stars."
        collect(repo.split("/")[0], COLLECTION, [pushed], private, what)
    return pushed


def _read(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); finish the stage first.") from error
    return told
