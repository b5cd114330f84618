"""SpectraFM: a Transformer whose tokens are flux values placed by their wavelength.

After Koblischke & Bovy (2024, arXiv 2411.04750); written anew.
Read from top to bottom, a spectrum goes: pixels -> tokens -> encoder -> label queries -> mean, variance -> likelihood.
Tokens carry no order. The wavelength encoding alone says where a token sits, so tokens can be given in
any order and any number; what else is known of the star stands beside them as further tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_spectrafm import Dropout
from .configuration_spectrafm import SpectraFMConfig

logger = logging.get_logger(__name__)

# ---------------------------------------------------------------- where a token sits


class WavelengthEncoding(nn.Module):
    """Sines and cosines of the wavelength, with periods from `shortest_period` to `longest_period` Angstrom.

    The phase is computed in float64: at 15,000 Angstrom bfloat16 steps by 64 Angstrom, float32 by 0.001. A wavelength
    of 0 means "nowhere", and is encoded by zeros.
    """

    wavenumber: Tensor

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.config = config
        self.register_buffer("wavenumber", self.initial_wavenumber(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WavelengthEncoding":
        """Moves to another device with the model, but keeps its precision when the model becomes half or float."""
        super()._apply(fn, recurse)
        initial = self.initial_wavenumber()
        if self.wavenumber.dtype != initial.dtype and not self.wavenumber.is_meta:
            self.wavenumber = initial.to(self.wavenumber.device)
        return self

    def initial_wavenumber(self) -> Tensor:
        """2 pi / period, shape (encoding_size / 2,), radians per Angstrom, float64; even in log period.

        With `float32_phase`: relative to the largest, float32.
        """
        config = self.config
        step = math.log(config.longest_period / config.shortest_period) / max(config.encoding_size // 2 - 1, 1)
        if config.float32_phase is not None:
            return torch.exp(torch.arange(0, config.encoding_size, 2).float() * (-step / 2))
        order = torch.arange(config.encoding_size // 2, dtype=torch.float64)
        return 2 * math.pi / config.shortest_period * torch.exp(-step * order)

    def forward(self, wavelength: Tensor) -> Tensor:
        """(batch, n_tokens) vacuum Angstrom -> (batch, n_tokens, encoding_size), float32; sine, cosine, sine, ..."""
        if self.config.float32_phase is not None:
            width, factor = self.config.float32_phase
            offset = factor * ((wavelength.float() - self.config.encoding_origin) / width)
        else:
            offset = wavelength.double() - self.config.encoding_origin
        phase = offset[..., None] * self.wavenumber
        encoded = torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2).float()
        return torch.where(wavelength[..., None] == 0, 0.0, encoded)


# ---------------------------------------------------------------- pixels -> tokens


class SpectraFMPixelEmbeddings(nn.Module):
    """A pixel is a token, as published: `token = gelu(E flux + B) + PE(wavelength)`."""

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.encoding = WavelengthEncoding(config)
        self.pixel_projection = nn.Linear(1, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(
        self,
        flux: Tensor,
        wavelength: Tensor,
        good: Tensor,
        flux_error: Tensor | None = None,
        resolving_power: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All (batch, n_pixels) -> tokens (batch, n_pixels, d), 0 where missing; and good. The last two go unread."""
        flux = torch.where(good, flux, 0.0).to(self.pixel_projection.weight.dtype)
        content = self.activation(self.pixel_projection(flux[..., None]))
        tokens = content + self.encoding(wavelength).to(content.dtype)
        return torch.where(good[..., None], tokens, 0.0), good


