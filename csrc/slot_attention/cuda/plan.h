// From a problem to launches: which kernel, which grid, where partial sums lie. Host code without CUDA, so that the emulator tests
// run what a GPU runs. A Backend is a device that launches kernels:
//   Device device;
//   int launch(kernel, blocks, threads, shared_bytes, arguments...) const      -> error code, 0 where all is well
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "slot_attention/cuda/backward.h"
#include "slot_attention/cuda/forward.h"
#include "slot_attention/cuda/general.h"
#include "slot_attention/cuda/reduce.h"

namespace ocl::slot_attention {

struct Device {
  int64_t shared_per_block = 227 << 10;
  int64_t shared_per_multiprocessor = 228 << 10;
};

constexpr int error_invalid_value = 1;  // cudaErrorInvalidValue

// Defined in launch.h, for one type per translation unit.
template <class T, class Backend>
int launch_forward(const SlotAttentionForward& work, const Shape& shape, const Backend& backend);
template <class T, class Backend>
int launch_backward(const SlotAttentionBackward& work, const Shape& shape, const Backend& backend);
template <class T, class Backend>
int launch_general_forward(const SlotAttentionForward& work, const Shape& shape, const Backend& backend);
template <class T, class Backend>
int launch_general_backward(const SlotAttentionBackward& work, const Shape& shape, const Backend& backend);
template <class T, class Backend>
int launch_finish(const Finish& task, const Backend& backend);

// ---- Which kernels take a problem

// Whether sizes fit the 32-bit indices of blocks, tokens and rows, and scores of all slots fit shared memory.
inline bool sizes_fit(const SlotAttention& in) {
  const int64_t largest = INT32_MAX - 4096, widest = 1 << 17;
  const auto fits = [](int64_t size, int64_t limit) { return 0 <= size && size <= limit; };
  if (!fits(in.H, general_max_slots) || !fits(in.K, general_max_slots) || in.H * in.K > general_max_slots) return false;
  if (!fits(in.D, widest) || !fits(in.E, widest) || !fits(in.N, largest) || !fits(in.B, largest)) return false;
  const int64_t blocks_per_image = std::max(in.N, in.H * in.K * ceil_div(std::max(in.D, in.E) + 1, finish_threads));
  return in.B == 0 || blocks_per_image <= largest / in.B;
}

inline bool supported(const SlotAttention& in) { return sizes_fit(in); }

// Whether rows can move in 16-byte pieces, by strides of 32 bits. Strides along dimensions of size 1 are never used.
inline bool aligned(const View& view, const SlotAttention& in, int64_t rows) {
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  return address % 16 == 0 && (in.B <= 1 || view.batch % 8 == 0) && (in.H <= 1 || view.head % 8 == 0) &&
         (rows <= 1 || (view.row % 8 == 0 && std::abs(view.row) <= INT32_MAX));
}

inline bool tensor_cores_take(const SlotAttention& in) {
  const auto width_fits = [&](int64_t width) {
    return width > 0 && width % 8 == 0 && in.H * ceil_div(width, strip_width) <= max_warps;
  };
  return in.dtype != Dtype::float32 && in.N > 0 && in.H > 0 && in.K > 0 && slot_tiles_of(in) <= max_slot_tiles &&
         in.H * slot_tiles_of(in) <= max_columns && width_fits(in.D) && width_fits(in.E) && aligned(in.query, in, in.K) &&
         aligned(in.key, in, in.N) && aligned(in.value, in, in.N);
}

// ---- How they are cut

inline Shape strips_of(const SlotAttention& in) {
  Shape shape;
  shape.key_strips = static_cast<int>(ceil_div(in.D, strip_width));
  shape.value_strips = static_cast<int>(ceil_div(in.E, strip_width));
  shape.warps = static_cast<int>(in.H) * std::max(shape.key_strips, shape.value_strips);
  shape.groups = groups_of(shape.warps);
  shape.cut = cut_tokens(in.N, in.H * in.K, in.H * in.D, shape.groups * tile_tokens);
  shape.grad_factor = grad_factor_of(in.N, in.H * in.K);
  return shape;
}

// As many stages as leave room for two blocks on a multiprocessor, else two for one block, or one. 0: not even that fits.
template <class Count>
void choose_stages(Shape& shape, const Device& device, const Count& count) {
  const int64_t reserved = 1 << 10;  // shared memory of every block that the device keeps for itself
  const int64_t of_two = std::min(device.shared_per_block, device.shared_per_multiprocessor / 2 - reserved);
  for (shape.stages = max_stages; shape.stages > 0; --shape.stages) {
    shape.offsets = count(shape);
    if (shape.offsets.bytes <= (shape.stages > 2 ? of_two : device.shared_per_block)) return;
  }
}

inline Shape general_shape(const SlotAttention& in) {
  Shape shape;
  shape.cut = cut_tokens(in.N, in.H * in.K, in.H * in.D, general_tokens(in.H * in.K));
  return shape;
}

// stages 0: a general kernel.
inline Shape shape_of(const SlotAttentionForward& work, const Device& device) {
  const SlotAttention& in = work.in;
  if (!tensor_cores_take(in)) return general_shape(in);
  Shape shape = strips_of(in);
  shape.rows_in_registers = shape.groups * shape.warps <= forward_register_warps(slot_tiles_of(in));
  choose_stages(shape, device, [&](const Shape& s) { return forward_offsets(in, s); });
  return shape.stages > 0 ? shape : general_shape(in);
}

inline Shape shape_of(const SlotAttentionBackward& work, const Device& device) {
  const SlotAttention& in = work.in;
  const bool takes = tensor_cores_take(in) && aligned(work.updates, in, in.K) && aligned(work.grad_updates, in, in.K) &&
                     aligned(work.grad_key, in, in.N) && aligned(work.grad_value, in, in.N);
  if (!takes) return general_shape(in);
  Shape shape = strips_of(in);
  shape.rows_in_registers = shape.groups * shape.warps <= backward_register_warps(slot_tiles_of(in));
  choose_stages(shape, device, [&](const Shape& s) { return backward_offsets(in, s); });
  return shape.stages > 0 ? shape : general_shape(in);
}

// Gives partial sums [B, chunks, H, K, width] and totals their places after `base`, and returns the bytes taken; base may be null,
// to count only.
inline std::size_t place_partial_sums(const SlotAttention& in, Shape& shape, int64_t width, bool with_totals, void* base) {
  const int64_t rows = in.B * shape.cut.chunks * in.H * in.K, sums = ceil_div(rows * width, 64) * 64;  // 256 bytes
  shape.sums = static_cast<float*>(base);
  if (with_totals) shape.totals = shape.sums + sums;
  return static_cast<std::size_t>(sums + (with_totals ? rows : 0)) * sizeof(float);
}

// ---- Forward

inline std::size_t workspace_bytes(const SlotAttentionForward& work, const Device& device) {
  Shape shape = shape_of(work, device);
  return place_partial_sums(work.in, shape, work.in.E, true, nullptr);
}

template <class T, class Backend>
int run_stages(const SlotAttentionForward& work, const Shape& shape, const Backend& backend) {
  const SlotAttention& in = work.in;
  Finish finish;
  int error = 0;
  if (shape.stages > 0) {
    if constexpr (sizeof(T) == 2) error = launch_forward<T>(work, shape, backend);
    finish.factor = 1.0f / weight_factor;
  } else if (in.N > 0) {
    error = launch_general_forward<T>(work, shape, backend);
  }
  if (error != 0) return error;
  finish.sums = shape.sums, finish.totals = shape.totals, finish.total_out = work.total, finish.out = work.updates;
  finish.images = in.B, finish.heads = in.H, finish.slots = in.K, finish.width = in.E, finish.chunks = shape.cut.chunks;
  finish.eps = in.eps_on_weights ? 0.0f : in.eps;
  return launch_finish<T>(finish, backend);
}

template <class Backend>
int run(const SlotAttentionForward& work, void* workspace, const Backend& backend) {
  const SlotAttention& in = work.in;
  if (!supported(in)) return error_invalid_value;
  if (in.B * in.H * in.K == 0) return 0;
  Shape shape = shape_of(work, backend.device);
  place_partial_sums(in, shape, in.E, true, workspace);
  switch (in.dtype) {
    case Dtype::float32: return run_stages<float>(work, shape, backend);
    case Dtype::bfloat16: return run_stages<bfloat16>(work, shape, backend);
    case Dtype::float16: return run_stages<float16>(work, shape, backend);
  }
  return error_invalid_value;
}

// ---- Backward

inline std::size_t workspace_bytes(const SlotAttentionBackward& work, const Device& device) {
  if (work.grad_query.data == nullptr) return 0;
  Shape shape = shape_of(work, device);
  return place_partial_sums(work.in, shape, work.in.D, false, nullptr);
}

template <class T, class Backend>
int run_stages(const SlotAttentionBackward& work, const Shape& shape, const Backend& backend) {
  const SlotAttention& in = work.in;
  Finish finish;
  finish.factor = in.scale;
  int error = 0;
  if (shape.stages > 0) {
    if constexpr (sizeof(T) == 2) error = launch_backward<T>(work, shape, backend);
    finish.factor /= shape.grad_factor;
  } else if (in.N > 0) {
    error = launch_general_backward<T>(work, shape, backend);
  }
  if (error != 0 || work.grad_query.data == nullptr || in.K * in.D == 0) return error;
  finish.sums = shape.sums, finish.out = work.grad_query;
  finish.images = in.B, finish.heads = in.H, finish.slots = in.K, finish.width = in.D, finish.chunks = shape.cut.chunks;
  return launch_finish<T>(finish, backend);
}

template <class Backend>
int run(const SlotAttentionBackward& work, void* workspace, const Backend& backend) {
  const SlotAttention& in = work.in;
  if (!supported(in)) return error_invalid_value;
  const bool wanted = work.grad_query.data != nullptr || work.grad_key.data != nullptr || work.grad_value.data != nullptr;
  if (in.B * in.H == 0 || !wanted) return 0;
  Shape shape = shape_of(work, backend.device);
  if (work.grad_query.data != nullptr) place_partial_sums(in, shape, in.D, false, workspace);
  switch (in.dtype) {
    case Dtype::float32: return run_stages<float>(work, shape, backend);
    case Dtype::bfloat16: return run_stages<bfloat16>(work, shape, backend);
    case Dtype::float16: return run_stages<float16>(work, shape, backend);
  }
  return error_invalid_value;
}

}  // namespace ocl::slot_attention
