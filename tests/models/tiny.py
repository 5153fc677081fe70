"""Tiny models with random weights of every architecture that transformers has, without a download.

A configuration is shrunk by the names of its fields: whatever is called ``hidden_size`` or ``d_model`` becomes 32, and
so on, in sub-configurations too. What needs more is in ``ESPECIALLY``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

LABELS = 5

OF_SIZE: list[tuple[Any, str]] = [
    (32, """
        hidden_size d_model n_embd dim emb_dim model_dim embed_dim lm_head_hidden_size embedding_size
        embed_size input_embedding_size output_embedding_size lru_width
    """),
    (2, """
        num_hidden_layers n_layer n_layers num_layers num_blocks depth num_key_value_heads num_kv_heads
        multi_query_group_num n_kv_heads num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k
        top_k_experts linear_num_key_heads eos_token_id
    """),
    (1, """
        encoder_layers decoder_layers num_encoder_layers num_decoder_layers n_group topk_group
        n_shared_experts moe_num_shared_experts num_shared_experts bos_token_id
    """),
    (4, """
        num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads
        decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads num_experts
        num_local_experts n_routed_experts moe_num_experts num_routed_experts index_n_heads index_topk
        linear_num_value_heads rotary_dim
    """),
    (8, """
        head_dim attention_head_size attention_head_dim kv_channels global_head_dim d_kv qk_nope_head_dim
        qk_rope_head_dim v_head_dim hidden_size_per_layer_input mamba_d_state mamba_d_head mamba_n_heads
        mamba_num_heads mamba_head_dim state_size linear_key_head_dim linear_value_head_dim patch_size
    """),
    (64, """
        intermediate_size ffn_dim d_ff ffn_hidden_size n_inner dff d_inner ffn_size encoder_ffn_dim
        decoder_ffn_dim shared_intermediate_size feed_forward_size max_position_embeddings n_positions n_ctx
        max_seq_len max_sequence_length max_target_positions max_source_positions seq_length
    """),
    (16, """
        moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size q_lora_rank kv_lora_rank
        o_lora_rank index_head_dim qk_head_dim sliding_window attention_window image_size
    """),
    (99, """
        vocab_size n_words vocab_size_per_layer_input n_positions_vocab decoder_vocab_size
    """),
    (False, """
        use_cache
    """),
    (LABELS, """
        num_labels
    """),
    (0, """
        pad_token_id
    """),
    (0.0, """
        dropout attention_dropout activation_dropout hidden_dropout hidden_dropout_prob
        attention_probs_dropout_prob classifier_dropout classifier_dropout_prob classifier_dropout_rate
        embd_pdrop attn_pdrop resid_pdrop summary_first_dropout summary_last_dropout attention_dropout_prob
        layerdrop encoder_layerdrop decoder_layerdrop
    """),
]  # fmt: skip
SIZES = {name: size for size, names in OF_SIZE for name in names.split()}

KINDS = ("full_attention", "sliding_attention")
ESPECIALLY: dict[str, dict[str, Any]] = {
    "bros": {"hidden_size": 64},
    "cohere_compass_text": {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in KINDS}},
    "esmc": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "visual_embed": False},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "luke": {"entity_vocab_size": 99, "entity_emb_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "": {"attn_pdrop": 0},  # the attention's part of mpt's
    "neomme": {"head_dim": 16},
    "perceiver": {"d_latents": 32, "num_latents": 8, "d_model": 32, "image_size": 16, "max_position_embeddings": 12},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [4, 3],
        "lsh_attention_probs_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "feed_forward_size": 32,
    },
    "roc_bert": {"shape_vocab_size": 99, "pronunciation_vocab_size": 99},
    **{kind: {"decoder_start_token_id": 0} for kind in ("longt5", "marian", "switch_transformers", "t5")},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2, "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type → fields that it needs besides."""


def fields_of(config_class: type) -> set[str]:
    """The names that a configuration takes."""
    names: set[str] = set()
    for one in config_class.__mro__:
        names |= set(getattr(one, "__annotations__", {}))
        if "__init__" in vars(one):
            names |= set(inspect.signature(one.__init__).parameters)
    return names


def shrunk(config_class: type, whole: bool = True, **besides: Any) -> Any:
    """A configuration of this class with everything small."""
    known = fields_of(config_class)
    small = {name: size for name, size in SIZES.items() if name in known}
    if "kv_lora_rank" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]  # latent attention has as many of both
    small |= ESPECIALLY.get(config_class.model_type, {})
    for part in getattr(config_class, "sub_configs", {}):
        kind = type(getattr(config_class(), part, None))
        if hasattr(kind, "model_type") and part not in small:
            small[part] = shrunk(kind, whole=False)
    if whole:
        small["num_labels"] = LABELS
    return config_class(**{**small, **besides})


def built(config_class: type, model_class: type, **besides: Any) -> nn.Module:
    """A model with random weights, the same ones every time; a ValueError if it did not become small."""
    own = getattr(model_class, "config_class", None)  # of a model of texts and images, what it takes may be the texts'
    config = shrunk(own or config_class, **besides)
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > 5_000_000:
        raise ValueError(f"does not become small: {size:,} parameters")
    torch.manual_seed(0)
    return model_class(config)
