"""Folders -> the Hub, whole or not at all; and back, at a pinned revision, with nothing of a repository executed.

A push uploads what the Hub does not have yet and then makes one commit on top of the one it saw at its start. What is
visible on `main` is therefore always a whole version: a push that is killed, or refused half-way, changes nothing
there, and the next one sends only what is missing.
"""

from __future__ import annotations

import json
import logging
import shutil
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoModel
from yaml import YAMLError

from .applicability import FILE_NAME as LIMITS
from .card_templates import name_repo
from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .pipeline_spectrafm import PIPELINE, StellarLabelsPipeline

logger = logging.getLogger(__name__)

PUSHED_FILE = "pushed.json"
"""Stays in the folder: to which repository it went, and as which commit."""

WEIGHTS, CONFIG, EXTRACTOR = "model.safetensors", "config.json", "preprocessor_config.json"
CHECKPOINT_FILES = (CONFIG, EXTRACTOR, WEIGHTS)
BESIDE = (
    LIMITS, "README.md", "report.md", "results.json", "stage.json", "label_tie.json", "figures/*.png",
    ".eval_results/*.yaml",
)  # fmt: skip
"""What of a stage's folder is published beside the checkpoint itself; nothing else is."""
DATASET_FILES = ("README.md", "*.json", "*.csv", "**/*.parquet")

AUTO_CLASSES: dict[str, Any] = {
    "AutoConfig": SpectraFMConfig,
    "AutoModel": SpectraFMForLabelPrediction,
    "AutoFeatureExtractor": SpectraFMFeatureExtractor,
}
"""Whose code travels with a checkpoint."""


def _as_in_config(kind: type) -> str:
    """How a config.json names a class that lies beside it: `module.Class`."""
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


CODE_THAT_RUNS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".npy", ".dill")
"""Opening one of these may run whatever it holds."""
NEVER_OPENED = ("training_args.bin",)
"""A stock `Trainer` leaves it in every repository; nobody here reads it."""

OTHER_CARD = ".huggingface.yaml"
"""`datasets` reads it beside README.md."""

LARGEST_HEADER = 2_000_000
"""Bytes of the header of safetensors; ours have about 30 kB."""

LARGEST_TEXT = 50_000_000
"""Bytes of any other file of a checkpoint; ours have up to 300 kB."""

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 60.0
"""Tries of one push, and seconds between them: doubled each time, or what the server asks for."""

PASSING = (408, 429, 500, 502, 503, 504)
"""HTTP answers that another try may cure."""


class HubError(OSError):
    """Something on the way to the Hub went wrong; the message says what happened and what to do."""


@dataclass(frozen=True)
class Pushed:
    """One version on the Hub.

    Attributes:
        repo_id: E.g. `astro/spectrafm-1-synthetic`.
        revision: Commit that `main` has now.
        url: For people.
    """

    repo_id: str
    revision: str
    url: str


# ---------------------------------------------------------------- a folder as it goes to the Hub


@contextmanager
def travelling_code() -> Iterator[None]:
    """`save_pretrained` inside copies the code along: a checkpoint then loads where this package is not installed."""
    reader: Any = StellarLabelsPipeline
    before = {kind: kind._auto_class for kind in AUTO_CLASSES.values()}
    registered = getattr(reader, "_registered_impl", None)
    try:
        for auto_class, kind in AUTO_CLASSES.items():
            kind.register_for_auto_class(auto_class)
        reader._registered_impl = {PIPELINE: {"impl": reader, "pt": (AutoModel,)}}
        yield
    finally:
        for kind, auto_class in before.items():
            kind._auto_class = auto_class
        reader._registered_impl = registered


