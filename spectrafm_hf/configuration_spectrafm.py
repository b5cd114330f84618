"""Architecture numbers of SpectraFM, checked on construction."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SpectraFMConfig(PreTrainedConfig):
    """Configuration of `SpectraFMModel` and `SpectraFMForLabelPrediction`.

    Args:
        label_names: Labels the decoder can be asked for; their order is the order of `label_ids` and of the outputs.
        patch_size: Neighbouring pixels per token (1 = every pixel is a token, as in the paper).
        hidden_size: Width of a token, d.
        num_hidden_layers: Encoder blocks.
        num_decoder_layers: Blocks in which a label query reads the encoded spectrum.
        num_attention_heads: Heads per attention; divides `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        hidden_act: Activation, a name known to transformers.
        hidden_dropout: Dropout after attention and feed-forward.
        attention_dropout: Dropout on the attention weights.
        encoding_size: Numbers that encode a wavelength: half sines, half cosines; even.
        shortest_period: Shortest period of the wavelength encoding, Angstrom; closer tokens look alike.
        longest_period: Longest period of the wavelength encoding, Angstrom.
        default_label_error: 1-sigma error, in scaled label units, of a label that came without one.
        initializer_range: Standard deviation of the initial weights.
        layer_norm_eps: Numerical floor of the layer norms.

    Raises:
        StrictDataclassClassValidationError: Sizes that do not fit together; the message says which.
    """

    model_type = "spectrafm"

    label_names: list[str] | tuple[str, ...] = ("teff", "logg", "fe_h")
    patch_size: int = 160
    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_decoder_layers: int = 1
    num_attention_heads: int = 6
    intermediate_size: int = 768
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    encoding_size: int = 128
    shortest_period: float | int = 160.0
    longest_period: float | int = 50_000.0
    default_label_error: float | int = 0.2
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        self.label_names = list(self.label_names)
        self.problem_type = self.problem_type or "regression"
        super().__post_init__(**kwargs)
        self.id2label = dict(enumerate(self.label_names))
        self.label2id = {name: number for number, name in self.id2label.items()}

    def validate_architecture(self) -> None:
        positive = ("patch_size", "hidden_size", "num_hidden_layers", "num_decoder_layers", "num_attention_heads")
        for name in (*positive, "intermediate_size", "encoding_size", "default_label_error"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        if self.encoding_size % 2:
            raise ValueError(f"encoding_size must be even (sines and cosines), got {self.encoding_size}.")
        if not 0 < self.shortest_period < self.longest_period:
            raise ValueError(
                f"periods must satisfy 0 < shortest < longest, got {self.shortest_period} and {self.longest_period} "
                "Angstrom."
            )
        if not self.label_names or len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"label_names must be at least one name, all different, got {self.label_names}.")