class PatchGeometry(NamedTuple):
    """Where the pixels of a patch lie.

    Attributes:
        centre: Of the patch, vacuum Angstrom, shape (batch, n_tokens), float64; 0 where there is no pixel.
        spacing: Mean distance of its pixels, Angstrom, same shape; 0 where all lie at one wavelength.
        position: Of each pixel, in units of the spacing from the first; shape (batch, n_tokens, patch_size), float32.
    """

    centre: Tensor
    spacing: Tensor
    position: Tensor

    @classmethod
    def of(cls, wavelength: Tensor) -> "PatchGeometry":
        """From wavelengths (batch, n_tokens, patch_size), vacuum Angstrom; 0 = no pixel there (padding)."""
        wavelength = wavelength.double()
        there = wavelength > 0
        first = torch.where(there, wavelength, torch.inf).amin(-1)
        first = torch.where(there.any(-1), first, 0.0)
        spacing = (wavelength.amax(-1) - first) / (there.sum(-1) - 1).clamp_min(1)
        step = torch.where(spacing > 0, spacing, 1.0)
        position = torch.where(there, (wavelength - first[..., None]) / step[..., None], 0.0)
        # Of a patch with fewer pixels, the centre it would have were it full: what lies where must not depend on that.
        return cls(first + 0.5 * spacing * (wavelength.shape[-1] - 1), spacing, position.float())


def deposit(values: Tensor, good: Tensor, position: Tensor) -> Tensor:
    r"""Share what pixels hold out to the nodes 0, 1, ..., patch_size - 1 of their patch (cloud in cell).

    A pixel at position p gives the node k the share :math:`w_k = \max(0, 1 - |p - k|)`. A node holds
    :math:`\sum w x / \max(1, \sum w)`: pixels that overlap are averaged, a node that no good pixel reaches is 0.
    Evenly spaced pixels fall on the nodes and stay what they are.

    Args:
        values: Shape (batch, n_tokens, patch_size, n_values).
        good, position: Shape (batch, n_tokens, patch_size).

    Returns:
        Shape (batch, n_tokens, patch_size, n_values + 1), float32; last comes how much of each node is covered.
    """
    last = position.shape[-1] - 1
    lower = position.floor().clamp(0, last)
    fraction = (position - lower).clamp(0, 1)
    told = torch.cat([values.float(), torch.ones_like(values[..., :1], dtype=torch.float32)], dim=-1)
    told = torch.where(good[..., None], told, 0.0)
    nodes = torch.zeros_like(told)
    for node, share in ((lower, 1 - fraction), ((lower + 1).clamp_max(last), fraction)):
        index = node.long()[..., None].expand_as(told)
        nodes = nodes.scatter_add(-2, index, told * share[..., None])
    return nodes / nodes[..., -1:].clamp_min(1.0)


