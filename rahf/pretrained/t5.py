"""T5 v1.0, v1.1 and Flan-T5, Hugging Face layout (Raffel et al. 2020; Shazeer 2020; Chung et al. 2022)."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np

from rahf.config import T5Config
from rahf.core.errors import PretrainedError, TokenizerError, VocabularyMissing
from rahf.nn import functional, t5
from rahf.pretrained import files, source, strict
from rahf.pretrained.source import WeightsSource
from rahf.text import Tokenizer, load_tokenizer

_DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "feed_forward_proj": "relu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}

#: Names of the one embedding table. A file has at least one of them; further ones repeat the table.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
#: Some published files have it, no T5 uses it: the bias belongs to self-attention.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def published_t5(name: str | WeightsSource, revision: str | None = None) -> T5Config:
    """Sizes of a published T5 from its `config.json`. `tie_embeddings` says whether its logits are scaled.

    Raises:
      PretrainedError: not a T5, or a variant that this network does not have.
    """
    weights = source.locate(name, revision)
    where = str(weights.folder / "config.json")
    tree = {**_DEFAULTS, **source.read_config(weights, ("t5",))}
    if tree["layer_norm_epsilon"] != 1e-6:
        raise PretrainedError(f"{where}: layer_norm_epsilon is {tree['layer_norm_epsilon']}, expected 1e-06")
    if tree["feed_forward_proj"] not in ("relu", "gated-gelu"):
        raise PretrainedError(
            f"{where}: feed_forward_proj is {tree['feed_forward_proj']!r}, expected 'relu' or 'gated-gelu'"
        )
    # Old configs express the scaling by the tie (v1.1: false), newer ones have a field for it.
    scaled = tree.get("scale_decoder_outputs", tree.get("tie_word_embeddings") is not False)
    layers = tree["num_layers"]
    return T5Config(
        vocab_size=tree["vocab_size"],
        width=tree["d_model"],
        head_width=tree["d_kv"],
        heads=tree["num_heads"],
        mlp_width=tree["d_ff"],
        encoder_layers=layers,
        decoder_layers=layers if tree.get("num_decoder_layers") is None else tree["num_decoder_layers"],
        ff=tree["feed_forward_proj"],
        tie_embeddings=bool(scaled),
        relative_buckets=tree["relative_attention_num_buckets"],
        relative_max_distance=tree["relative_attention_max_distance"],
    )


_ENCODER_FIELDS = (
    "vocab_size",
    "width",
    "head_width",
    "heads",
    "mlp_width",
    "encoder_layers",
    "ff",
    "relative_buckets",
    "relative_max_distance",
)
_DECODER_FIELDS = ("decoder_layers", "tie_embeddings")


def load_t5(
    name: str | WeightsSource, config: T5Config | None = None, *, revision: str | None = None, decoder: bool = True
) -> functional.Params:
    """Loads a published T5.

    Args:
      name: folder, hub id (``google/flan-t5-base``) or located source.
      config: of the network that the weights go into; None takes whatever was published.
      revision: branch, tag or commit of a hub id.
      decoder: False loads embedding and encoder only, of a whole T5 or of a bare encoder.

    Returns:
      `embedding`, `encoder`, and with the decoder `decoder` and, unless tied, `output`, float32: parameters of
      `rahf.nn.t5.Encoder` and `Decoder`, embedding [V,D] and output [D,V].

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    weights = source.locate(name, revision)
    published, where = published_t5(weights), str(weights.folder)
    if config is not None:
        fields = _ENCODER_FIELDS + (_DECODER_FIELDS if decoder else ())
        strict.compare(published, config, fields, "model.t5", where)
    if decoder and source.read_json(weights.folder / "config.json").get("is_encoder_decoder") is False:
        raise PretrainedError(f"{where}: is an encoder without a decoder; load it with decoder=False")
    taker = strict.Taker(files.open_folder(weights), where)
    params = convert_t5(taker, published, decoder)
    taker.finish()
    strict.check_complete(params, _expected(published, decoder), where)
    return params


def convert_t5(taker: strict.Taker, config: T5Config, decoder: bool = True) -> functional.Params:
    """Takes a T5 out of a checkpoint; `taker.finish` must follow.

    A checkpoint whose output is tied but not scaled gets an `output` of its own, the same function.
    """
    shape = (config.vocab_size, config.width)
    home = next((n for n in _EMBEDDINGS if n in taker), _EMBEDDINGS[0])
    embedding = taker.take(home, shape)
    for other in _EMBEDDINGS:
        if other != home:
            taker.copy_of(other, embedding)
    params: functional.Params = {"embedding": embedding, "encoder": _encoder(taker.under("encoder."), config)}
    if not decoder:
        taker.drop("decoder.*", "lm_head.weight")
        return params
    taker.drop(_UNUSED)
    params["decoder"] = _decoder(taker.under("decoder."), config)
    if config.tie_embeddings:
        taker.copy_of("lm_head.weight", embedding)
    else:
        head = taker.take("lm_head.weight", shape) if "lm_head.weight" in taker else embedding
        params["output"] = np.ascontiguousarray(head.T)
    return params


