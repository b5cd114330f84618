"""Published checkpoint -> a folder that `AutoModel.from_pretrained` reads.

    python -m spectrafm_hf.convert_reference_checkpoint CHECKPOINT_FOLDER OUTPUT_FOLDER

The weights are those of Koblischke & Bovy (2024, arXiv 2411.04750): weights.pt, config.json and embed_map.npz of their
Zenodo record. The one place where a pickle is opened, as tensors and plain values only. Everything is checked before
anything is written, and what was written is read back before it gets its name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import ModelCardData
from torch import Tensor
from transformers.utils import logging

from .card_templates import card_environment, card_template
from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .labels import LABELS, get_label
from .model_card import PIPELINE_TAG
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .spectra import apogee_wavelength, pixel_edges

RECORD = "https://zenodo.org/records/14041360"
WEIGHTS, CONFIG, EMBED_MAP = FILES = "weights.pt", "config.json", "embed_map.npz"
FLUX_RANGE = (0.05, 1.2)
LARGEST_SCALED = 10.0
PIXELS = tuple(f"syn_apogee{number}" for number in range(apogee_wavelength().size))
"""Tokens of the pixels, in order of wavelength."""
LABEL_TOKENS = {label.apogee_column: label.name for label in LABELS}
NAMES_SHOWN = 5

Precision = Literal["exact", "published"]


@dataclass(frozen=True)
class Norms:
    """Subtracted, then divided by; in the unit of the flux or of each label."""

    center: list[float]
    scale: list[float]


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A published checkpoint, checked.

    Attributes:
        weights: Published name -> tensor, float32, all finite.
        label_names: Our names, in the checkpoint's order.
        flux_row: Row of the embedding that all pixels share.
        label_rows: Rows of the labels, in the order of `label_names`.
        flux_norms: One entry per pixel of `apogee_wavelength`.
        label_norms: One entry per label; K and dex.
        context_length: Pixels that the network saw at once.
        dropout: Of its training.
        epoch: Of its training.
        sha256: Of weights.pt.
    """

    weights: Mapping[str, Tensor]
    label_names: tuple[str, ...]
    flux_row: int
    label_rows: tuple[int, ...]
    flux_norms: Norms
    label_norms: Norms
    context_length: int
    dropout: float
    epoch: int
    sha256: str


# ---------------------------------------------------------------- reading


