// From a problem to launches: which kernel, which tile, which grid, where partial sums lie. Host code without CUDA, so that the
// emulator tests run what a GPU runs. A Backend is a device that launches kernels:
//   Device device;
//   int launch(kernel, blocks, threads, shared_bytes, arguments...) const      -> error code, 0 where all is well
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "register_attention/cuda/general.h"
#include "register_attention/cuda/reduce.h"

namespace ocl::register_attention {

struct Device {
  int64_t multiprocessors = 132;
  int64_t shared_per_block = 227 << 10;
  int64_t shared_per_multiprocessor = 228 << 10;

  // How the backward cuts its sums: the same on every device, so that results are too. Only tests change it.
  int64_t sum_multiprocessors = 132;   // of an H100: so many times `resident` blocks share the images of all heads
  int64_t sum_blocks_per_image = 176;  // blocks that one image alone can keep busy, over all heads
};

constexpr int error_invalid_value = 1;  // cudaErrorInvalidValue

// Defined in launch.h, for one width or one type per translation unit.
template <class T, int width, class Backend>
int launch_forward(const RegisterAttentionForward& work, float* maps, const Backend& backend);
template <class T, int width, class Backend>
int launch_backward(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend);
template <class T, class Backend>
int launch_general_forward(const RegisterAttentionForward& work, const ForwardShape& shape, const Backend& backend);
template <class T, class Backend>
int launch_general_backward(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend);
template <class T, class Backend>
int launch_sums(const Sums& sums, const Backend& backend);
template <class Backend>
int launch_mean(const MeanOverHeads& task, const Backend& backend);

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The smallest compiled number of key tiles (blocks) that holds `needed`, or 0.
template <std::size_t size>
constexpr int compiled_size(const int (&sizes)[size], int64_t needed) {
  for (const int candidate : sizes) {
    if (needed <= candidate) return candidate;
  }
  return 0;
}

// ---- Which kernels take a problem

inline bool compiled_width(int64_t width) {
#define OCL_IS_WIDTH(candidate, ...) \
  if (width == candidate) return true;
  OCL_WIDTHS(OCL_IS_WIDTH, )
#undef OCL_IS_WIDTH
  return false;
}

// Rows move in 16-byte pieces, and strides between rows are computed in 32 bits.
inline bool aligned(const View& view) {
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  return address % 16 == 0 && view.batch % 8 == 0 && view.head % 8 == 0 && view.row % 8 == 0 && view.row >= 0 &&
         view.row <= INT32_MAX;
}

inline bool aligned(const RegisterAttention& in) {
  return aligned(in.query) && aligned(in.key) && aligned(in.value) && aligned(in.register_key) && aligned(in.register_value);
}

// Types, widths and numbers of keys that are compiled for tensor cores.
inline bool has_tensor_core_kernel(const RegisterAttention& in) {
  return in.dtype != Dtype::float32 && compiled_width(in.D) && in.K + in.R <= max_keys;
}

// Whether tensor cores can take these inputs: they mask by score = -infinity before scaling, which needs a positive scale.
inline bool tensor_cores_take(const RegisterAttention& in) { return has_tensor_core_kernel(in) && aligned(in) && in.scale > 0.0f; }

inline int forward_tiles_of(const RegisterAttention& in) { return compiled_size(forward_key_tiles, ceil_div(in.K + in.R, 8)); }
inline int backward_blocks_of(const RegisterAttention& in) { return compiled_size(backward_key_blocks, ceil_div(in.K + in.R, 16)); }

inline bool tensor_cores_take(const RegisterAttentionForward& work, const Device& device) {
  return tensor_cores_take(work.in) && aligned(work.output) &&
         forward_shared_bytes(static_cast<int>(work.in.D), forward_tiles_of(work.in), 1) <= device.shared_per_block;
}

inline bool tensor_cores_take(const RegisterAttentionBackward& work, const Device& device) {
  return tensor_cores_take(work.in) && aligned(work.grad_output) && aligned(work.grad_query) &&
         backward_shared_bytes(static_cast<int>(work.in.D), backward_blocks_of(work.in), 1) <= device.shared_per_block;
}

// Whether sizes fit the 32-bit indices of blocks, tiles, rows and elements of a slice of keys, and scores fit shared memory.
inline bool sizes_fit(const RegisterAttention& in) {
  const int64_t largest = INT32_MAX - 4096;
  return in.K + in.R <= general_max_keys && in.D <= (1 << 17) && in.M <= largest && in.B <= largest && in.H <= largest &&
         (in.M == 0 || in.B * in.H <= largest / in.M);
}

inline bool supported(const RegisterAttention& in) { return sizes_fit(in) && (!has_tensor_core_kernel(in) || aligned(in)); }

// ---- Forward

inline bool needs_partial_maps(const RegisterAttentionForward& work) { return work.maps != nullptr && work.in.H > 1; }

inline std::size_t workspace_bytes(const RegisterAttentionForward& work) {
  const RegisterAttention& in = work.in;
  return needs_partial_maps(work) ? static_cast<std::size_t>(in.B * in.H * in.K * in.M) * sizeof(float) : 0;
}

// Shares `items` evenly among blocks per head, at most `most` of them, with no block more than the longest run needs.
inline int parts_of(int64_t items, int64_t most) {
  const int64_t parts = std::clamp<int64_t>(most, 1, std::max<int64_t>(items, 1));
  return static_cast<int>(ceil_div(items, std::max<int64_t>(ceil_div(items, parts), 1)));
}

// Fewer warps per block where blocks would not fit shared memory, or would leave multiprocessors idle.
inline ForwardShape forward_shape(const RegisterAttention& in, const ForwardTile& tile, int key_tiles, const Device& device) {
  const int width = static_cast<int>(in.D);
  ForwardShape shape;
  const auto tiles = [&](int warps) { return ceil_div(in.M, warps * 16 * tile.row_tiles); };
  shape.warps = tile.warps;
  while (shape.warps > 1 && (forward_shared_bytes(width, key_tiles, shape.warps) > device.shared_per_block ||
                             tiles(shape.warps) * in.B * in.H < device.multiprocessors)) {
    shape.warps /= 2;
  }
  shape.rows = shape.warps * 16 * tile.row_tiles;
  shape.tiles_per_image = static_cast<int>(tiles(shape.warps));
  const int64_t reserved = 1 << 10;  // shared memory of every block that the device keeps for itself
  const int64_t by_shared = device.shared_per_multiprocessor / (forward_shared_bytes(width, key_tiles, shape.warps) + reserved);
  const int64_t resident = std::clamp<int64_t>(by_shared, 1, tile.resident * tile.warps / shape.warps);
  shape.parts = parts_of(in.B * shape.tiles_per_image, resident * device.multiprocessors / in.H);
  return shape;
}

template <class T, class Backend>
int run_tensor_cores(const RegisterAttentionForward& work, float* maps, const Backend& backend) {
  switch (work.in.D) {
#define OCL_FORWARD(width, ...) \
  case width: return launch_forward<T, width>(work, maps, backend);
    OCL_WIDTHS(OCL_FORWARD, )
#undef OCL_FORWARD
  }
  return error_invalid_value;
}

template <class T, class Backend>
int run_general(const RegisterAttentionForward& work, float* maps, const Backend& backend) {
  ForwardShape shape;
  shape.rows = general_rows(work.in.K + work.in.R);
  shape.tiles_per_image = static_cast<int>(ceil_div(work.in.M, shape.rows));
  shape.maps = maps;
  return launch_general_forward<T>(work, shape, backend);
}

template <class T, class Backend>
int run_kernel(const RegisterAttentionForward& work, float* maps, const Backend& backend) {
  if constexpr (sizeof(T) == 2) {
    if (tensor_cores_take(work, backend.device)) return run_tensor_cores<T>(work, maps, backend);
  }
  return run_general<T>(work, maps, backend);
}

template <class Backend>
int run(const RegisterAttentionForward& work, void* workspace, const Backend& backend) {
  const RegisterAttention& in = work.in;
  if (!sizes_fit(in)) return error_invalid_value;
  if (in.B == 0 || in.M == 0 || in.H == 0) return 0;
  float* const maps = needs_partial_maps(work) ? static_cast<float*>(workspace) : work.maps;
  const int error = in.dtype == Dtype::float32    ? run_kernel<float>(work, maps, backend)
                    : in.dtype == Dtype::bfloat16 ? run_kernel<bfloat16>(work, maps, backend)
                                                  : run_kernel<float16>(work, maps, backend);
  if (error != 0 || !needs_partial_maps(work) || in.K == 0) return error;
  return launch_mean(MeanOverHeads{maps, work.maps, in.B, in.H, in.K * in.M}, backend);
}

// ---- Backward

// Cuts the rows of an image into chunks, and the chunks of all images into runs of blocks. `resident` is that of the kernel's tile.
inline BackwardShape backward_shape(const RegisterAttention& in, int rows, int resident, const Device& device) {
  BackwardShape shape;
  const int64_t tiles = ceil_div(in.M, rows), heads = std::max<int64_t>(in.H, 1);
  const int64_t wanted = std::clamp<int64_t>(ceil_div(device.sum_blocks_per_image, heads), 1, std::max<int64_t>(tiles, 1));
  shape.rows = rows;
  shape.tiles_per_image = static_cast<int>(tiles);
  shape.tiles_per_chunk = static_cast<int>(std::max<int64_t>(ceil_div(tiles, wanted), 1));
  shape.chunks = static_cast<int>(ceil_div(tiles, shape.tiles_per_chunk));
  shape.parts = parts_of(in.B * shape.chunks, resident * device.sum_multiprocessors / heads);
  return shape;
}

inline BackwardShape backward_shape(const RegisterAttentionBackward& work, const Device& device) {
  const RegisterAttention& in = work.in;
  if (!tensor_cores_take(work, device)) return backward_shape(in, general_rows(in.K + in.R), 4, device);
  const int width = static_cast<int>(in.D), key_blocks = backward_blocks_of(in);
  const BackwardTile tile = backward_tile(width, key_blocks);
  BackwardShape shape = backward_shape(in, tile.rows, tile.resident, device);
  shape.stages = backward_shared_bytes(width, key_blocks, 2) <= device.shared_per_block ? 2 : 1;
  return shape;
}

// Gives every wanted partial sum its place after `base` and returns the bytes taken; base may be null, to count only.
inline std::size_t place_partial_sums(const RegisterAttentionBackward& work, BackwardShape& shape, void* base) {
  const RegisterAttention& in = work.in;
  int64_t taken = 0;
  const auto place = [&](bool wanted, int64_t size) -> float* {
    if (!wanted || size == 0) return nullptr;
    const int64_t offset = taken;
    taken += ceil_div(size, 64) * 64;  // 256 bytes
    return static_cast<float*>(base) + offset;
  };
  const int64_t slots = in.B * in.H * shape.chunks * in.K * in.D, registers = in.H * shape.parts * in.R * in.D;
  shape.slot_key = place(work.grad_key.data != nullptr, slots);
  shape.slot_value = place(work.grad_value.data != nullptr, slots);
  shape.register_key = place(work.grad_register_key.data != nullptr, registers);
  shape.register_value = place(work.grad_register_value.data != nullptr, registers);
  shape.sink = place(work.grad_sink_logits != nullptr && in.sink_logits != nullptr, in.H * shape.parts);
  return static_cast<std::size_t>(taken) * sizeof(float);
}

inline std::size_t workspace_bytes(const RegisterAttentionBackward& work, const Device& device) {
  BackwardShape shape = backward_shape(work, device);
  return place_partial_sums(work, shape, nullptr);
}

inline Sums sums_of(const RegisterAttentionBackward& work, const BackwardShape& shape) {
  const RegisterAttention& in = work.in;
  Sums sums;
  const auto add = [&](const float* partial, const View& out, int64_t images, int parts, int64_t rows, float scale) {
    SumOverParts sum;
    sum.partial = partial, sum.out = out, sum.scale = scale;
    sum.slices = images * in.H, sum.heads = in.H, sum.parts = parts;
    sum.rows = static_cast<int>(rows), sum.width = static_cast<int>(in.D);
    if (out.data != nullptr) sums.add(sum);
  };
  add(shape.slot_key, work.grad_key, in.B, shape.chunks, in.K, in.scale);
  add(shape.slot_value, work.grad_value, in.B, shape.chunks, in.K, 1.0f);
  add(shape.register_key, work.grad_register_key, 1, shape.parts, in.R, in.scale);
  add(shape.register_value, work.grad_register_value, 1, shape.parts, in.R, 1.0f);
  if (work.grad_sink_logits != nullptr) {
    SumOverParts sum;
    sum.partial = shape.sink, sum.out = View{work.grad_sink_logits, 0, 1, 0}, sum.out_is_float = true;
    sum.slices = in.H, sum.heads = in.H, sum.parts = shape.sink != nullptr ? shape.parts : 0, sum.rows = 1, sum.width = 1;
    sums.add(sum);
  }
  return sums;
}

template <class T, class Backend>
int run_tensor_cores(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend) {
  switch (work.in.D) {
#define OCL_BACKWARD(width, ...) \
  case width: return launch_backward<T, width>(work, shape, backend);
    OCL_WIDTHS(OCL_BACKWARD, )
#undef OCL_BACKWARD
  }
  return error_invalid_value;
}

template <class T, class Backend>
int run_kernel(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend) {
  if constexpr (sizeof(T) == 2) {
    if (tensor_cores_take(work, backend.device)) return run_tensor_cores<T>(work, shape, backend);
  }
  return launch_general_backward<T>(work, shape, backend);
}

template <class T, class Backend>
int run_both_stages(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend) {
  const bool any_row = work.in.B > 0 && work.in.M > 0 && work.in.H > 0;
  const int error = any_row ? run_kernel<T>(work, shape, backend) : 0;
  const Sums sums = sums_of(work, shape);
  return error != 0 || sums.count == 0 ? error : launch_sums<T>(sums, backend);
}

template <class Backend>
int run(const RegisterAttentionBackward& work, void* workspace, const Backend& backend) {
  if (!sizes_fit(work.in)) return error_invalid_value;
  BackwardShape shape = backward_shape(work, backend.device);
  place_partial_sums(work, shape, workspace);
  switch (work.in.dtype) {
    case Dtype::float32: return run_both_stages<float>(work, shape, backend);
    case Dtype::bfloat16: return run_both_stages<bfloat16>(work, shape, backend);
    case Dtype::float16: return run_both_stages<float16>(work, shape, backend);
  }
  return error_invalid_value;
}

}  // namespace ocl::register_attention