def save_portable(model: SpectraFMForLabelPrediction, extractor: SpectraFMFeatureExtractor, folder: Path) -> None:
    """Model, extractor and the code of both and of the pipeline: what anybody with transformers can load.

    Args:
        folder: Made if it is not there. Its weights are those of the model, bit for bit.
    """
    with travelling_code():
        StellarLabelsPipeline(model=model, feature_extractor=extractor).save_pretrained(folder)
    for told in (model.config, extractor):  # saved elsewhere, the code would not be there
        for name in ("auto_map", "custom_pipelines"):
            told.__dict__.pop(name, None)


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a dataset; a checkpoint has a config.json."""
    return not (folder / CONFIG).is_file() and next(folder.glob("**/*.parquet"), None) is not None


@contextmanager
def staged(folder: str | Path, repo_id: str | None = None) -> Iterator[dict[str, Path]]:
    """A folder as the Hub will have it: path in the repository -> file on this disk.

    Args:
        folder: See `push`.
        repo_id: Where it goes; the code in a dataset's card then says so.

    Raises:
        ValueError: It holds neither a checkpoint nor a dataset, or no card.
        OSError: No room for a copy of the checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give one that a stage, or `spectrafm build`, has written.")
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md; nothing goes to the Hub without a card.")
    with tempfile.TemporaryDirectory(prefix="spectrafm-push-") as copy:
        if is_dataset(folder):
            card = Path(copy) / "README.md"
            text = (folder / "README.md").read_text()
            card.write_text(text if repo_id is None else name_repo(text, repo_id))
            yield _matching(folder, DATASET_FILES) | {"README.md": card}
            return
        loaded = load_pretrained(folder)
        try:
            save_portable(*loaded, Path(copy))
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(tempfile.gettempdir()).free / 1e6
            raise HubError(
                f"no copy of {folder} could be written to {tempfile.gettempdir()} ({free:.0f} MB free): "
                f"{' '.join(str(error).split())}. Nothing was sent; free some, or set TMPDIR to a larger disk."
            ) from error
        files = _matching(Path(copy), ("**/*",)) | _matching(folder, BESIDE)
        yield files


def _matching(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()}
    return {path.relative_to(folder).as_posix(): path for path in sorted(found) if path.name != PUSHED_FILE}


# ---------------------------------------------------------------- to the Hub


def push(
    folder: str | Path, repo_id: str, private: bool = True, message: str | None = None, parent_commit: str | None = None
) -> Pushed:
    """Publish a checkpoint or a dataset, in one commit.

    Files of the version before that this one lacks go; what is of no kind that we publish (a licence, notes) stays.

    Args:
        folder: Of a stage, or of `spectrafm build`, with its README.md.
        repo_id: `namespace/name`; made if it is not there.
        private: Of a new repository; an old one stays what it is.
        message: Of the commit.
        parent_commit: The commit of `main` that this one must follow; None = the one it has at the start.

    Returns:
        The version that `main` has then; the old one if nothing differs.

    Raises:
        ValueError: See `staged`; or a file that holds your token.
        HubError: No or a refused token, no right to write, somebody else's commit in between, a server that does not
            recover; nothing of this push is visible then, and the same command goes on where it was.
    """
    api = HfApi()
    with staged(folder, repo_id) as files, explained(f"pushing {folder} to {repo_id}", sends=True):
        check_token(files)
        kind = "dataset" if is_dataset(Path(folder)) else "model"
        attempt(lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True))
        there: Any = attempt(lambda: api.repo_info(repo_id, repo_type=kind))
        parent, mark = parent_commit or there.sha, f"push {uuid.uuid4()}"
        ours = DATASET_FILES if kind == "dataset" else (*CHECKPOINT_FILES, *BESIDE)
        old = [entry.rfilename for entry in there.siblings or () if entry.rfilename not in files]
        old = [name for name in old if any(PurePosixPath(name).match(pattern) for pattern in ours)]
        size = sum(path.stat().st_size for path in files.values())
        logger.info("pushing %d files, %.1f MB, to %s", len(files), size / 1e6, repo_id)
        for name in old:
            logger.info("removing %s, which %s no longer has", name, folder)
        tries = 0

        def commit() -> str:
            nonlocal tries
            tries += 1
            # The answer to the try before may have been lost on the way, and not the commit.
            if tries > 1 and mark in (newest := api.list_repo_commits(repo_id, repo_type=kind)[0]).message:
                return newest.commit_id
            operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
            operations += [CommitOperationDelete(name, is_folder=False) for name in sorted(old)]
            said = message or f"{Path(folder).resolve().name}: {len(files)} files"
            try:
                return api.create_commit(
                    repo_id,
                    operations,
                    commit_message=said,
                    commit_description=mark,
                    repo_type=kind,
                    parent_commit=parent,
                ).oid
            except RuntimeError as error:  # the client wraps what befell an upload
                if isinstance(error.__cause__, HfHubHTTPError | httpx2.TransportError):
                    raise error.__cause__ from None
                raise

        done = attempt(commit)
    pushed = Pushed(repo_id, done, f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}")
    try:
        (Path(folder) / PUSHED_FILE).write_text(json.dumps(asdict(pushed), indent=1) + "\n")
    except OSError as error:  # it is on the Hub all the same
        logger.warning("%s cannot be written to (%s), so that it does not tell: %s", folder, error.strerror, pushed.url)
    return pushed


