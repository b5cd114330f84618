"""SpectraFM: a Transformer whose tokens are flux values placed by their wavelength.

After Koblischke & Bovy (2024, arXiv 2411.04750); written anew.
Read from top to bottom, a spectrum goes: pixels -> tokens -> encoder -> label queries -> mean, variance -> likelihood.
Tokens carry no order. The wavelength encoding alone says where a token sits, so tokens can be given in
any order and any number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_spectrafm import SpectraFMConfig

# ---------------------------------------------------------------- pixels -> tokens


class WavelengthEncoding(nn.Module):
    """Sines and cosines of the wavelength, with periods from `shortest_period` to `longest_period` Angstrom.

    The phase is computed in float64: at 15,000 Angstrom bfloat16 steps by 64 Angstrom, float32 by 0.001.
    """

    wavenumber: Tensor

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.config = config
        self.register_buffer("wavenumber", self.initial_wavenumber(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WavelengthEncoding":
        """Moves to another device with the model, but stays in float64 when the model becomes half or float."""
        super()._apply(fn, recurse)
        if self.wavenumber.dtype != torch.float64:
            self.wavenumber = self.initial_wavenumber().to(self.wavenumber.device)
        return self

    def initial_wavenumber(self) -> Tensor:
        """2 pi / period, shape (encoding_size / 2,), radians per Angstrom, float64; even in log period."""
        low, high = math.log10(self.config.shortest_period), math.log10(self.config.longest_period)
        period = torch.logspace(low, high, self.config.encoding_size // 2, dtype=torch.float64)
        return 2 * math.pi / period

    def forward(self, wavelength: Tensor) -> Tensor:
        """(batch, n_tokens) vacuum Angstrom -> (batch, n_tokens, encoding_size), float32."""
        phase = wavelength.double()[..., None] * self.wavenumber
        return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


class SpectraFMEmbeddings(nn.Module):
    """Pixels -> tokens: what the flux is, seen through where it is.

    A patch of `patch_size` pixels is projected onto d filters; the wavelength encoding says how much each filter
    matters there (which lines to look for) and adds its own place:
    `token = W gelu(gain(lambda) * (E flux) + B(lambda)) + place(lambda)`. The paper's `gelu(E flux + B) + PE(lambda)`
    is the case of one pixel per token, a gain and a B that do not depend on wavelength, and W the identity.
    """

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.encoding = WavelengthEncoding(config)
        self.flux_projection = nn.Linear(2 * config.patch_size, config.hidden_size, bias=False)
        self.wavelength_projection = nn.Linear(config.encoding_size, 3 * config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output_projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, flux: Tensor, wavelength: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, n_tokens, hidden_size), and True for those with a good pixel (batch, n_tokens)."""
        batch, n_pixels = flux.shape
        patches = (batch, n_pixels // self.patch_size, self.patch_size)
        good = attention_mask.bool().reshape(patches)
        # A missing pixel is a zero with its own flag beside it, whatever number stood there.
        flux = torch.where(good, flux.reshape(patches), 0.0)
        pixels = torch.cat([flux, good.to(flux.dtype)], dim=-1).to(self.flux_projection.weight.dtype)
        centre = wavelength.double().reshape(patches).mean(dim=-1)
        encoded = self.encoding(centre).to(self.wavelength_projection.weight.dtype)
        gain, bias, place = self.wavelength_projection(encoded).chunk(3, dim=-1)
        content = self.activation((1 + gain) * self.flux_projection(pixels) + bias)
        return self.output_projection(content) + place, good.any(dim=-1)


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


class SpectraFMAttention(nn.Module):
    """Multi-head attention of some tokens to the tokens of the spectrum."""

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, queries: Tensor, tokens: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """queries (batch, n_queries, d), tokens (batch, n_tokens, d) -> (batch, n_queries, d) and the weights."""

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self,
            heads(self.q_proj(queries)),
            heads(self.k_proj(tokens)),
            heads(self.v_proj(tokens)),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attended.flatten(-2)), weights


class SpectraFMCrossAttention(SpectraFMAttention):
    """The same, from label queries to the encoded spectrum; its own class, so that its weights are recorded apart."""


class SpectraFMMLP(nn.Module):
    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.dense_1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense_2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dense_2(self.activation(self.dense_1(hidden_states)))


# ---------------------------------------------------------------- blocks


