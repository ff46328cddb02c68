// Cross-attention of M queries to K keys of their own image (slots) and R keys that the whole batch shares (registers):
//   s[l] = scale * query . key[l]   over the K + R keys that are not masked, and the sink logit of the head
//   p = softmax(s),  output = sum_l p[l] value[l] + sum_r p[r] register_value[r]      (the sink has no value)
//   maps[b, k, m] = mean over heads of p[k]
// A row without a key left gives zeros. logsumexp = log(sum exp s), natural; -infinity for such a row.
#pragma once

#include <cstddef>

#include "ocl/view.h"

namespace ocl {

struct RegisterAttention {
  Dtype dtype = Dtype::float32;
  int64_t B = 0, H = 0, M = 0, K = 0, R = 0, D = 0;  // any of them may be 0
  float scale = 1.0f;
  View query;                          // [B, H, M, D]
  View key, value;                     // [B, H, K, D]
  View register_key, register_value;   // [H, R, D], batch stride 0
  const uint8_t* slot_mask = nullptr;  // [B, K] contiguous, 0 = not attended; null: all are
  const float* sink_logits = nullptr;  // [H] contiguous, not multiplied by scale; null: no sink
};

struct RegisterAttentionForward {
  RegisterAttention in;
  View output;                 // [B, H, M, D], dtype of the inputs
  float* logsumexp = nullptr;  // [B, H, M] contiguous, or null
  float* maps = nullptr;       // [B, K, M] contiguous, or null
};

// Wanted gradients have data != nullptr; each is written completely. P is computed again from logsumexp.
// Sums over rows, chunks and images run in an order that depends on the sizes only, and gradients of an image do not depend
// on the batch it came in.
struct RegisterAttentionBackward {
  RegisterAttention in;
  View grad_output;                 // [B, H, M, D]
  const float* grad_maps = nullptr;  // [B, K, M] contiguous, or null
  const float* logsumexp = nullptr;  // [B, H, M] contiguous
  View grad_query;                  // [B, H, M, D]
  View grad_key, grad_value;        // [B, H, K, D]
  View grad_register_key, grad_register_value;  // [H, R, D]
  float* grad_sink_logits = nullptr;            // [H]
};

// CPU: always possible. Each picks the best of the compiled instruction sets that this processor has (see cpu/isa.h).
void register_attention_cpu(const RegisterAttentionForward& work, const ParallelFor& parallel);
void register_attention_cpu(const RegisterAttentionBackward& work, const ParallelFor& parallel);

// CUDA: `stream` is a cudaStream_t. `workspace` holds at least ..._workspace(work) bytes, 256-byte aligned. The return value is a
// cudaError_t. Sizes that no kernel takes (see ..._supported) return cudaErrorInvalidValue.
bool register_attention_cuda_supported(const RegisterAttention& in);
size_t register_attention_cuda_workspace(const RegisterAttentionForward& work);
size_t register_attention_cuda_workspace(const RegisterAttentionBackward& work);
int register_attention_cuda(const RegisterAttentionForward& work, void* workspace, void* stream);
int register_attention_cuda(const RegisterAttentionBackward& work, void* workspace, void* stream);

}  // namespace ocl