def read_checkpoint(folder: Path) -> ReferenceCheckpoint:
    """Read the three files and check all they say.

    Raises:
        FileNotFoundError: One of the three is missing.
        ValueError: Anything in them is not as published, or not what our model can say; the message says what.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} must hold {', '.join(FILES)}, but {name} is missing. The three belong together and are in "
                f"the record {RECORD}; {EMBED_MAP} may lie one folder up."
            )
    config = _read_json(folder / CONFIG)
    context_length, dropout = _check_architecture(_part(config, "nn_config"))
    tokens = _check_vocabulary(_part(config, "tokenizer_config"))
    columns = [name for name in tokens if name in LABEL_TOKENS]
    pixel_tokens, label_tokens = ([tokens[name] for name in names] for names in (PIXELS, columns))
    norms = _part(config, "norm_config")
    flux_norms, label_norms = _check_norms(norms, len(tokens) + 1, pixel_tokens, label_tokens)
    rows = _check_embed_map(_read_embed_map(folder / EMBED_MAP), len(tokens) + 1)
    flux_row, label_rows = _check_rows(rows, pixel_tokens, dict(zip(columns, label_tokens, strict=True)))
    weights, epoch = _read_weights(folder / WEIGHTS)
    _check_weights(weights, _shapes(len(tokens) + 1, len(columns)))
    with (folder / WEIGHTS).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return ReferenceCheckpoint(
        weights=weights,
        label_names=tuple(LABEL_TOKENS[column] for column in columns),
        flux_row=flux_row,
        label_rows=label_rows,
        flux_norms=flux_norms,
        label_norms=label_norms,
        context_length=context_length,
        dropout=dropout,
        epoch=epoch,
        sha256=sha256,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); get it again from {RECORD}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold nn_config, tokenizer_config and norm_config, got {type(content).__name__}.")
    return content


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"{CONFIG} must hold {name} with its entries, got {_some(config)}.")
    return part


def _check_architecture(nn_config: Mapping[str, Any]) -> tuple[int, float]:
    """Context length and dropout of a network of the published architecture."""
    ours = SpectraFMConfig.paper()
    wanted = {
        "embedding_dim": ours.hidden_size,
        "encoder_head_num": ours.encoder_heads[0],
        "encoder_dense_num": ours.encoder_sizes[0],
        "decoder_head_num": ours.decoder_heads[0],
        "decoder_dense_num": ours.decoder_sizes[0],
        **{f"{part}_activation": ours.hidden_act for part in ("embedding", "encoder", "decoder")},
    }
    rates = ("encoder_dropout_rate", "decoder_dropout_rate")
    if absent := [name for name in ("context_length", *wanted, *rates) if name not in nn_config]:
        raise ValueError(f"nn_config in {CONFIG} lacks {_some(absent)}; get the file again from {RECORD}.")
    if other := [name for name in wanted if nn_config[name] != wanted[name]]:
        raise ValueError(
            f"only the published architecture can be converted: {CONFIG} must have "
            f"{', '.join(f'{name} {wanted[name]}' for name in other)}, got "
            f"{', '.join(repr(nn_config[name]) for name in other)}. Another network needs training anew."
        )
    length = nn_config["context_length"]
    if type(length) is not int or length < 1:
        raise ValueError(f"context_length in {CONFIG} must be a number of pixels, got {length!r}.")
    dropout = [nn_config[name] for name in rates]
    if not all(isinstance(rate, int | float) and 0 <= rate < 1 for rate in dropout) or len(set(dropout)) > 1:
        raise ValueError(
            f"{' and '.join(rates)} must be one number from 0 to 1, since our encoder and decoder share it, got "
            f"{dropout[0]!r} and {dropout[1]!r}. No prediction depends on it: choose one in {CONFIG}."
        )
    return length, float(dropout[0])


def _check_vocabulary(tokenizer_config: Mapping[str, Any]) -> dict[str, int]:
    """Names of tokens in the file's order -> their numbers, 1 to n."""
    names, numbers = (tokenizer_config.get(part) for part in ("vocabs", "vocab_tokens"))
    if not isinstance(names, list) or not isinstance(numbers, list) or len(names) != len(numbers):
        counts = [len(part) if isinstance(part, list) else None for part in (names, numbers)]
        raise ValueError(f"vocabs and vocab_tokens must be two lists of one length, got {counts[0]} and {counts[1]}.")
    known = {*PIXELS, *LABEL_TOKENS}
    if unknown := [name for name in names if not isinstance(name, str) or name not in known]:
        raise ValueError(
            f"vocabs has {_some(unknown)}, which this converter cannot place: it knows the pixels {PIXELS[0]} to "
            f"{PIXELS[-1]} of APOGEE, whose wavelengths are fixed, and the labels {', '.join(LABEL_TOKENS)}. Other "
            "pixels would need wavelengths, other labels a unit (spectrafm_hf/labels.py)."
        )
    if repeated := _repeated(names):
        raise ValueError(f"every name in vocabs must be there once, got twice: {_some(repeated)}.")
    there = set(names)
    if absent := [name for name in PIXELS if name not in there]:
        raise ValueError(f"vocabs must name all {len(PIXELS)} pixels of APOGEE, {_some(absent)} missing.")
    if there.isdisjoint(LABEL_TOKENS):
        raise ValueError(f"vocabs names pixels alone; a label to be asked for is needed: {', '.join(LABEL_TOKENS)}.")
    wanted = range(1, len(names) + 1)
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(wanted):
        odd = [number for number in numbers if type(number) is not int or number not in wanted] or _repeated(numbers)
        raise ValueError(f"vocab_tokens must be the numbers 1 to {len(names)}, each once, got {_some(odd)}.")
    return dict(zip(names, numbers, strict=True))


