"""A build -> the README.md that the Hub shows and `load_dataset` reads.

Counts come from the build, the rest from hub_cards/datasets/<name>.yaml; what is missing stops the rendering.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from huggingface_hub import DatasetCardData

from ..card_templates import REPO_OR_FOLDER, card_environment, card_template
from .rows import FLUX, WavelengthGrid

if TYPE_CHECKING:
    from .build import Build

GRID_CONFIG = "wavelength_grid"

REQUIRED = ("pretty_name", "license", "summary", "origin", "flux", "faults", "citations", "tags")
"""Facts every dataset must have; see any file of hub_cards/datasets."""

SPLITS_NOTE = (
    "A star's split is a function of its name (SHA-256 of its system's name: 60 % train, 10 % validation, 30 % test), "
    "so it keeps it for ever, in every library and for every visit. Stars within 1 arcsec of each other share a split."
)

OPTIONAL: dict[str, Any] = {
    "license_name": None,
    "license_link": None,
    "license_note": "",
    "bibtex": "",
    "mmu_note": "",
    "splits_note": SPLITS_NOTE,
}

SKIPPED_SHOWN = 20
"""Skipped inputs listed in the card; all are in skipped.csv."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def load_facts(dataset: str) -> dict[str, Any]:
    """Facts of a dataset.

    Raises:
        ValueError: There is no such dataset, or a fact is missing or unknown.
    """
    try:
        facts = yaml.safe_load(card_template(f"datasets/{dataset}.yaml"))
    except FileNotFoundError as error:
        raise ValueError(f"no facts about a dataset {dataset!r} in hub_cards/datasets.") from error
    return check_facts(facts, dataset)


def check_facts(facts: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Facts with defaults for what may be left out.

    Raises:
        ValueError: One is missing or unknown.
    """
    if absent := [name for name in REQUIRED if not facts.get(name)]:
        raise ValueError(f"the card of {dataset} needs the facts {', '.join(absent)} too.")
    for name in facts:
        if name not in REQUIRED and name not in OPTIONAL:
            meant = difflib.get_close_matches(name, [*REQUIRED, *OPTIONAL], n=1)
            raise ValueError(f"the card of {dataset} knows no fact {name!r}" + (f"; {meant[0]}?" if meant else "."))
    return {**OPTIONAL, **facts}


def size_category(rows: int) -> str:
    """As the Hub writes it."""
    return next((name for limit, name in _SIZES if rows < limit), "1M<n<10M")


def render_dataset_card(build: Build, facts: Mapping[str, Any]) -> str:
    """The README.md of a dataset.

    Args:
        build: Finished, but for the card.
        facts: See `load_facts`.

    Returns:
        YAML metadata (configs, dataset_info) and Markdown.

    Raises:
        ValueError: A fact is missing.
        jinja2.UndefinedError: Anything else that the template asks for is missing; the message names it.
    """
    facts = check_facts(facts, build.dataset)
    infos = _infos(build)
    environment = card_environment()
    environment.filters["megabytes"] = _megabytes
    first = next(iter(build.plans))
    layout = build.plans[first].layout
    return environment.from_string(card_template("dataset_card.md.jinja")).render(
        card_data=_metadata(build, facts, infos),
        facts=facts,
        dataset=build.dataset,
        default=first,
        split=next(split for split in build.plans[first].splits if build.rows(first, split)),
        placeholder=REPO_OR_FOLDER,
        configs=[_config(build, name) for name in build.plans],
        columns=[
            {
                "name": column.name,
                "type": f"list of {column.dtype}" if column.per_pixel else column.dtype,
                "unit": column.unit,
                "meaning": facts["flux"] if column is FLUX else column.meaning,
            }
            for column in layout.columns
        ],
        grid=_grid(next((plan.grid for plan in build.plans.values() if plan.grid is not None), None)),
        n_pixels=layout.n_pixels,
        audit=str(build.audit),
        skipped=[{"config": config, "file": one.file, "reason": one.reason} for config, one in build.skipped],
        skipped_shown=SKIPPED_SHOWN,
        splits=list(build.plans[first].splits),
    )


def _config(build: Build, name: str) -> dict[str, Any]:
    plan = build.plans[name]
    shards = [shard for shard in build.shards if shard.config == name]
    return {
        "name": name,
        "splits": [
            {
                "name": split,
                "rows": build.rows(name, split),
                "files": sum(shard.split == split for shard in shards),
                "size": sum(shard.size for shard in shards if shard.split == split),
            }
            for split in plan.splits
        ],
        "report": None if plan.report is None else plan.report.to_dict(),
        "skipped": sum(config == name for config, _ in build.skipped),
    }


def _grid(grid: WavelengthGrid | None) -> dict[str, Any] | None:
    if grid is None:
        return None
    return {
        "n_pixels": grid.wavelength.size,
        "first": f"{grid.wavelength[0]:.2f}",
        "last": f"{grid.wavelength[-1]:.2f}",
        "resolving_power": None if grid.resolving_power is None else f"{grid.resolving_power:,.0f}",
        "lsf_sigma": None if grid.lsf_sigma is None else f"{float(grid.lsf_sigma[grid.lsf_sigma.size // 2]):.3f}",
    }


def _infos(build: Build) -> dict[str, DatasetInfo]:
    """Config name -> features, and rows and bytes per split."""
    infos = {}
    for name in dict.fromkeys(shard.config for shard in build.shards):
        splits = SplitDict()
        mine = [shard for shard in build.shards if shard.config == name]
        for split in dict.fromkeys(shard.split for shard in mine):
            chosen = [shard for shard in mine if shard.split == split]
            splits[split] = SplitInfo(split, sum(s.num_bytes for s in chosen), sum(s.rows for s in chosen))
        if name == GRID_CONFIG:
            grid = next(plan.grid for plan in build.plans.values() if plan.grid is not None)
            features = Features.from_arrow_schema(grid.table().schema)
        else:
            features = build.plans[name].layout.features
        infos[name] = DatasetInfo(
            features=features,
            splits=splits,
            download_size=sum(shard.size for shard in mine),
            dataset_size=sum(shard.num_bytes for shard in mine),
        )
    return infos


def _metadata(build: Build, facts: Mapping[str, Any], infos: Mapping[str, DatasetInfo]) -> str:
    """YAML head: with it `load_dataset` has nothing to guess."""
    default = next(iter(build.plans))
    optional = {key: facts[key] for key in ("license_name", "license_link") if facts[key]}
    data = DatasetCardData(
        license=facts["license"],
        pretty_name=facts["pretty_name"],
        tags=list(facts["tags"]),
        task_categories=["tabular-regression"],
        size_categories=size_category(sum(build.rows(default, split) for split in build.plans[default].splits)),
        configs=[
            {
                "config_name": name,
                **({"default": True} if name == default else {}),
                "data_files": [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in info.splits],
            }
            for name, info in infos.items()
        ],
        dataset_info=[{"config_name": name, **info._to_yaml_dict()} for name, info in infos.items()],
        **optional,
    )
    return data.to_yaml()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
