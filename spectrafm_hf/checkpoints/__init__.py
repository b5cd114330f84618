"""The pre-trained model that ships with the package."""

from pathlib import Path

SHIPPED = ("spectrafm-small",)


def shipped(name: str = "spectrafm-small") -> Path:
    """The folder of a shipped checkpoint, for `from_pretrained`.

    Raises:
        ValueError: None of that name ships, or this installation lacks its weights.
    """
    folder = Path(__file__).parent / name
    if name not in SHIPPED or not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"no checkpoint {name!r} ships with this installation, only {', '.join(SHIPPED)}; "
            "give a folder or a Hub repository, or install the package again."
        )
    return folder


def is_shipped(name: str | None) -> bool:
    """Whether a recipe or a command means a shipped checkpoint, and not a folder of that name beside it."""
    return name in SHIPPED and not Path(str(name)).is_dir()
