"""The published SpectraFM (Koblischke & Bovy 2024, arXiv 2411.04750) written out in plain float32 PyTorch.

What the package's own model is tested and timed against: nothing here is fast, shared with the package or optional
that the paper has fixed. The names of the weights are those of a published checkpoint.
"""

import math

import torch
from torch import Tensor, nn

WIDTH = 256
N_ROWS = 7520  # padding, 7,514 pixels, five labels
N_LABELS = 5


def published_embed_map(n_rows: int = N_ROWS, n_labels: int = N_LABELS) -> Tensor:
    """Token -> row of the embedding, shape (n_rows,): pixels share the row of the first, padding and labels their own.

    Tokens are in the published order: 0 = padding, then the pixels, the last `n_labels` the labels.
    """
    embed_map = torch.arange(n_rows)
    embed_map[1 : n_rows - n_labels] = 1
    return embed_map


class Embedding(nn.Module):
    """Values and where they were measured -> vectors of WIDTH."""

    embed_map: Tensor

    def __init__(self, n_rows: int, embed_map: Tensor, phase_dtype: torch.dtype):
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(n_rows, WIDTH))
        self.bias = nn.Parameter(torch.randn(n_rows, WIDTH))
        with torch.no_grad():
            self.embeddings[0] = 0
            self.bias[0] = 0
        self.register_buffer("embed_map", embed_map, persistent=False)
        self.phase_dtype = phase_dtype

    def position(self, wavelengths: Tensor) -> Tensor:
        """(batch, n) Angstrom -> (batch, n, WIDTH) sines and cosines, float32; 0 where the wavelength is 0."""
        even = torch.arange(0, WIDTH, 2, device=wavelengths.device).to(self.phase_dtype)
        wavenumber = torch.exp(even * (-math.log(10000.0) / WIDTH))
        scaled = (wavelengths.to(self.phase_dtype) - 15000.0) / 2000.0
        angle = (1000.0 * scaled)[..., None] * wavenumber
        position = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()  # sin even, cos odd index
        return torch.where(wavelengths[..., None] == 0, 0.0, position)

    def forward(self, tokens: Tensor, values: Tensor, wavelengths: Tensor) -> Tensor:
        """tokens (batch, n) long, values (batch, n) standardised, wavelengths (batch, n) Angstrom -> (.., WIDTH)."""
        rows = self.embed_map[tokens]
        content = nn.functional.gelu(self.embeddings[rows] * values.float()[..., None] + self.bias[rows])
        return content + self.position(wavelengths)

    def query(self, tokens: Tensor) -> Tensor:
        """Label tokens (batch, q) -> (batch, q, WIDTH): a question has no value, hence no activation, and no place."""
        return self.embeddings[self.embed_map[tokens]]


class Block(nn.Module):
    """Post-norm Transformer block: queries attend to keys, then a two-layer MLP."""

    def __init__(self, n_heads: int, n_dense: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, n_heads, dropout=dropout, add_bias_kv=True, batch_first=True)
        self.dense_1 = nn.Linear(WIDTH, n_dense)
        self.dense_2 = nn.Linear(n_dense, WIDTH)
        self.layernorm_1 = nn.LayerNorm(WIDTH, eps=1e-5)
        self.layernorm_2 = nn.LayerNorm(WIDTH, eps=1e-5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, padding: Tensor) -> Tensor:
        """queries (batch, q, WIDTH), keys (batch, n, WIDTH), padding (batch, n) True = hidden -> (batch, q, WIDTH)."""
        attended, _ = self.attention(queries, keys, keys, key_padding_mask=padding, need_weights=False)
        x = self.layernorm_1(queries + self.dropout(attended))
        return self.layernorm_2(x + self.dropout(self.dense_2(nn.functional.gelu(self.dense_1(x)))))