def _check_norms(
    norm_config: Mapping[str, Any], n_tokens: int, pixels: list[int], labels: list[int]
) -> tuple[Norms, Norms]:
    """Norms of these tokens; what was never standardised has centre 0 and scale 1. Entry 0, the padding, is ignored."""
    lists = []
    for name, kinds in (("_input_mean", (float, int)), ("_input_std", (float, int)), ("_input_standardized", (bool,))):
        values = norm_config.get(name)
        if not isinstance(values, list) or len(values) != n_tokens or not all(type(one) in kinds for one in values):
            came = f"{len(values)} entries" if isinstance(values, list) else type(values).__name__
            raise ValueError(
                f"{name} in norm_config must be a list of {n_tokens} {'booleans' if bool in kinds else 'numbers'}, one "
                f"per token and one for the padding, got {came}."
            )
        lists.append(np.array(values))
    center, scale, standardised = lists
    with np.errstate(invalid="ignore"):
        wrong = standardised & ~(np.isfinite(center) & np.isfinite(scale) & (scale > 0))
    wrong[0] = False
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"norms must be finite, and _input_std positive, got {center[first]} and {scale[first]} for token {first} "
            f"({int(wrong.sum())} such); get {CONFIG} again from {RECORD}."
        )
    center, scale = np.where(standardised, center, 0.0), np.where(standardised, scale, 1.0)
    flux, label = (Norms(center[tokens].tolist(), scale[tokens].tolist()) for tokens in (pixels, labels))
    return flux, label