class SpectraFMPatchEmbeddings(nn.Module):
    """Neighbouring pixels are a token: what the flux is, seen through where it is and how it was observed.

    Each pixel brings its own wavelength offset within the patch, signal-to-noise ratio and missing flag (`deposit`).
    They are projected onto filters; wavelength, pixel spacing and resolving power say how much each filter matters
    there (which lines to look for) and add a place of their own:
    `token = W gelu(gain(lambda) * (E pixels) + B(lambda)) + place(lambda)`. The paper's `gelu(E flux + B) + PE(lambda)`
    is the case of one pixel per token, a gain and a B that do not depend on wavelength, and W the identity.
    """

    N_VALUES = 3  # per pixel: flux, signal-to-noise ratio, how much is there
    N_CONDITIONS = 4  # per patch: pixel spacing, whether there is one, resolving power, whether it is known

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.encoding = WavelengthEncoding(config)
        n_filters = config.n_filters or config.hidden_size
        self.sizes = [n_filters, n_filters, config.hidden_size]  # of gain, bias and place
        self.pixel_projection = nn.Linear(self.N_VALUES * config.patch_size, n_filters, bias=False)
        self.wavelength_projection = nn.Linear(config.encoding_size + self.N_CONDITIONS, sum(self.sizes))
        self.activation = ACT2FN[config.hidden_act]
        self.output_projection = nn.Linear(n_filters, config.hidden_size)

    def forward(
        self,
        flux: Tensor,
        wavelength: Tensor,
        good: Tensor,
        flux_error: Tensor | None = None,
        resolving_power: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All (batch, n_pixels) -> tokens (batch, n_tokens, d), and True for those with a good pixel."""
        patches = (flux.shape[0], flux.shape[1] // self.patch_size, self.patch_size)
        good, flux = good.reshape(patches), torch.where(good, flux, 0.0).reshape(patches)
        patch = PatchGeometry.of(wavelength.reshape(patches))

        snr = torch.zeros_like(flux) if flux_error is None else log_snr(flux_error.reshape(patches))
        pixels = deposit(torch.stack([flux, snr], dim=-1), good, patch.position)
        content = self.pixel_projection(pixels.flatten(-2).to(self.pixel_projection.weight.dtype))

        spacing_known = patch.spacing > 0
        spacing = torch.where(spacing_known, patch.spacing, 1.0).log10()
        power = torch.zeros_like(flux) if resolving_power is None else resolving_power.reshape(patches)
        conditions = [spacing, spacing_known, *mean_log_power(torch.where(good, power, 0.0))]
        encoded = self.encoding(patch.centre)
        where = torch.cat([encoded, torch.stack([c.float() for c in conditions], dim=-1)], dim=-1)
        where = where.to(self.wavelength_projection.weight.dtype)
        gain, bias, place = self.wavelength_projection(where).split(self.sizes, dim=-1)
        tokens = self.output_projection(self.activation((1 + gain) * content + bias)) + place
        return tokens, good.any(dim=-1)


def log_snr(flux_error: Tensor) -> Tensor:
    """1-sigma relative to a continuum of 1 -> log10 of the signal-to-noise ratio, dex, 0.05 to 4; 0 = not known."""
    known = flux_error.isfinite() & (flux_error > 0)
    snr = -torch.where(known, flux_error, 1.0).float().log10()
    return torch.where(known, snr.clamp(0.05, 4.0), 0.0)


def mean_log_power(resolving_power: Tensor) -> tuple[Tensor, Tensor]:
    """lambda / FWHM of pixels (..., n_pixels) -> mean log10(R / 10,000) of those where it is known; known of any."""
    known = resolving_power.isfinite() & (resolving_power > 0)
    dex = torch.where(known, resolving_power, 1.0).double().log10().sum(-1) / known.sum(-1).clamp_min(1)
    return torch.where(known.any(-1), dex - 4, 0.0), known.any(-1)


class SpectraFMGivenEmbeddings(nn.Module):
    """What else is known of the star: a token per number, `gelu(E value + F error + B)`, with rows of its own."""

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        shape = (len(config.given_names), config.hidden_size)
        self.default_error = float(config.default_label_error)
        self.value_weight = nn.Parameter(torch.zeros(shape))
        self.error_weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, given: Tensor, given_errors: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scaled values and 1-sigma errors (batch, n_given) -> tokens (batch, n_given, d), 0 where not given; given."""
        known = is_measured(given)
        errors = torch.zeros_like(given) if given_errors is None else given_errors
        errors = torch.where(known & errors.isfinite() & (errors > 0), errors, self.default_error)
        value, error = (x.to(self.bias.dtype)[..., None] for x in (torch.where(known, given, 0.0), errors))
        tokens = self.activation(value * self.value_weight + error * self.error_weight + self.bias)
        return torch.where(known[..., None], tokens, 0.0), known


# ---------------------------------------------------------------- attention


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with its weights in the open: softmax(q k / sqrt(d) + mask) v; each (batch, heads, length, d)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def tokens_attended_to(
    config: SpectraFMConfig, queries: Tensor, token_mask: Tensor, tokens: Tensor | None = None
) -> Tensor | None:
    """token_mask (batch, n_tokens), True = attend -> the mask that the attention in use wants; None = attend to all.

    Args:
        tokens: Given when the queries are not the tokens themselves.
    """
    mask = create_bidirectional_mask(config, queries, token_mask, encoder_hidden_states=tokens)
    if not isinstance(mask, Tensor) or not config.learned_key_value:
        return mask  # type: ignore[return-value]  # flex attention, which alone has other masks, is not supported
    return nn.functional.pad(mask, (0, 1), value=mask.dtype == torch.bool)  # the learned key is always there


class SpectraFMAttention(nn.Module):
    """Multi-head attention of some tokens to the tokens of the spectrum."""

    def __init__(self, config: SpectraFMConfig, n_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // n_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        if config.learned_key_value:
            self.learned_key = nn.Parameter(torch.zeros(config.hidden_size))
            self.learned_value = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(
        self, queries: Tensor, tokens: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """queries (batch, n_queries, d), tokens (batch, n_tokens, d) -> (batch, n_queries, d) and the weights.

        The weights are (batch, heads, n_queries, n_tokens), and last the learned key's if there is one.
        """

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        keys, values = self.k_proj(tokens), self.v_proj(tokens)
        if self.config.learned_key_value:
            shape = (tokens.shape[0], 1, -1)
            keys = torch.cat([keys, self.learned_key.to(keys.dtype).expand(shape)], dim=1)
            values = torch.cat([values, self.learned_value.to(values.dtype).expand(shape)], dim=1)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self,
            heads(self.q_proj(queries)),
            heads(keys),
            heads(values),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attended.flatten(-2)), weights


class SpectraFMCrossAttention(SpectraFMAttention):
    """The same, from label queries to the encoded spectrum; its own class, so that its weights are recorded apart."""


class SpectraFMMLP(nn.Module):
    def __init__(self, config: SpectraFMConfig, size: int):
        super().__init__()
        self.dense_1 = nn.Linear(config.hidden_size, size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense_2 = nn.Linear(size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dense_2(self.activation(self.dense_1(hidden_states)))


# ---------------------------------------------------------------- blocks


class SpectraFMBlock(GradientCheckpointingLayer):
    """States attend to tokens, then each thinks alone; layer norms before each step, or after it as published."""

    attention_class = SpectraFMAttention

    def __init__(self, config: SpectraFMConfig, n_heads: int, size: int):
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = self.attention_class(config, n_heads)
        self.mlp = SpectraFMMLP(config, size)
        self.layernorm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout)

    def attend_and_think(self, states: Tensor, tokens: Tensor | None, mask: Tensor | None, **kwargs: Any) -> Tensor:
        """states (batch, n, d), tokens (batch, n_tokens, d) or None for the states themselves -> (batch, n, d)."""
        asking = self.layernorm_1(states) if self.norm_first else states
        attended, _ = self.attention(asking, asking if tokens is None else tokens, mask, **kwargs)
        states = states + self.dropout(attended)
        if self.norm_first:
            return states + self.dropout(self.mlp(self.layernorm_2(states)))
        states = self.layernorm_1(states)
        return self.layernorm_2(states + self.dropout(self.mlp(states)))


class SpectraFMEncoderLayer(SpectraFMBlock):
    """Tokens look at each other."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        return self.attend_and_think(hidden_states, None, attention_mask, **kwargs)


class SpectraFMDecoderLayer(SpectraFMBlock):
    """Each label query reads the encoded spectrum.

    Queries do not see each other, so asking for more labels changes no answer.
    """

    attention_class = SpectraFMCrossAttention

    def forward(self, queries: Tensor, tokens: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        return self.attend_and_think(queries, tokens, attention_mask, **kwargs)


class SpectraFMLabelHead(nn.Module):
    """Decoded queries -> label features -> mean and log-variance.

    Each label has linear readouts of its own, so that a stage that learns one label leaves the others as they were; or
    all share one (`shared_readout`), after a multi-layer perceptron, as published.
    """

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.shared = config.shared_readout
        n_rows = 1 if self.shared else len(config.label_names)
        widths = [config.hidden_size, *config.head_sizes]
        self.layernorm = nn.LayerNorm(widths[0], eps=config.layer_norm_eps) if config.norm_first else nn.Identity()
        self.dense = nn.ModuleList([nn.Linear(*pair) for pair in pairwise(widths)])
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = Dropout(config.hidden_dropout)
        self.mean_weight = nn.Parameter(torch.zeros(n_rows, widths[-1]))
        self.mean_bias = nn.Parameter(torch.zeros(n_rows))
        self.log_var_weight = nn.Parameter(torch.zeros(n_rows, widths[-1]))
        self.log_var_bias = nn.Parameter(torch.zeros(n_rows))

    def forward(self, queries: Tensor, label_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (batch, n_labels, width), mean and log-variance (batch, n_labels); the readouts in float32."""
        features = self.layernorm(queries)
        for dense in self.dense:
            features = self.dropout(self.activation(dense(features)))
        features, rows = features.float(), torch.zeros_like(label_ids) if self.shared else label_ids
        label_mean = (features * self.mean_weight[rows]).sum(-1) + self.mean_bias[rows]
        label_log_var = (features * self.log_var_weight[rows]).sum(-1) + self.log_var_bias[rows]
        return features, label_mean, label_log_var


# ---------------------------------------------------------------- likelihood


def is_measured(values: Tensor) -> Tensor:
    """True where there is a value: neither NaN (missing on disk) nor -100 (missing in a batch)."""
    return values.isfinite() & (values != -100)


def gaussian_nll(
    mean: Tensor, log_var: Tensor, labels: Tensor, label_errors: Tensor, n_labels: Tensor | float | None = None
) -> Tensor:
    r"""Negative log-likelihood of the measured labels, nats: :math:`\frac12 [(y-\mu)^2/v + \ln v]`.

    The variance is the model's own plus the published one, :math:`v = e^{s} + \sigma_y^2`.

    Args:
        mean: :math:`\mu`, shape (batch, n_labels), scaled units.
        log_var: :math:`s`, natural logarithm of the model's own variance.
        labels: :math:`y`; NaN or -100 = missing, which costs nothing.
        label_errors: :math:`\sigma_y`, published 1-sigma errors, all finite and positive.
        n_labels: What the sum is divided by (a stock Trainer gives the count over all micro-batches and processes);
            None = the measured labels of this batch.
    """
    measured = is_measured(labels)
    # Filled before the arithmetic: choosing good terms afterwards gives a finite loss and NaN gradients.
    residual = torch.where(measured, labels, 0.0) - torch.where(measured, mean.float(), 0.0)
    variance = torch.where(measured, log_var.float(), 0.0).exp() + torch.where(measured, label_errors, 1.0).square()
    nll = 0.5 * (residual.square() / variance + variance.log())
    count = measured.sum() if n_labels is None else torch.as_tensor(n_labels, device=mean.device)
    return torch.where(measured, nll, 0.0).sum() / count.clamp_min(1)


# ---------------------------------------------------------------- models


@dataclass
class SpectraFMLabelOutput(ModelOutput):
    """What `SpectraFMForLabelPrediction` answers.

    Args:
        loss: Negative log-likelihood in nats; only when labels were given.
        label_mean: Shape (batch, n_labels), scaled units; `SpectraFMFeatureExtractor.decode_labels` gives K and dex.
            NaN for a label that was itself given as an input.
        label_log_var: Natural logarithm of the predicted variance, shape (batch, n_labels), scaled units; NaN likewise.
        label_features: What the two linear readouts see, shape (batch, n_labels, width of the head).
        hidden_states: Encoder states before each block and at the end, each (batch, n_tokens, hidden_size).
        attentions: Encoder attention per block, each (batch, heads, n_tokens, n_tokens). Tokens are those of the
            spectrum, then those of the non-spectral inputs; as keys, last, the learned one if there is one.
        cross_attentions: Attention of the label queries per decoder block, each (batch, heads, n_labels, n_tokens).
    """

    loss: Tensor | None = None
    label_mean: Tensor | None = None
    label_log_var: Tensor | None = None
    label_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SpectraFMEncoderOutput(BaseModelOutput):
    """Encoded spectrum.

    Args:
        last_hidden_state: Shape (batch, n_tokens, hidden_size): tokens of the spectrum, then those of `given_names`.
        token_mask: 1 where a token is attended to, shape (batch, n_tokens).
        hidden_states: See `SpectraFMLabelOutput`.
        attentions: See `SpectraFMLabelOutput`.
    """

    token_mask: Tensor | None = None


class SpectraFMPreTrainedModel(PreTrainedModel):
    config: SpectraFMConfig
    base_model_prefix = "encoder"
    main_input_name = "flux"
    input_modalities = ["time"]
    _input_embed_layer = "pixel_projection"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "SpectraFMPixelEmbeddings",
        "SpectraFMPatchEmbeddings",
        "SpectraFMGivenEmbeddings",
        "SpectraFMEncoderLayer",
        "SpectraFMDecoderLayer",
        "SpectraFMLabelHead",
    ]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SpectraFMEncoderLayer, "attentions": SpectraFMAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, WavelengthEncoding):  # not in the checkpoint, so loading leaves it empty
            init.copy_(module.wavenumber, module.initial_wavenumber())
        elif isinstance(module, SpectraFMLabelHead):
            for parameter in (module.mean_bias, module.log_var_weight, module.log_var_bias):
                init.zeros_(parameter)
            init.normal_(module.mean_weight, std=std)
        elif isinstance(module, SpectraFMPatchEmbeddings):
            init.normal_(module.pixel_projection.weight, std=module.patch_size**-0.5)
            init.normal_(module.wavelength_projection.weight, std=self.config.encoding_size**-0.5)
            init.normal_(module.output_projection.weight, std=module.output_projection.in_features**-0.5)
        elif isinstance(module, SpectraFMPixelEmbeddings):
            init.normal_(module.pixel_projection.weight, std=1.0)
        elif isinstance(module, SpectraFMGivenEmbeddings):
            for parameter in (module.value_weight, module.error_weight, module.bias):
                init.normal_(parameter, std=1.0)
        elif isinstance(module, SpectraFMAttention) and self.config.learned_key_value:
            init.normal_(module.learned_key, std=std)
            init.normal_(module.learned_value, std=std)


class SpectraFMModel(SpectraFMPreTrainedModel):
    """The encoder: a spectrum of any length and order -> one vector per token."""

    def __init__(self, config: SpectraFMConfig):
        super().__init__(config)
        self.embeddings = (SpectraFMPixelEmbeddings if config.tokens == "pixel" else SpectraFMPatchEmbeddings)(config)
        self.given_embeddings = SpectraFMGivenEmbeddings(config) if config.given_names else None
        blocks = zip(config.encoder_heads, config.encoder_sizes, strict=True)
        self.layers = nn.ModuleList([SpectraFMEncoderLayer(config, *block) for block in blocks])
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm_first else nn.Identity()
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        flux: Tensor,
        wavelength: Tensor,
        attention_mask: Tensor | None = None,
        flux_error: Tensor | None = None,
        resolving_power: Tensor | None = None,
        given: Tensor | None = None,
        given_errors: Tensor | None = None,
        token_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SpectraFMEncoderOutput:
        """Encode spectra.

        Args:
            flux: Normalised and scaled by the feature extractor, shape (batch, n_pixels).
            wavelength: Pixel centres, shape (batch, n_pixels), vacuum Angstrom, rest frame, float64; 0 = no pixel
                (padding). Each run of `patch_size` pixels is a token and must be neighbours; the order of tokens, and
                of pixels within one, is free.
            attention_mask: True or 1 = good pixel, shape (batch, n_pixels); None = where there is a wavelength and a
                finite flux.
            flux_error: 1-sigma of the flux relative to a continuum of 1, shape (batch, n_pixels); not finite or not
                positive = not known. Read by patch tokens.
            resolving_power: lambda / FWHM of the line-spread function, shape (batch,) or (batch, n_pixels); not finite
                or not positive = not known. Read by patch tokens.
            given: What else is known, scaled, shape (batch, n_given) in the order of `config.given_names`; NaN or -100
                = not given, which changes nothing.
            given_errors: 1-sigma errors, scaled, same shape; not finite or not positive = `config.default_label_error`.
            token_mask: True = attend to this token of the spectrum, shape (batch, n_tokens); None = to those with a
                good pixel. Only to repeat the published inference, which attends to missing pixels as zero vectors.

        Raises:
            ValueError: n_pixels is no multiple of patch_size, a spectrum has no good pixel, or `given` does not match
                `config.given_names`.
        """
        if resolving_power is not None and resolving_power.shape == flux.shape[:1]:
            resolving_power = resolving_power[:, None].expand_as(flux)
        self._check_shapes(flux, wavelength, given, given_errors)
        self._check_pixels(flux, attention_mask=attention_mask, flux_error=flux_error, resolving_power=resolving_power)
        there = wavelength > 0  # False for NaN too
        wavelength = torch.where(there, wavelength, 0.0)
        good = there & flux.isfinite() & (there if attention_mask is None else attention_mask.bool())
        hidden_states, filled = self.embeddings(flux, wavelength, good, flux_error, resolving_power)
        token_mask = filled if token_mask is None else token_mask.bool()
        if not torch.compiler.is_compiling() and not token_mask.any(dim=-1).all():
            empty = (~token_mask.any(dim=-1)).nonzero().flatten().tolist()
            raise ValueError(f"every spectrum needs at least one good pixel; attention_mask is all 0 in rows {empty}.")
        if self.given_embeddings is not None:
            if given is None:  # the tokens stay, so that every parameter is part of every step, on every process
                given = flux.new_full((flux.shape[0], len(self.config.given_names)), torch.nan)
            given_tokens, known = self.given_embeddings(given, given_errors)
            hidden_states = torch.cat([hidden_states, given_tokens.to(hidden_states.dtype)], dim=1)
            token_mask = torch.cat([token_mask, known], dim=1)
        mask = tokens_attended_to(self.config, hidden_states, token_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return SpectraFMEncoderOutput(last_hidden_state=self.layernorm(hidden_states), token_mask=token_mask.long())

    def _check_shapes(
        self, flux: Tensor, wavelength: Tensor, given: Tensor | None, given_errors: Tensor | None
    ) -> None:
        if flux.shape != wavelength.shape or flux.shape[-1] % self.config.patch_size:
            raise ValueError(
                f"flux and wavelength must share a shape (batch, n_pixels) with n_pixels a multiple of patch_size "
                f"{self.config.patch_size}, got {tuple(flux.shape)} and {tuple(wavelength.shape)}; "
                "SpectraFMFeatureExtractor pads to it."
            )
        if wavelength.dtype in (torch.float16, torch.bfloat16):
            logger.warning_once(
                f"wavelength came as {wavelength.dtype}, which steps by 8 Angstrom or more in the H band: answers are "
                "wrong. Keep it in float64 and cast the other inputs alone (the extractor's batches do, in `.to`)."
            )
        names = self.config.given_names
        for what, told in (("given", given), ("given_errors", given_errors)):
            if told is not None and told.shape != (flux.shape[0], len(names)):
                raise ValueError(
                    f"{what} must have one column per name of config.given_names {names} and one row per spectrum "
                    f"({flux.shape[0]}), got shape {tuple(told.shape)}."
                )

    @staticmethod
    def _check_pixels(flux: Tensor, **told: Tensor | None) -> None:
        for name, values in told.items():
            if values is not None and values.shape != flux.shape:
                raise ValueError(f"{name} must have the shape of flux {tuple(flux.shape)}, got {tuple(values.shape)}.")


class SpectraFMForLabelPrediction(SpectraFMPreTrainedModel):
    """The encoder and a decoder that is asked for labels: mean and variance of each, in scaled units."""

    _can_record_outputs = {"cross_attentions": SpectraFMCrossAttention}

    def __init__(self, config: SpectraFMConfig):
        super().__init__(config)
        self.encoder = SpectraFMModel(config)
        self.label_embeddings = nn.Embedding(len(config.label_names), config.hidden_size)
        blocks = zip(config.decoder_heads, config.decoder_sizes, strict=True)
        self.decoder_layers = nn.ModuleList([SpectraFMDecoderLayer(config, *block) for block in blocks])
        self.head = SpectraFMLabelHead(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]  # TransformersKwargs knows num_items_in_batch too
        self,
        flux: Tensor,
        wavelength: Tensor,
        attention_mask: Tensor | None = None,
        flux_error: Tensor | None = None,
        resolving_power: Tensor | None = None,
        given: Tensor | None = None,
        given_errors: Tensor | None = None,
        label_ids: Tensor | None = None,
        labels: Tensor | None = None,
        label_errors: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        token_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SpectraFMLabelOutput:
        """Predict labels; with `labels`, their likelihood as well.

        Args:
            flux, wavelength, attention_mask, flux_error, resolving_power, given, given_errors, token_mask: See
                `SpectraFMModel.forward`.
            label_ids: Which labels to ask for, shape (n_labels,) or (batch, n_labels), rows of `config.label_names`;
                None = all that were not given, in that order.
            labels: Scaled labels, one per label asked for, shape (batch, n_labels); NaN or -100 = missing.
            label_errors: Their 1-sigma errors, same shape; not finite or not positive = `config.default_label_error`,
                never certainty.
            num_items_in_batch: Number of measured labels the loss is averaged over; a Trainer gives it.

        Raises:
            ValueError: See `SpectraFMModel.forward`; label_ids that are no rows of `config.label_names`; labels that do
                not match the labels asked for; or a label that is asked for, or to be learned, although it was given
                (compiled or exported, nothing is raised and such a label is answered by NaN).
        """
        encoded = self.encoder(
            flux, wavelength, attention_mask, flux_error, resolving_power, given, given_errors, token_mask, **kwargs
        )
        tokens = encoded.last_hidden_state
        asked_for_all = label_ids is None
        if label_ids is None:
            label_ids = torch.arange(len(self.config.label_names), device=tokens.device)
        elif not torch.compiler.is_compiling():
            self._check_label_ids(label_ids, tokens.shape[0])
        queries = self.label_embeddings(label_ids).expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        mask = tokens_attended_to(self.config, queries, encoded.token_mask, tokens)
        for layer in self.decoder_layers:
            queries = layer(queries, tokens, mask, **kwargs)
        features, label_mean, label_log_var = self.head(queries, label_ids)

        if given is not None and (was_given := self._was_given(given, label_ids)) is not None:
            if not torch.compiler.is_compiling():
                if not asked_for_all:
                    self._refuse_given(was_given, label_ids)
                elif labels is not None and labels.shape == was_given.shape:
                    self._refuse_given(was_given & is_measured(labels), label_ids)
            label_mean = torch.where(was_given, torch.nan, label_mean)
            label_log_var = torch.where(was_given, torch.nan, label_log_var)
            labels = None if labels is None else torch.where(was_given, torch.nan, labels)

        loss = None
        if labels is not None:
            shape = label_mean.shape
            for what, told in (("labels", labels), ("label_errors", label_errors)):
                if told is not None and told.shape != shape:
                    raise ValueError(
                        f"{what} must have shape (batch, n_labels) = {tuple(shape)}, got {tuple(told.shape)}."
                    )
            errors = torch.zeros_like(labels) if label_errors is None else label_errors
            errors = torch.where(errors.isfinite() & (errors > 0), errors, float(self.config.default_label_error))
            loss = gaussian_nll(label_mean, label_log_var, labels, errors, num_items_in_batch)
        return SpectraFMLabelOutput(
            loss=loss,
            label_mean=label_mean,
            label_log_var=label_log_var,
            label_features=features,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _check_label_ids(self, label_ids: Tensor, n_spectra: int) -> None:
        known = range(len(self.config.label_names))
        shaped = label_ids.dim() == 1 or (label_ids.dim() == 2 and label_ids.shape[0] in (1, n_spectra))
        if not shaped or not ((label_ids >= known.start) & (label_ids < known.stop)).all():
            raise ValueError(
                f"label_ids must be rows of config.label_names {self.config.label_names}, 0 to {known.stop - 1}, in "
                f"shape (n_labels,) or (batch, n_labels), got {label_ids.tolist()} for {n_spectra} spectra."
            )

    def _was_given(self, given: Tensor, label_ids: Tensor) -> Tensor | None:
        """True where the label asked for is also an input, shape (batch, n_labels); None if no label can be given."""
        labels, names = self.config.label_names, self.config.given_names
        if not set(labels) & set(names):
            return None
        column = [names.index(name) if name in names else len(names) for name in labels]
        known = nn.functional.pad(is_measured(given), (0, 1))  # a last column for labels that cannot be given
        columns = torch.tensor(column, device=given.device)[label_ids]
        return known.gather(1, columns.expand(given.shape[0], -1))

    def _refuse_given(self, refused: Tensor, label_ids: Tensor) -> None:
        if not refused.any():
            return
        asked = label_ids.expand(refused.shape[0], -1)[refused].unique().tolist()
        names = ", ".join(self.config.label_names[label] for label in asked)
        rows = refused.any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"{names} was given as an input in rows {rows}, so it cannot be asked for or learned there: leave it out "
            "of label_ids (and of labels: NaN), or out of given (NaN)."
        )
