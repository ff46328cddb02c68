// Definitions of the launches that plan.h declares: the only place where kernels are named. Included where they are instantiated.
#pragma once

#include "slot_attention/cuda/plan.h"

namespace ocl::slot_attention {

template <class T, int slot_tiles, class Backend>
int launch_forward_tiles(const SlotAttentionForward& work, const Shape& shape, const Backend& backend) {
  const auto launch = [&](auto kernel) {
    return backend.launch(kernel, work.in.B * shape.cut.chunks, 32 * shape.warps * shape.groups, shape.offsets.bytes, work, shape);
  };
  if constexpr (forward_register_warps(slot_tiles) > 0) {
    if (shape.rows_in_registers) return launch(&forward_kernel<T, slot_tiles, true>);
  }
  if constexpr (forward_register_warps(slot_tiles) < max_warps) return launch(&forward_kernel<T, slot_tiles, false>);
  return error_invalid_value;
}

template <class T, class Backend>
int launch_forward(const SlotAttentionForward& work, const Shape& shape, const Backend& backend) {
  switch (slot_tiles_of(work.in)) {
    case 1: return launch_forward_tiles<T, 1>(work, shape, backend);
    case 2: return launch_forward_tiles<T, 2>(work, shape, backend);
    case 3: return launch_forward_tiles<T, 3>(work, shape, backend);
    case 4: return launch_forward_tiles<T, 4>(work, shape, backend);
  }
  return error_invalid_value;
}

template <class T, int slot_tiles, class Backend>
int launch_backward_tiles(const SlotAttentionBackward& work, const Shape& shape, const Backend& backend) {
  const auto launch = [&](auto kernel) {
    return backend.launch(kernel, work.in.B * shape.cut.chunks, 32 * shape.warps * shape.groups, shape.offsets.bytes, work, shape);
  };
  if constexpr (backward_register_warps(slot_tiles) > 0) {
    if (shape.rows_in_registers) return launch(&backward_kernel<T, slot_tiles, true>);
  }
  if constexpr (backward_register_warps(slot_tiles) < max_warps) return launch(&backward_kernel<T, slot_tiles, false>);
  return error_invalid_value;
}

template <class T, class Backend>
int launch_backward(const SlotAttentionBackward& work, const Shape& shape, const Backend& backend) {
  switch (slot_tiles_of(work.in)) {
    case 1: return launch_backward_tiles<T, 1>(work, shape, backend);
    case 2: return launch_backward_tiles<T, 2>(work, shape, backend);
    case 3: return launch_backward_tiles<T, 3>(work, shape, backend);
    case 4: return launch_backward_tiles<T, 4>(work, shape, backend);
  }
  return error_invalid_value;
}

template <class T, class Backend>
int launch_general_forward(const SlotAttentionForward& work, const Shape& shape, const Backend& backend) {
  return backend.launch(&general_forward_kernel<T>, work.in.B * shape.cut.chunks, general_threads,
                        general_shared_bytes(work.in.H * work.in.K, false), work, shape);
}

template <class T, class Backend>
int launch_general_backward(const SlotAttentionBackward& work, const Shape& shape, const Backend& backend) {
  return backend.launch(&general_backward_kernel<T>, work.in.B * shape.cut.chunks, general_threads,
                        general_shared_bytes(work.in.H * work.in.K, true), work, shape);
}

template <class T, class Backend>
int launch_finish(const Finish& task, const Backend& backend) {
  return backend.launch(&finish_kernel<T>, finish_blocks(task), finish_threads, int64_t{0}, task);
}

}  // namespace ocl::slot_attention
