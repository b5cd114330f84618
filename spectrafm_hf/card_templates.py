"""Where cards find their templates and facts, and how they are rendered: a number that is missing is an error.

The files are package data in a wheel, and the folder `hub_cards` beside a checkout.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

REPO_OR_FOLDER = "REPO_OR_FOLDER"
"""What a card says of a folder that has no place on the Hub yet."""


def card_template(name: str = "model_card.md.jinja") -> str:
    """Text of a file of hub_cards, e.g. `dataset_card.md.jinja` or `datasets/miles.yaml`.

    Raises:
        FileNotFoundError: It is in neither place.
    """
    places = resources.files(__package__) / "hub_cards" / name, Path(__file__).parent.parent / "hub_cards" / name
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(f"no template {name} in {' or '.join(map(str, places))}; reinstall spectrafm_hf.")


def card_environment() -> Environment:
    """Jinja for all cards: what is undefined raises `jinja2.UndefinedError`; filters `count`, `number` and `cell`."""
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "number": number, "cell": cell}
    return environment


def name_repo(card: str, repo: str, revision: str | None = None) -> str:
    """A card that was rendered before its repository had a name, with the name in the blocks on how to use it.

    Args:
        card: Of a dataset that was built, or of a checkpoint that was converted.
        repo: Id on the Hub.
        revision: What the blocks pin, where they say `main` now and how to pin; None = that stays.

    Returns:
        The card; unchanged where it has a name already.
    """
    if revision is not None:
        card = card.replace(f'"{REPO_OR_FOLDER}", "main"', f'"{repo}", "{revision}"')
    return card.replace(REPO_OR_FOLDER, repo)


def count(value: int) -> str:
    """A count with thousands separated."""
    return f"{int(finite(value)):,}"


def number(value: float) -> str:
    """A number without needless digits, and never as 1e+05."""
    return f"{finite(value):.6g}"


def cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def finite(value: float | None, where: str = "") -> float:
    """The number itself.

    Raises:
        ValueError: It is none, or not finite.
    """
    if isinstance(value, str) or value is None or not math.isfinite(value):
        raise ValueError(f"{where}a card needs finite numbers, got {value!r}; look at results.json and at the facts.")
    return value
