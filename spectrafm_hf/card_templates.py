"""Where cards find their templates and facts: package data in a wheel, the folder `hub_cards` beside a checkout."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


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