def _read_embed_map(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Arrays `keys` and `values`; a pickled array in the file is refused, not opened."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["keys"], archive["values"]
    except Exception as error:  # strange bytes may raise anything
        raise ValueError(
            f"{path} must hold two arrays of whole numbers, keys and values ({type(error).__name__}: {error}). Object "
            f"arrays are pickles and are not opened. Get it again from {RECORD}."
        ) from error


def _check_embed_map(embed_map: tuple[np.ndarray, np.ndarray], n_tokens: int) -> np.ndarray:
    """Token -> row of the embedding, shape (n_tokens,)."""
    keys, values = embed_map
    if keys.ndim != 1 or keys.shape != values.shape or keys.dtype.kind not in "iu" or values.dtype.kind not in "iu":
        raise ValueError(
            f"keys and values in {EMBED_MAP} must be whole numbers, 1-D and of one length, got {keys.dtype} "
            f"{keys.shape} and {values.dtype} {values.shape}."
        )
    if sorted(keys.tolist()) != list(range(n_tokens)):
        absent = sorted(set(range(n_tokens)) - set(keys.tolist()))
        odd = sorted(set(keys.tolist()) - set(range(n_tokens))) or _repeated(keys.tolist())
        raise ValueError(
            f"keys in {EMBED_MAP} must be the tokens 0 to {n_tokens - 1}, each once; missing: {_some(absent)}; too "
            f"many: {_some(odd)}."
        )
    if ((values < 0) | (values >= n_tokens)).any():
        raise ValueError(
            f"values in {EMBED_MAP} must be rows 0 to {n_tokens - 1}, got {values.min()} to {values.max()}."
        )
    rows = np.empty(n_tokens, dtype=np.int64)
    rows[keys] = values
    return rows


def _check_rows(rows: np.ndarray, pixels: list[int], labels: Mapping[str, int]) -> tuple[int, tuple[int, ...]]:
    """The row that all pixels share, and those of the labels."""
    flux_rows = np.unique(rows[pixels])
    if flux_rows.size > 1:
        raise ValueError(
            f"all pixels must share one row of the embedding, got {flux_rows.size} in {EMBED_MAP}. Our model tells "
            "pixels apart by their wavelength alone, as the paper says, so it has one row for flux: a network whose "
            "pixels have rows of their own cannot be converted."
        )
    owners = {"padding": int(rows[0]), "flux": int(flux_rows[0])}
    owners |= {name: int(rows[token]) for name, token in labels.items()}
    if rows[0] != 0:
        raise ValueError(f"the padding (token 0) must have row 0 in {EMBED_MAP}, got {rows[0]}.")
    if shared := _repeated(owners.values()):
        which = [name for name, row in owners.items() if row in shared]
        raise ValueError(f"the padding, the flux and each label need rows of their own, but {', '.join(which)} share.")
    return owners["flux"], tuple(owners[name] for name in labels)


# ---------------------------------------------------------------- weights


def _read_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    """Published name -> tensor, without the `module.` of a distributed training; and the epoch."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # strange bytes may raise anything
        # Neither its words nor `from error`: torch goes on to recommend weights_only=False, which runs the code.
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values, so that opening it could run code "
            f"({type(error).__name__}); nothing of it was used. Get it again from {RECORD}."
        ) from None
    if not isinstance(content, dict) or not {"model_state_dict", "epoch"} <= content.keys():
        came = _some(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} must be a dictionary with model_state_dict and epoch, got {came}.")
    state, epoch = content["model_state_dict"], content["epoch"]
    if type(epoch) is not int or epoch < 0:
        raise ValueError(f"epoch in {WEIGHTS} must be a whole number, got {epoch!r}.")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"model_state_dict in {WEIGHTS} must map names to tensors, got {type(state).__name__}.")
    weights = {name.removeprefix("module."): value for name, value in state.items()}
    if len(weights) < len(state):
        raise ValueError(f"{WEIGHTS} has the same weights with and without the prefix `module.`; keep one of them.")
    return weights, epoch


def _check_weights(weights: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    if wanted.keys() != weights.keys():
        absent, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
        raise ValueError(
            f"{WEIGHTS} must have exactly the {len(wanted)} published weights; missing: {_some(absent)}; not known: "
            f"{_some(extra)}."
        )
    for name, shape in wanted.items():
        value = weights[name]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != torch.float32:
            came = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} in {WEIGHTS} must be torch.float32 {shape}, got {came}.")
    if broken := [name for name in wanted if not weights[name].isfinite().all()]:
        raise ValueError(
            f"all weights must be finite, got NaN or infinity in {_some(broken)}: a training that diverged, or a "
            "damaged file. Take another epoch."
        )
    if any(weights[name][0].any() for name in _EMBEDDING):
        raise ValueError(
            f"row 0 of {' and '.join(_EMBEDDING)} must be zeros, since the published network sees a missing pixel as a "
            "zero vector, and ours does too; got other numbers."
        )


_EMBEDDING = ("embedding_layer.embeddings", "embedding_layer.bias")


def _published_names(config: SpectraFMConfig) -> dict[str, tuple[str, ...]]:
    """Published weight -> our weights, which it holds one after the other; all but those of the embedding."""
    blocks = {
        f"torch_{part}.{part}_transformer_block_{number + 1}": f"{ours}.{number}"
        for part, ours, n_blocks in (
            ("encoder", "encoder.layers", len(config.encoder_heads)),
            ("decoder", "decoder_layers", len(config.decoder_heads)),
        )
        for number in range(n_blocks)
    }
    names: dict[str, tuple[str, ...]] = {}
    for theirs, ours in blocks.items():
        for kind in ("weight", "bias"):
            names[f"{theirs}.attention.in_proj_{kind}"] = tuple(f"{ours}.attention.{p}_proj.{kind}" for p in "qkv")
            names[f"{theirs}.attention.out_proj.{kind}"] = (f"{ours}.attention.o_proj.{kind}",)
            for dense in ("dense_1", "dense_2"):
                names[f"{theirs}.{dense}.{kind}"] = (f"{ours}.mlp.{dense}.{kind}",)
            for norm in ("layernorm_1", "layernorm_2"):
                names[f"{theirs}.{norm}.{kind}"] = (f"{ours}.{norm}.{kind}",)
        for short, long in (("bias_k", "learned_key"), ("bias_v", "learned_value")):
            names[f"{theirs}.attention.{short}"] = (f"{ours}.attention.{long}",)
    for kind in ("weight", "bias"):
        for number in range(len(config.head_sizes)):
            names[f"torch_decoder.decoder_dense_{number + 3}.{kind}"] = (f"head.dense.{number}.{kind}",)
        names[f"torch_decoder.decoder_out.{kind}"] = (f"head.mean_{kind}",)
        names[f"torch_decoder.decoder_logvar_out.{kind}"] = (f"head.log_var_{kind}",)
    return names


def _shapes(n_tokens: int, n_labels: int) -> dict[str, tuple[int, ...]]:
    """Published weight -> shape; read off our model, which is what the weights must fit into."""
    config = SpectraFMConfig.paper(label_names=[label.name for label in LABELS][:n_labels])
    with torch.device("meta"):
        state = SpectraFMForLabelPrediction(config).state_dict()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_EMBEDDING, (n_tokens, config.hidden_size))
    for theirs, ours in _published_names(config).items():
        first, *rest = state[ours[0]].shape
        leading = (1, 1) if theirs.endswith(("bias_k", "bias_v")) else ()
        shapes[theirs] = (*leading, len(ours) * first, *rest)
    return shapes


# ---------------------------------------------------------------- writing


def to_state_dict(checkpoint: ReferenceCheckpoint, config: SpectraFMConfig) -> dict[str, Tensor]:
    """Our names -> weights; rows of the embedding that no token uses stay behind."""
    embeddings, bias = (checkpoint.weights[name] for name in _EMBEDDING)
    state = {
        "encoder.embeddings.pixel_projection.weight": embeddings[checkpoint.flux_row][:, None],
        "encoder.embeddings.pixel_projection.bias": bias[checkpoint.flux_row],
        "label_embeddings.weight": embeddings[list(checkpoint.label_rows)],
    }
    for theirs, ours in _published_names(config).items():
        weight = checkpoint.weights[theirs]
        weight = weight.flatten() if theirs.endswith(("bias_k", "bias_v")) else weight
        state |= zip(ours, weight.chunk(len(ours)), strict=True)
    return state


def to_feature_extractor(checkpoint: ReferenceCheckpoint) -> SpectraFMFeatureExtractor:
    """Prepares flux as the published code did."""
    wavelength = apogee_wavelength()
    lower, upper = pixel_edges(wavelength)
    return SpectraFMFeatureExtractor(
        label_names=checkpoint.label_names,
        label_center=checkpoint.label_norms.center,
        label_scale=checkpoint.label_norms.scale,
        patch_size=1,
        pixel_width=None,
        wavelength_range=(float(lower[0]), float(upper[-1])),
        smoothing_length=None,
        flux_range=FLUX_RANGE,
        flux_wavelength=wavelength.tolist(),
        flux_center=checkpoint.flux_norms.center,
        flux_scale=checkpoint.flux_norms.scale,
        largest_scaled=LARGEST_SCALED,
    )


def render_card(
    checkpoint: ReferenceCheckpoint, extractor: SpectraFMFeatureExtractor, n_parameters: int, precision: Precision
) -> str:
    """README.md of the folder: YAML metadata and Markdown."""
    card_data = ModelCardData(
        license="other",
        license_name="zenodo-record-14041360",
        license_link=RECORD,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["astronomy", "stellar-spectra", "spectrafm", "apogee"],
    )
    labels = [get_label(name) for name in checkpoint.label_names]
    template = card_environment().from_string(card_template("converted_card.md.jinja"))
    return template.render(
        card_data=card_data.to_yaml(),
        record=RECORD,
        checkpoint=checkpoint,
        labels=list(zip(labels, checkpoint.label_norms.center, checkpoint.label_norms.scale, strict=True)),
        n_pixels=len(PIXELS),
        n_parameters=n_parameters,
        precision=precision,
        wavelength_range=extractor.wavelength_range,
        flux_range=extractor.flux_range,
        largest_scaled=extractor.largest_scaled,
    )


def convert(folder: Path, output: Path, precision: Precision = "exact") -> ReferenceCheckpoint:
    """Write model.safetensors, config.json, preprocessor_config.json and README.md, all of them or nothing.

    Args:
        folder: With the published weights.pt, config.json and embed_map.npz.
        output: Must not exist yet, or be empty.
        precision: Of the phases of the wavelength encoding; see `SpectraFMConfig.paper`.

    Raises:
        FileExistsError: There is something in `output`.
        FileNotFoundError, ValueError: See `read_checkpoint`.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} must be a new or an empty folder, but holds something; choose another name.")
    checkpoint = read_checkpoint(folder)
    rate = checkpoint.dropout
    config = SpectraFMConfig.paper(
        precision, label_names=checkpoint.label_names, hidden_dropout=rate, attention_dropout=rate
    )
    model, state = SpectraFMForLabelPrediction(config), to_state_dict(checkpoint, config)
    model.load_state_dict(state)
    extractor = to_feature_extractor(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as beside:
        partial = Path(beside) / output.name
        model.save_pretrained(partial)
        extractor.save_pretrained(partial)
        card = render_card(checkpoint, extractor, model.num_parameters(), precision)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _read_back(partial, state, extractor)
        os.replace(partial, output)
    return checkpoint


def _read_back(folder: Path, state: Mapping[str, Tensor], extractor: SpectraFMFeatureExtractor) -> None:
    """What a user will load is, bit for bit, what was meant.

    Raises:
        RuntimeError: It is not; a full disk, or a fault of ours.
    """
    loaded = SpectraFMForLabelPrediction.from_pretrained(folder).state_dict()
    wrong = [name for name in loaded.keys() | state.keys() if not _same_bits(loaded.get(name), state.get(name))]
    if wrong or SpectraFMFeatureExtractor.from_pretrained(folder).to_dict() != extractor.to_dict():
        raise RuntimeError(f"{folder} reads back otherwise than it was written: {_some(sorted(wrong) or ['norms'])}.")


def _same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one.view(torch.int32), other.view(torch.int32))


