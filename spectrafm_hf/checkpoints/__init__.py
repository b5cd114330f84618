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


def located(name: str) -> str:
    """A model as recipes and commands name it -> the same, a shipped one as its folder.

    A folder of that name beside it comes first.

    Raises:
        ValueError: See `shipped`.
    """
    return str(shipped(name)) if name in SHIPPED and not Path(name).is_dir() else name