def read_pushed(folder: Path) -> Pushed | None:
    """The version as which a folder was pushed last; None if it never was."""
    try:
        return Pushed(**json.loads((folder / PUSHED_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def collect(namespace: str, title: str, pushed: Sequence[Pushed], private: bool = True, description: str = "") -> str:
    """Put models into one Collection of a namespace, in their order; returns its slug. Twice does nothing twice.

    Raises:
        HubError: See `push`.
    """
    api = HfApi()
    with explained(f"collecting {title!r} of {namespace}"):
        collection = attempt(
            lambda: api.create_collection(
                title, namespace=namespace, description=description[:150] or None, private=private, exists_ok=True
            )
        )
        for one in pushed:
            attempt(partial(api.add_collection_item, collection.slug, one.repo_id, "model", exists_ok=True))
    return collection.slug


def check_token(files: dict[str, Path]) -> None:
    """Refuse to publish a file that holds the token with which it would be published.

    Raises:
        ValueError: Names the file, and not the token.
    """
    if token := (get_token() or "").encode():
        for name, path in files.items():
            if path.suffix in (".json", ".md", ".py", ".yaml", ".csv") and token in path.read_bytes():
                raise ValueError(f"{name} holds your Hub token; take it out (and make a new one) before you publish.")


Result = TypeVar("Result")


def attempt(action: Callable[[], Result], tries: int | None = None) -> Result:
    """Do it, again after a passing fault of the server or of the line.

    Args:
        tries: At most; None = `ATTEMPTS`.

    Raises:
        The last fault, when so many tries did not help; any other one at once.
    """
    wait, tries = FIRST_WAIT, tries or ATTEMPTS
    for number in range(1, tries + 1):
        try:
            return action()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if number == tries or (status is not None and status not in PASSING):
                raise
            asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
            pause = min(float(asked) if asked.isdigit() else wait, LONGEST_WAIT)
            said = f"answered {status}" if status else f"did not answer ({type(error).__name__})"
            logger.warning("the Hub %s; try %d of %d in %.0f s", said, number + 1, tries, pause)
            time.sleep(pause)
            wait *= 2
    raise AssertionError("unreachable")


@contextmanager
def explained(what: str, sends: bool = False) -> Iterator[None]:
    """Faults of the Hub in words of what was to be done; no token, no address with one, is in them.

    Raises:
        HubError: See the class.
    """
    nothing = "nothing of it is visible on main; the same command goes on where it was" if sends else "try again later"
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError(
            f"{what}: no Hub token on this machine; log in with `hf auth login`, or set HF_TOKEN."
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise HubError(f"{what}: not in the cache, and the Hub cannot be reached (HF_HUB_OFFLINE?).") from error
    except GatedRepoError as error:
        raise HubError(f"{what}: the repository is gated; ask for access on its page.") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{what}: the repository has no such revision.") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{what}: no such repository, or it is private and your token may not read it; look at its name and at "
            "`hf auth whoami`."
        ) from error
    except HFValidationError as error:
        raise HubError(f"{what}: {' '.join(str(error).split())}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = {
            401: "your Hub token is not valid (expired or revoked?); log in again with `hf auth login`",
            403: "your Hub token may not write there; look at the namespace and at the token's rights",
            412: "somebody else changed main meanwhile; look at what came, then push again to put yours on top of it",
            413: "the Hub refuses files of this size",
            429: "the Hub asks for patience (429, too many requests); try again in some minutes",
            507: "the Hub has no room for it (507)",
        }.get(status, f"the Hub answered {status}")
        raise HubError(f"{what}: {said}; {nothing}.") from error
    except httpx2.TransportError as error:
        raise HubError(f"{what}: the connection broke ({type(error).__name__}); {nothing}.") from error


# ---------------------------------------------------------------- from the Hub


def revision_of(name: str, revision: str | None = None, kind: str = "model") -> str | None:
    """The commit that a branch or tag of a repository is now; None for a folder on this disk.

    A commit stays what it is. Offline, or with the server away, the one in the cache counts.

    Raises:
        HubError: No such repository or revision, or it is neither reachable nor in the cache.
    """
    return None if Path(name).is_dir() else _look(name, revision, kind)[0]


def _look(name: str, revision: str | None, kind: str) -> tuple[str, dict[str, int] | None]:
    """Commit of a repository, and its files with their sizes, bytes; None where the Hub cannot be reached and the cache
    has to do.

    Raises:
        HubError: See `revision_of`.
    """
    with explained(f"looking up {name}" + (f" at {revision}" if revision else "")):
        validate_repo_id(name)
        try:
            info: Any = attempt(
                lambda: HfApi().repo_info(name, revision=revision, repo_type=kind, files_metadata=True), tries=2
            )
            return info.sha, {entry.rfilename: entry.size or 0 for entry in info.siblings}
        except (OfflineModeIsEnabled, httpx2.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            logger.warning("the Hub cannot be reached: taking %s from the cache", name)
            there = snapshot_download(
                name, revision=revision, repo_type=kind, local_files_only=True, allow_patterns=["README.md"]
            )
            return Path(there).name, None


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: itself, or a repository's files in the cache, looked through before.

    Args:
        name: A folder, or a repository on the Hub.
        revision: Branch, tag or commit of the repository.

    Raises:
        ValueError: It holds what no checkpoint of ours has, see `check_names` and `check_checkpoint`.
        HubError: It cannot be had.
    """
    folder = Path(name)
    if not folder.is_dir():
        commit, names = _look(name, revision, "model")
        check_names(name, list(names or ()))
        wanted = [*CHECKPOINT_FILES, LIMITS, "label_tie.json", "stage.json", "results.json", "README.md"]
        for file, size in (names or {}).items():
            if file in wanted and file != WEIGHTS and size > LARGEST_TEXT:
                raise ValueError(
                    f"{name}: {file} has {size:,} bytes, at most {LARGEST_TEXT:,} are fetched; it is no file of ours."
                )
        with explained(f"fetching {name} at {commit}"):
            # By the name that was asked for, which the cache then knows offline too.
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=names is None)
            )
        if folder.name != commit:
            return fetch(name, folder.name)  # somebody pushed meanwhile: that version was not looked through
    check_checkpoint(name, folder)
    return folder


def check_names(repository: str, names: Sequence[str]) -> None:
    """Refuse a repository whose files reach out of it, or whose weights are programs.

    Raises:
        ValueError: Names the file and what is wrong with it.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise ValueError(
                f"{repository} has a file {name!r} that points outside of the repository; it is refused whole."
            )
        if path.suffix.lower() in CODE_THAT_RUNS and path.name not in NEVER_OPENED:
            raise ValueError(
                f"{repository} has {name}, a format that runs code when it is opened; only safetensors are accepted. "
                "Ask its author for a checkpoint without it."
            )


def check_dataset(name: str, revision: str | None = None) -> None:
    """Refuse a dataset whose card points at files outside of it.

    Raises:
        ValueError: See `check_names` and `check_data_files`.
    """
    folder, commit = Path(name), revision
    if folder.is_dir():
        files: list[str] | None = [path.name for path in folder.iterdir()]
    else:
        commit, sizes = _look(name, revision, "dataset")
        files = None if sizes is None else list(sizes)
        check_names(name, files or ())
    if OTHER_CARD in (files or ()):
        raise ValueError(f"{name} has a {OTHER_CARD}, which no dataset of ours has, and which may point anywhere.")
    if folder.is_dir():
        card = folder / "README.md"
    elif files is None or "README.md" in files:
        with explained(f"reading the card of {name}"):
            card = Path(
                attempt(
                    lambda: hf_hub_download(
                        name, "README.md", revision=commit, repo_type="dataset", local_files_only=files is None
                    )
                )
            )
    else:
        return
    check_data_files(name, card.read_text() if card.is_file() else "")


def check_data_files(name: str, card: str) -> None:
    """Refuse data files in a card's YAML that are not files of its own folder.

    Raises:
        ValueError: Names the first such file.
    """
    try:
        configs = DatasetCard(card, ignore_metadata_errors=True).data.to_dict().get("configs") or []
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{name}: the metadata of README.md is no valid YAML.") from error
    configs = [config for config in configs if isinstance(config, dict)]
    told: list[Any] = [config.get(key) for config in configs for key in ("data_files", "data_dir")]
    while told:
        entry = told.pop()
        if isinstance(entry, list | tuple):
            told += entry
        elif isinstance(entry, dict):
            told += [entry.get("path", list(entry.values()))]
        elif isinstance(entry, str) and (
            "://" in entry or "\\" in entry or PurePosixPath(entry).is_absolute() or ".." in PurePosixPath(entry).parts
        ):
            raise ValueError(f"{name}: README.md names data files outside of the dataset ({entry!r}); it is refused.")


def check_checkpoint(name: str, folder: Path) -> None:
    """Look through a checkpoint's files before anything is built from them; nothing is imported or unpickled.

    Raises:
        ValueError: A file is missing, is no JSON, names code that is not ours, or its weights are not safetensors.
    """
    if missing := [file for file in CHECKPOINT_FILES if not (folder / file).is_file()]:
        raise ValueError(
            f"{name} is no SpectraFM checkpoint: it lacks {', '.join(missing)} (weights as safetensors; pickled ones "
            "are not opened)."
        )
    config, extractor = (_json(name, folder / file) for file in (CONFIG, EXTRACTOR))
    if config.get("model_type") != SpectraFMConfig.model_type:
        raise ValueError(
            f"{name} is a model of type {config.get('model_type')!r}, not {SpectraFMConfig.model_type!r}; AutoModel "
            "may load it, this package does not."
        )
    our_code = {name: _as_in_config(kind) for name, kind in AUTO_CLASSES.items()}
    for file, told in ((CONFIG, config), (EXTRACTOR, extractor)):
        foreign = _foreign(told.get("auto_map"), lambda key, value: value == our_code.get(key))
        foreign += _foreign(
            told.get("custom_pipelines"),
            lambda key, value: isinstance(value, dict) and value.get("impl") == _as_in_config(StellarLabelsPipeline),
        )
        if foreign:
            raise ValueError(
                f"{name}: {file} names code that is not SpectraFM's ({', '.join(foreign)}); none of it was run. If you "
                "trust its author, load it with AutoModel and trust_remote_code=True, at a pinned revision."
            )
    for key in ("attn_implementation", "_attn_implementation"):
        if config.get(key) not in (None, "eager", "sdpa", "cache_sized"):
            raise ValueError(f"{name}: {CONFIG} asks for the attention kernel {config[key]!r}; it was not fetched.")
    if config.get("quantization_config"):
        raise ValueError(f"{name}: {CONFIG} asks for quantised weights, which this package does not read.")
    for file in (WEIGHTS, LIMITS):
        if (folder / file).is_file():
            check_header(name, folder / file)


def _foreign(told: Any, is_ours: Callable[[Any, Any], bool]) -> list[str]:
    """What of a table of names of code is not ours; a table that is none at all is not ours either."""
    if not told:
        return []
    if not isinstance(told, dict):
        return [str(told)]
    return [str(value) for key, value in told.items() if not is_ours(key, value)]


def check_header(name: str, weights: Path) -> None:
    """Refuse safetensors with a header that is larger than the file, or than any of ours, or not JSON.

    Raises:
        ValueError: See above.
    """
    size = weights.stat().st_size
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ValueError(
                f"{name}: {weights.name} claims a header of {length:,} bytes in a file of {size:,}; at most "
                f"{LARGEST_HEADER:,} are read. The file is damaged, or made to exhaust memory."
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{name}: {weights.name} is not safetensors: its header is no JSON.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{name}: {weights.name} is not safetensors: its header is no table of tensors.")


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{name}: {path.name} is no JSON ({error}).") from error
    if not isinstance(told, dict):
        raise ValueError(f"{name}: {path.name} must hold a JSON object, got {type(told).__name__}.")
    return told


def load_pretrained(
    name: str | Path, revision: str | None = None
) -> tuple[SpectraFMForLabelPrediction, SpectraFMFeatureExtractor]:
    """A checkpoint's model and extractor, by the code of this package alone.

    Args:
        name: A folder, or a repository on the Hub.
        revision: Branch, tag or commit of the repository.

    Raises:
        ValueError: See `fetch`, or the files do not fit each other; HubError: it cannot be had.
    """
    folder = fetch(str(name), revision)
    try:
        loaded: Any = SpectraFMForLabelPrediction.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
        model, loading = loaded
        extractor = SpectraFMFeatureExtractor.from_pretrained(folder)
    except (SafetensorError, StrictDataclassError, ImportError, TypeError, RuntimeError, struct.error) as error:
        raise ValueError(f"{name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, loading.get(kind) or ())):
            raise ValueError(
                f"{name}: its weights do not fit its config.json ({kind.replace('_', ' ')}: {', '.join(keys[:3])}"
                f"{', ...' if len(keys) > 3 else ''}); it would answer with random numbers."
            )
    return model, extractor
