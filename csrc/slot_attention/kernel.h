// One grouping step of Slot Attention (Locatello et al. 2020, algorithm 1, lines 5 to 8):
//   attn[:, :, n] = softmax over (heads x slots) of scale * query . key[n]
//   w = attn + eps (eps_on_weights) or attn;  total = sum_n w (+ eps where it is on the denominator)
//   updates = sum_n (w / total) value[n]
// Backward, from the saved updates and totals, without a pass for delta:
//   g = (dupdates . value[n] - dupdates . updates) / total + dattn;  dlogits = attn (g - sum over heads x slots of attn g)
//   dquery = scale sum_n dlogits key[n],  dkey = scale dlogits query,  dvalue = (w / total) dupdates
#pragma once

#include <cstddef>

#include "ocl/view.h"

namespace ocl {

struct SlotAttention {
  Dtype dtype = Dtype::float32;
  int64_t B = 0, H = 0, K = 0, N = 0, D = 0, E = 0;  // heads, slots, tokens, key width, value width
  float scale = 1.0f, eps = 1e-8f;
  bool eps_on_weights = true;  // else on the denominator only
  bool shared = false;         // value is key (the absorbed form): value.data == key.data, E == D, read once
  View query;                  // [B, H, K, D]
  View key;                    // [B, H, N, D]
  View value;                  // [B, H, N, E]
};

struct SlotAttentionForward {
  SlotAttention in;
  View updates;            // [B, H, K, E], dtype of the inputs
  float* total = nullptr;  // [B, H, K] contiguous
  float* attn = nullptr;   // [B, H, K, N] contiguous, or null
};

// Wanted gradients have data != nullptr; each is written completely. Where `shared`, grad_key holds both paths and grad_value
// is absent. Sums run in an order that depends on the sizes only.
struct SlotAttentionBackward {
  SlotAttention in;
  View updates, grad_updates;        // [B, H, K, E]
  const float* total = nullptr;      // [B, H, K] contiguous
  const float* grad_attn = nullptr;  // [B, H, K, N] contiguous, or null
  View grad_query;                   // [B, H, K, D]
  View grad_key;                     // [B, H, N, D]
  View grad_value;                   // [B, H, N, E]
};

void slot_attention_cpu(const SlotAttentionForward& work, const ParallelFor& parallel);
void slot_attention_cpu(const SlotAttentionBackward& work, const ParallelFor& parallel);

// CUDA: as in register_attention/kernel.h.
bool slot_attention_cuda_supported(const SlotAttention& in);
size_t slot_attention_cuda_workspace(const SlotAttentionForward& work);
size_t slot_attention_cuda_workspace(const SlotAttentionBackward& work);
int slot_attention_cuda(const SlotAttentionForward& work, void* workspace, void* stream);
int slot_attention_cuda(const SlotAttentionBackward& work, void* workspace, void* stream);

}  // namespace ocl