class SpectraFMEncoderLayer(GradientCheckpointingLayer):
    """Tokens look at each other, then each thinks alone (pre-norm)."""

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.attention = SpectraFMAttention(config)
        self.mlp = SpectraFMMLP(config)
        self.layernorm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        tokens = self.layernorm_1(hidden_states)
        hidden_states = hidden_states + self.dropout(self.attention(tokens, tokens, attention_mask, **kwargs)[0])
        return hidden_states + self.dropout(self.mlp(self.layernorm_2(hidden_states)))


class SpectraFMDecoderLayer(GradientCheckpointingLayer):
    """Each label query reads the encoded spectrum.

    Queries do not see each other, so asking for more labels changes no answer.
    """

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        self.attention = SpectraFMCrossAttention(config)
        self.mlp = SpectraFMMLP(config)
        self.layernorm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, queries: Tensor, tokens: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        attended = self.attention(self.layernorm_1(queries), tokens, attention_mask, **kwargs)[0]
        queries = queries + self.dropout(attended)
        return queries + self.dropout(self.mlp(self.layernorm_2(queries)))


class SpectraFMLabelHead(nn.Module):
    """Decoded queries -> label features -> mean and log-variance.

    Each label has linear readouts of its own, so that a stage that learns one label leaves the others as they were.
    """

    def __init__(self, config: SpectraFMConfig):
        super().__init__()
        n_labels = len(config.label_names)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mean_weight = nn.Parameter(torch.zeros(n_labels, config.hidden_size))
        self.mean_bias = nn.Parameter(torch.zeros(n_labels))
        self.log_var_weight = nn.Parameter(torch.zeros(n_labels, config.hidden_size))
        self.log_var_bias = nn.Parameter(torch.zeros(n_labels))

    def forward(self, queries: Tensor, label_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (batch, n_labels, d), mean and log-variance (batch, n_labels); the readouts in float32."""
        features = self.layernorm(queries).float()
        label_mean = (features * self.mean_weight[label_ids]).sum(-1) + self.mean_bias[label_ids]
        label_log_var = (features * self.log_var_weight[label_ids]).sum(-1) + self.log_var_bias[label_ids]
        return features, label_mean, label_log_var


# ---------------------------------------------------------------- likelihood


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
    measured = labels.isfinite() & (labels != -100)
    # Filled before the arithmetic: choosing good terms afterwards gives a finite loss and NaN gradients.
    residual = torch.where(measured, labels, 0.0) - torch.where(measured, mean.float(), 0.0)
    variance = log_var.float().exp() + torch.where(measured, label_errors, 1.0).square()
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
        label_log_var: Natural logarithm of the predicted variance, shape (batch, n_labels), scaled units.
        label_features: What the two linear readouts see, shape (batch, n_labels, hidden_size).
        hidden_states: Encoder states before each block and at the end, each (batch, n_tokens, hidden_size).
        attentions: Encoder attention per block, each (batch, heads, n_tokens, n_tokens).
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
        last_hidden_state: Shape (batch, n_tokens, hidden_size).
        token_mask: True where a token has at least one good pixel, shape (batch, n_tokens).
        hidden_states: See `SpectraFMLabelOutput`.
        attentions: See `SpectraFMLabelOutput`.
    """

    token_mask: Tensor | None = None


class SpectraFMPreTrainedModel(PreTrainedModel):
    config: SpectraFMConfig
    base_model_prefix = "encoder"
    main_input_name = "flux"
    input_modalities = ["time"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["SpectraFMEmbeddings", "SpectraFMEncoderLayer", "SpectraFMDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SpectraFMEncoderLayer, "attentions": SpectraFMAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WavelengthEncoding):  # not in the checkpoint, so loading leaves it empty
            init.copy_(module.wavenumber, module.initial_wavenumber())
        if isinstance(module, SpectraFMLabelHead):
            for parameter in (module.mean_bias, module.log_var_weight, module.log_var_bias):
                init.zeros_(parameter)
            init.normal_(module.mean_weight, std=self.config.initializer_range)
        if isinstance(module, SpectraFMEmbeddings):
            init.normal_(module.flux_projection.weight, std=module.patch_size**-0.5)
            init.normal_(module.wavelength_projection.weight, std=module.wavelength_projection.in_features**-0.5)
            init.normal_(module.output_projection.weight, std=module.output_projection.in_features**-0.5)


class SpectraFMModel(SpectraFMPreTrainedModel):
    """The encoder: a spectrum of any length and order -> one vector per token."""

    def __init__(self, config: SpectraFMConfig):
        super().__init__(config)
        self.embeddings = SpectraFMEmbeddings(config)
        self.layers = nn.ModuleList([SpectraFMEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, flux: Tensor, wavelength: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> SpectraFMEncoderOutput:
        """Encode spectra.

        Args:
            flux: Normalised and scaled by the feature extractor, shape (batch, n_pixels).
            wavelength: Pixel centres, shape (batch, n_pixels), vacuum Angstrom, rest frame, float64. Each run of
                `patch_size` pixels is a token and must be neighbours; the order of tokens is free.
            attention_mask: True or 1 = good pixel, shape (batch, n_pixels); None = all good.

        Raises:
            ValueError: n_pixels is no multiple of patch_size, or a spectrum has no good pixel.
        """
        if flux.shape != wavelength.shape or flux.shape[-1] % self.config.patch_size:
            raise ValueError(
                f"flux and wavelength must share a shape (batch, n_pixels) with n_pixels a multiple of patch_size "
                f"{self.config.patch_size}, got {tuple(flux.shape)} and {tuple(wavelength.shape)}; "
                "SpectraFMFeatureExtractor pads to it."
            )
        attention_mask = torch.ones_like(flux) if attention_mask is None else attention_mask
        hidden_states, token_mask = self.embeddings(flux, wavelength, attention_mask)
        if not torch.compiler.is_compiling() and not token_mask.any(dim=-1).all():
            empty = (~token_mask.any(dim=-1)).nonzero().flatten().tolist()
            raise ValueError(f"every spectrum needs at least one good pixel; attention_mask is all 0 in rows {empty}.")
        bidirectional_mask = create_bidirectional_mask(self.config, hidden_states, token_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, bidirectional_mask, **kwargs)
        return SpectraFMEncoderOutput(last_hidden_state=self.layernorm(hidden_states), token_mask=token_mask)


class SpectraFMForLabelPrediction(SpectraFMPreTrainedModel):
    """The encoder and a decoder that is asked for labels: mean and variance of each, in scaled units."""

    _can_record_outputs = {"cross_attentions": SpectraFMCrossAttention}

    def __init__(self, config: SpectraFMConfig):
        super().__init__(config)
        self.encoder = SpectraFMModel(config)
        self.label_embeddings = nn.Embedding(len(config.label_names), config.hidden_size)
        self.decoder_layers = nn.ModuleList([SpectraFMDecoderLayer(config) for _ in range(config.num_decoder_layers)])
        self.head = SpectraFMLabelHead(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        flux: Tensor,
        wavelength: Tensor,
        attention_mask: Tensor | None = None,
        label_ids: Tensor | None = None,
        labels: Tensor | None = None,
        label_errors: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SpectraFMLabelOutput:
        """Predict labels; with `labels`, their likelihood as well.

        Args:
            flux, wavelength, attention_mask: See `SpectraFMModel.forward`.
            label_ids: Which labels to ask for, shape (n_labels,) or (batch, n_labels), rows of `config.label_names`;
                None = all, in that order.
            labels: Scaled labels, one per label asked for, shape (batch, n_labels); NaN or -100 = missing.
            label_errors: Their 1-sigma errors, same shape; not finite or not positive = `config.default_label_error`,
                never certainty.
            num_items_in_batch: Number of measured labels the loss is averaged over; a Trainer gives it.

        Raises:
            ValueError: See `SpectraFMModel.forward`; or labels that do not match the labels asked for.
        """
        encoded = self.encoder(flux, wavelength, attention_mask, **kwargs)
        tokens = encoded.last_hidden_state
        if label_ids is None:
            label_ids = torch.arange(len(self.config.label_names), device=tokens.device)
        queries = self.label_embeddings(label_ids).expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        query_mask = create_bidirectional_mask(self.config, queries, encoded.token_mask, encoder_hidden_states=tokens)
        for layer in self.decoder_layers:
            queries = layer(queries, tokens, query_mask, **kwargs)
        features, label_mean, label_log_var = self.head(queries, label_ids)

        loss = None
        if labels is not None:
            if labels.shape != label_mean.shape:
                raise ValueError(
                    f"labels must have shape (batch, n_labels) = {tuple(label_mean.shape)}, got {tuple(labels.shape)}."
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
