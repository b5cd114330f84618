"""Architecture numbers of SpectraFM, checked on construction."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

Numbers = list[int] | tuple[int, ...]
Names = list[str] | tuple[str, ...]


@strict
class SpectraFMConfig(PreTrainedConfig):
    """Configuration of `SpectraFMModel` and `SpectraFMForLabelPrediction`.

    The defaults are our network; `SpectraFMConfig.paper()` is the published one.

    Args:
        label_names: Labels the decoder can be asked for; their order is the order of `label_ids` and of the outputs.
        given_names: Non-spectral inputs the encoder can be given: labels known beforehand, photometric colours,
            parallax-like numbers. Their order is the order of `given`.
        tokens: `patch`: neighbouring pixels together are a token, which knows their uncertainty and the resolving
            power. `pixel`: each pixel is a token, as published; reads flux and wavelength alone.
        patch_size: Most pixels per token; 1 with `tokens="pixel"`.
        hidden_size: Width of a token, d.
        n_filters: Of `tokens="patch"`: filters that look at a patch before it becomes a token; None = `hidden_size`.
        encoder_heads: Attention heads of each encoder block; each divides `hidden_size`.
        encoder_sizes: Width of the feed-forward layer of each encoder block.
        decoder_heads: Likewise of each block in which a label query reads the encoded spectrum.
        decoder_sizes: Likewise.
        head_sizes: Widths of a multi-layer perceptron between decoder and readouts; empty = none.
        shared_readout: One mean and one variance readout for all labels, as published; or each label its own.
        norm_first: Layer norms before attention and feed-forward; or after them, as published.
        learned_key_value: Each attention has one learned key and value beside those of the tokens, as published.
        hidden_act: Activation, a name known to transformers; `gelu` is the exact one.
        hidden_dropout: Dropout after attention and feed-forward.
        attention_dropout: Dropout on the attention weights.
        encoding_size: Numbers that encode a wavelength: sines and cosines in turn; even.
        shortest_period: Shortest period of the wavelength encoding, Angstrom; closer tokens look alike.
        longest_period: Longest period of the wavelength encoding, Angstrom.
        encoding_origin: Wavelength where all phases are zero, vacuum Angstrom.
        float32_phase: Two numbers (width in Angstrom, factor): compute phases in float32 as
            `factor * ((wavelength - origin) / width)` times a frequency, rounding for rounding as the published code.
            None = float64.
        default_label_error: 1-sigma error, in scaled label units, of a label that came without one.
        initializer_range: Standard deviation of the initial weights.
        layer_norm_eps: Numerical floor of the layer norms.

    Raises:
        StrictDataclassClassValidationError: Sizes that do not fit together; the message says which.
    """

    model_type = "spectrafm"

    label_names: Names = ("teff", "logg", "fe_h")
    given_names: Names = ()
    tokens: Literal["patch", "pixel"] = "patch"
    patch_size: int = 64
    hidden_size: int = 192
    n_filters: int | None = None
    encoder_heads: Numbers = (6, 6, 6, 6)
    encoder_sizes: Numbers = (768, 768, 768, 768)
    decoder_heads: Numbers = (6,)
    decoder_sizes: Numbers = (768,)
    head_sizes: Numbers = ()
    shared_readout: bool = False
    norm_first: bool = True
    learned_key_value: bool = False
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    encoding_size: int = 128
    shortest_period: float | int = 10.0
    longest_period: float | int = 50_000.0
    encoding_origin: float | int = 0.0
    float32_phase: list[float] | tuple[float, ...] | None = None
    default_label_error: float | int = 0.2
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-5

    @classmethod
    def paper(cls, precision: Literal["exact", "published"] = "exact", **changes: Any) -> "SpectraFMConfig":
        """The published architecture (Koblischke & Bovy 2024, arXiv 2411.04750): 8.0 M parameters.

        Not carried: the embedding rows of the published file that no token ever uses (3.85 M).

        Args:
            precision: Of the phases of the wavelength encoding: `exact` = float64; `published` = float32, rounding for
                rounding as the published code.
            changes: Over it all, e.g. other `label_names`.

        Raises:
            ValueError: Another precision.
        """
        if precision not in ("exact", "published"):
            raise ValueError(f"precision must be exact or published, got {precision!r}.")
        size = 256
        # sin(1000 u w_k) with u = (wavelength - 15000) / 2000 and w_k from 1 down to 10000^(-254/256).
        shortest = 2 * math.pi * 2000 / 1000
        published = {
            "label_names": ("teff", "logg", "o_fe", "mg_fe", "fe_h"),
            "tokens": "pixel",
            "patch_size": 1,
            "hidden_size": size,
            "encoder_heads": (16, 8),
            "encoder_sizes": (2048, 1024),
            "decoder_heads": (16, 8, 4),
            "decoder_sizes": (2048, 1024, 512),
            "head_sizes": (2048, 1024, 512, 256),
            "shared_readout": True,
            "norm_first": False,
            "learned_key_value": True,
            "hidden_dropout": 0.05,
            "attention_dropout": 0.05,
            "encoding_size": size,
            "shortest_period": shortest,
            "longest_period": shortest * 10_000 ** ((size - 2) / size),
            "encoding_origin": 15_000.0,
            "float32_phase": (2000.0, 1000.0) if precision == "published" else None,
        }
        return cls(**published | changes)

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if name in kwargs:
                raise ValueError(
                    f"{name} is said block by block here: give encoder_heads and encoder_sizes (and decoder_heads, "
                    f"decoder_sizes), got {name}={kwargs[name]}."
                )
        if kwargs.get("num_labels", len(self.label_names)) != len(self.label_names):
            raise ValueError(f"num_labels follows label_names ({len(self.label_names)}), got {kwargs['num_labels']}.")
        for name in ("label_names", "given_names", *_PER_BLOCK, "head_sizes"):
            setattr(self, name, list(getattr(self, name)))
        self.problem_type = self.problem_type or "regression"
        if __package__ == "spectrafm_hf":
            # The code that a checkpoint brings along: needless where this package has registered its own, and for the
            # pipeline transformers would insist on trust_remote_code.
            for theirs in ("custom_pipelines", "auto_map"):
                kwargs.pop(theirs, None)
        super().__post_init__(**kwargs)
        self.id2label = dict(enumerate(self.label_names))
        self.label2id = {name: number for number, name in self.id2label.items()}

    @property
    def num_hidden_layers(self) -> int:
        """Encoder blocks; the word that transformers knows."""
        return len(self.encoder_heads)

    @property
    def num_attention_heads(self) -> int:
        """Heads of the first encoder block; the word that transformers knows."""
        return self.encoder_heads[0]

    def validate_architecture(self) -> None:
        for name in ("patch_size", "hidden_size", "encoding_size", "default_label_error"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.n_filters is not None and (self.n_filters < 1 or self.tokens == "pixel"):
            raise ValueError(f"n_filters must be positive, and belongs to tokens='patch', got {self.n_filters}.")
        for name in (*_PER_BLOCK, "head_sizes"):
            if not all(number > 0 for number in getattr(self, name)):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for heads, sizes in (_PER_BLOCK[:2], _PER_BLOCK[2:]):
            if not len(getattr(self, heads)) == len(getattr(self, sizes)) > 0:
                raise ValueError(
                    f"{heads} and {sizes} must have one entry per block, got {getattr(self, heads)} and "
                    f"{getattr(self, sizes)}."
                )
            for number in getattr(self, heads):
                if self.hidden_size % number:
                    raise ValueError(
                        f"hidden_size must be a multiple of every number of heads, got {self.hidden_size} and {heads} "
                        f"{getattr(self, heads)}."
                    )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if self.encoding_size % 2:
            raise ValueError(f"encoding_size must be even (sines and cosines), got {self.encoding_size}.")
        if not 0 < self.shortest_period < self.longest_period:
            raise ValueError(
                f"periods must satisfy 0 < shortest < longest, got {self.shortest_period} and {self.longest_period} "
                "Angstrom."
            )
        if self.float32_phase is not None and len(self.float32_phase) != 2:
            raise ValueError(f"float32_phase must be (width in Angstrom, factor) or None, got {self.float32_phase}.")
        if self.tokens == "pixel" and (self.patch_size != 1 or self.encoding_size != self.hidden_size):
            raise ValueError(
                "tokens='pixel' adds the wavelength encoding to single pixels: patch_size must be 1 and encoding_size "
                f"equal to hidden_size, got {self.patch_size}, {self.encoding_size} and {self.hidden_size}."
            )
        if not self.label_names or len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"label_names must be at least one name, all different, got {self.label_names}.")
        if len(set(self.given_names)) != len(self.given_names):
            raise ValueError(f"given_names must all be different, got {self.given_names}.")


_PER_BLOCK = ("encoder_heads", "encoder_sizes", "decoder_heads", "decoder_sizes")