def _expected(config: T5Config, decoder: bool) -> functional.Params:
    dtype = jnp.dtype("float32")
    _, encoder = functional.abstract(lambda: t5.Encoder(config, dtype=dtype))
    table = np.broadcast_to(np.float32(0), (config.vocab_size, config.width))
    params: functional.Params = {"embedding": table, "encoder": encoder}
    if decoder:
        params["decoder"] = functional.abstract(lambda: t5.Decoder(config, dtype=dtype))[1]
        params |= {} if config.tie_embeddings else {"output": table.T}
    return params


def _encoder(taker: strict.Taker, config: T5Config) -> functional.Params:
    params: functional.Params = {"relative_bias": _relative_bias(taker, config)}
    for number in range(config.encoder_layers):
        block = taker.under(f"block.{number}.layer.")
        params[f"layer_{number}"] = {
            "norm1": block.rms_norm("0.layer_norm", config.width),
            "attention": _attention(block.under("0.SelfAttention."), config),
            "norm2": block.rms_norm("1.layer_norm", config.width),
            "ff": _feed_forward(block.under("1.DenseReluDense."), config),
        }
    return {**params, "norm": taker.rms_norm("final_layer_norm", config.width)}


def _decoder(taker: strict.Taker, config: T5Config) -> functional.Params:
    params: functional.Params = {"relative_bias": _relative_bias(taker, config)}
    for number in range(config.decoder_layers):
        block = taker.under(f"block.{number}.layer.")
        params[f"layer_{number}"] = {
            "norm1": block.rms_norm("0.layer_norm", config.width),
            "attention": _attention(block.under("0.SelfAttention."), config),
            "norm2": block.rms_norm("1.layer_norm", config.width),
            "cross": _attention(block.under("1.EncDecAttention."), config),
            "norm3": block.rms_norm("2.layer_norm", config.width),
            "ff": _feed_forward(block.under("2.DenseReluDense."), config),
        }
    return {**params, "norm": taker.rms_norm("final_layer_norm", config.width)}


def _relative_bias(taker: strict.Taker, config: T5Config) -> functional.Params:
    # One table per stack; it is stored with the first layer.
    name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {"table": taker.take(name, (config.relative_buckets, config.heads))}


def _attention(taker: strict.Taker, config: T5Config) -> functional.Params:
    d, inner = config.width, config.heads * config.head_width
    names = {"query": "q", "key": "k", "value": "v"}
    params = {name: taker.linear(theirs, d, inner, bias=False) for name, theirs in names.items()}
    return {**params, "out": taker.linear("o", inner, d, bias=False)}


def _feed_forward(taker: strict.Taker, config: T5Config) -> functional.Params:
    d, inner = config.width, config.mlp_width
    # Gated: the first matrix goes through the GELU, the second is multiplied with it.
    names = {"gate": "wi_0", "wi": "wi_1"} if config.ff == "gated-gelu" else {"wi": "wi"}
    params = {name: taker.linear(theirs, d, inner, bias=False) for name, theirs in names.items()}
    return {**params, "wo": taker.linear("wo", inner, d, bias=False)}


def published_t5_tokenizer(name: str | WeightsSource, rows: int, *, revision: str | None = None) -> Tokenizer:
    """The SentencePiece model beside a published T5 (`spiece.model`), or any SentencePiece file.

    Args:
      name: folder, hub id, located source, or a ``.model`` file.
      rows: of the network's embedding (`T5Config.vocab_size`), which the vocabulary must fit.

    Raises:
      PretrainedError: no such file, or a vocabulary that does not belong to the network.
    """
    if not isinstance(name, WeightsSource) and pathlib.Path(name).is_file():
        file = pathlib.Path(name)
    else:
        file = source.locate(name, revision).folder / "spiece.model"
    try:
        tokenizer = load_tokenizer(file)
    except VocabularyMissing as error:
        raise PretrainedError(f"{file}: missing; T5 checkpoints have their SentencePiece vocabulary there") from error
    except TokenizerError as error:
        raise PretrainedError(str(error)) from error
    check_t5_vocabulary(tokenizer, rows)
    return tokenizer


def check_t5_vocabulary(tokenizer: Tokenizer, rows: int) -> None:
    """Refuses a vocabulary that cannot be the network's.

    T5 pads its embedding: 32,000 pieces, 100 sentinels, up to a multiple of 128 make 32,128 rows.

    Raises:
      PretrainedError: naming both sizes.
    """
    pieces = tokenizer.vocab_size
    most = -(-(pieces + 100) // 128) * 128
    if not pieces <= rows <= most:
        raise PretrainedError(
            f"{tokenizer.source}: has {pieces} pieces, the network's embedding {rows} rows "
            f"(expected {pieces} to {most}): this vocabulary does not belong to this network"
        )
