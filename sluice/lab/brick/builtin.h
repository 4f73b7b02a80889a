// Factories of the built-in kinds, listed once in spec.cpp: a static library would drop
// registrations by static objects. Kinds outside this library use register_brick.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

BrickPtr make_linear(const Json& attributes);
BrickPtr make_conv2d(const Json& attributes);
BrickPtr make_batch_norm(const Json& attributes);
BrickPtr make_activation(const Json& attributes);
BrickPtr make_pool2d(const Json& attributes);
BrickPtr make_flatten(const Json& attributes);
BrickPtr make_identity(const Json& attributes);
BrickPtr make_channel_mask(const Json& attributes);
BrickPtr make_sequential(const Json& attributes);
BrickPtr make_residual_block(const Json& attributes);
BrickPtr make_gate(const Json& attributes);
BrickPtr make_constant_mask(const Json& attributes);
BrickPtr make_spark_ffn(const Json& attributes);
BrickPtr make_spark_attention(const Json& attributes);
BrickPtr make_sparse_linear(const Json& attributes);
BrickPtr make_quant_linear(const Json& attributes);
BrickPtr make_embedding(const Json& attributes);
BrickPtr make_quant_embedding(const Json& attributes);
BrickPtr make_rms_norm(const Json& attributes);
BrickPtr make_layer_norm(const Json& attributes);
BrickPtr make_attention(const Json& attributes);
BrickPtr make_ffn(const Json& attributes);
BrickPtr make_transformer_block(const Json& attributes);
BrickPtr make_decoder(const Json& attributes);
BrickPtr make_text_encoder(const Json& attributes);
BrickPtr make_learned_rows(const Json& attributes);
BrickPtr make_vision_transformer(const Json& attributes);
BrickPtr make_nested_linear(const Json& attributes);
BrickPtr make_nested_conv2d(const Json& attributes);
BrickPtr make_nested_chain(const Json& attributes);
BrickPtr make_fading_activation(const Json& attributes);
BrickPtr make_choice(const Json& attributes);
BrickPtr make_sized_linear(const Json& attributes);
BrickPtr make_lora_linear(const Json& attributes);
BrickPtr make_stitch(const Json& attributes);
BrickPtr make_stitched(const Json& attributes);
BrickPtr make_channel_norm(const Json& attributes);
BrickPtr make_channel_attention(const Json& attributes);
BrickPtr make_gated_conv_ffn(const Json& attributes);
BrickPtr make_pixel_shuffle(const Json& attributes);
BrickPtr make_prompt_generator(const Json& attributes);
BrickPtr make_restoration_net(const Json& attributes);
BrickPtr make_gated_conv_unit(const Json& attributes);
BrickPtr make_gated_conv_chain(const Json& attributes);
BrickPtr make_exit_gate(const Json& attributes);
BrickPtr make_exit_chain(const Json& attributes);
BrickPtr make_exit_decoder(const Json& attributes);
BrickPtr make_prefix_mlp(const Json& attributes);
BrickPtr make_ordinal_gate(const Json& attributes);
BrickPtr make_constant_choice(const Json& attributes);

}  // namespace sluice::lab