# ---------------------------------------------------------------- saying


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _some(names: Iterable[Any]) -> str:
    """The first few, and how many more; `none` if there are none."""
    shown = [re.sub(r"\s+", " ", str(name))[:80] for name in names]
    more = f" and {len(shown) - NAMES_SHOWN} more" if len(shown) > NAMES_SHOWN else ""
    return (", ".join(shown[:NAMES_SHOWN]) or "none") + more


def main() -> None:
    parser = argparse.ArgumentParser(description=f"The published SpectraFM weights ({RECORD}) for transformers.")
    parser.add_argument("checkpoint_folder", type=Path, help=f"holds {', '.join(FILES)}")
    parser.add_argument("output_folder", type=Path, help="new or empty")
    parser.add_argument(
        "--precision",
        choices=("exact", "published"),
        default="exact",
        help="phases of the wavelength encoding in float64, or in float32 as the published code (default: exact)",
    )
    told = parser.parse_args()
    logging.disable_progress_bar()
    try:
        checkpoint = convert(told.checkpoint_folder, told.output_folder, told.precision)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(
        f"converted: epoch {checkpoint.epoch}, labels {', '.join(checkpoint.label_names)}, {told.precision} phases\n"
        "read back: every weight and norm is bit for bit the published one\n"
        f'AutoModel.from_pretrained("{told.output_folder}")\n'
    )


if __name__ == "__main__":
    main()