class Encoder(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.encoder_transformer_block_1 = Block(16, 2048, dropout)
        self.encoder_transformer_block_2 = Block(8, 1024, dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x (batch, n, WIDTH), padding (batch, n) -> (batch, n, WIDTH)."""
        x = self.encoder_transformer_block_1(x, x, padding)
        return self.encoder_transformer_block_2(x, x, padding)


class Decoder(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.decoder_transformer_block_1 = Block(16, 2048, dropout)
        self.decoder_transformer_block_2 = Block(8, 1024, dropout)
        self.decoder_transformer_block_3 = Block(4, 512, dropout)
        self.decoder_dense_3 = nn.Linear(WIDTH, 2048)
        self.decoder_dense_4 = nn.Linear(2048, 1024)
        self.decoder_dense_5 = nn.Linear(1024, 512)
        self.decoder_dense_6 = nn.Linear(512, WIDTH)
        self.decoder_out = nn.Linear(WIDTH, 1)
        self.decoder_logvar_out = nn.Linear(WIDTH, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, encoded: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """queries (batch, q, WIDTH), encoded (batch, n, WIDTH), padding (batch, n) -> mean, log-variance (batch, q)."""
        x = self.decoder_transformer_block_1(queries, encoded, padding)
        x = self.decoder_transformer_block_2(x, encoded, padding)
        x = self.decoder_transformer_block_3(x, encoded, padding)
        for dense in (self.decoder_dense_3, self.decoder_dense_4, self.decoder_dense_5, self.decoder_dense_6):
            x = self.dropout(nn.functional.gelu(dense(x)))
        return self.decoder_out(x).squeeze(-1), self.decoder_logvar_out(x).squeeze(-1)


class PaperOracle(nn.Module):
    """The published model.

    Args:
        n_rows: Tokens, the padding token 0 included; the paper's 7,520 by default.
        embed_map: Token -> row of the embedding, shape (n_rows,), long; None = `published_embed_map(n_rows)`.
        phase_dtype: What the phase of the wavelength encoding is computed in. The paper used float32, whose phases of
            up to 1000 rad are off by up to 5e-4; float64 is the encoding as it was meant.
        dropout: On attention weights, after attention, after each MLP, and after each layer of the last MLP.
    """

    def __init__(
        self,
        n_rows: int = N_ROWS,
        embed_map: Tensor | None = None,
        phase_dtype: torch.dtype = torch.float64,
        dropout: float = 0.05,
    ):
        super().__init__()
        embed_map = published_embed_map(n_rows) if embed_map is None else embed_map
        self.embedding_layer = Embedding(n_rows, embed_map, phase_dtype)
        self.torch_encoder = Encoder(dropout)
        self.torch_decoder = Decoder(dropout)

    def forward(
        self,
        input_tokens: Tensor,
        input_values: Tensor,
        input_wavelengths: Tensor,
        query_tokens: Tensor,
        attend: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ask for labels.

        Args:
            input_tokens: Shape (batch, n), long; 0 = padding.
            input_values: Shape (batch, n), standardised; 0 where padded.
            input_wavelengths: Shape (batch, n), vacuum Angstrom; 0 = no place. float64 if the phase is to be exact.
            query_tokens: Labels asked for, shape (batch, q), long.
            attend: True = attended to, shape (batch, n); None = all but padding. The published inference attends to
                missing pixels (token 0 inside a spectrum), which only this argument can say.

        Returns:
            Mean and natural log-variance, each (batch, q), standardised label units.
        """
        padding = input_tokens == 0 if attend is None else ~attend
        encoded = self.torch_encoder(self.embedding_layer(input_tokens, input_values, input_wavelengths), padding)
        return self.torch_decoder(self.embedding_layer.query(query_tokens), encoded, padding)


@torch.no_grad()
def randomise(oracle: PaperOracle, seed: int) -> PaperOracle:
    """Every weight away from 0 and 1, so that a forgotten or swapped one shows; answers stay of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    for name, parameter in oracle.named_parameters():
        if "layernorm" in name and name.endswith("weight"):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        elif name.startswith("embedding_layer") or name.endswith(("bias_k", "bias_v")):
            normal(parameter, 1.0)
        elif parameter.ndim == 2:
            # GELU passes about half of the power on.
            gain = 2.0 if "decoder_dense" in name or "dense_2" in name or "out." in name else 1.0
            normal(parameter, (gain / parameter.shape[1]) ** 0.5)
        else:
            normal(parameter, 0.2)
    oracle.embedding_layer.embeddings[0] = 0  # the row of the padding
    oracle.embedding_layer.bias[0] = 0
    return oracle


def published_loss(mean: Tensor, log_var: Tensor, labels: Tensor, errors: Tensor) -> Tensor:
    """`0.5 ((y - mu)^2 / v + ln v)`, v = exp(log_var) + errors^2 + 1e-8; all (batch, q), averaged; a scalar, nats."""
    variance = log_var.exp() + errors.square() + 1e-8
    return (0.5 * ((labels - mean).square() / variance + variance.log())).mean()
