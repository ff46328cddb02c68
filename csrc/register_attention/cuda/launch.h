// Definitions of the launches that plan.h declares: the only place where kernels are named. Included where they are instantiated.
#pragma once

#include <utility>

#include "register_attention/cuda/plan.h"

namespace ocl::register_attention {

template <class T, int width, int key_tiles, class Backend>
int launch_forward_tiles(const RegisterAttentionForward& work, float* maps, const Backend& backend) {
  ForwardShape shape = forward_shape(work.in, forward_tile(width, key_tiles), key_tiles, backend.device);
  shape.maps = maps;
  return backend.launch(&forward_kernel<T, width, key_tiles>, work.in.H * shape.parts, 32 * shape.warps,
                        forward_shared_bytes(width, key_tiles, shape.warps), work, shape);
}

template <class T, int width, class Backend, std::size_t... index>
int launch_forward_of(int key_tiles, const RegisterAttentionForward& work, float* maps, const Backend& backend,
                      std::index_sequence<index...>) {
  int error = error_invalid_value;
  ((key_tiles == forward_key_tiles[index] ? (error = launch_forward_tiles<T, width, forward_key_tiles[index]>(work, maps, backend))
                                          : 0),
   ...);
  return error;
}

template <class T, int width, class Backend>
int launch_forward(const RegisterAttentionForward& work, float* maps, const Backend& backend) {
  return launch_forward_of<T, width>(forward_tiles_of(work.in), work, maps, backend,
                                     std::make_index_sequence<std::size(forward_key_tiles)>());
}

template <class T, int width, int key_blocks, class Backend>
int launch_backward_blocks(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend) {
  return backend.launch(&backward_kernel<T, width, key_blocks>, work.in.H * shape.parts,
                        BackwardBlock<T, width, key_blocks>::threads, backward_shared_bytes(width, key_blocks, shape.stages), work,
                        shape);
}

template <class T, int width, class Backend, std::size_t... index>
int launch_backward_of(int key_blocks, const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend,
                       std::index_sequence<index...>) {
  int error = error_invalid_value;
  ((key_blocks == backward_key_blocks[index]
        ? (error = launch_backward_blocks<T, width, backward_key_blocks[index]>(work, shape, backend))
        : 0),
   ...);
  return error;
}

template <class T, int width, class Backend>
int launch_backward(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend) {
  return launch_backward_of<T, width>(backward_blocks_of(work.in), work, shape, backend,
                                      std::make_index_sequence<std::size(backward_key_blocks)>());
}

template <class T, class Backend>
int launch_general_forward(const RegisterAttentionForward& work, const ForwardShape& shape, const Backend& backend) {
  return backend.launch(&general_forward_kernel<T>, work.in.H * work.in.B * shape.tiles_per_image, general_threads,
                        general_shared_bytes(work.in.K + work.in.R, false), work, shape);
}

template <class T, class Backend>
int launch_general_backward(const RegisterAttentionBackward& work, const BackwardShape& shape, const Backend& backend) {
  return backend.launch(&general_backward_kernel<T>, work.in.H * shape.parts, general_threads,
                        general_shared_bytes(work.in.K + work.in.R, true), work, shape);
}

template <class T, class Backend>
int launch_sums(const Sums& sums, const Backend& backend) {
  return backend.launch(&sum_kernel<T>, sums.blocks(), sum_threads, sum_shared_bytes, sums);
}

template <class Backend>
int launch_mean(const MeanOverHeads& task, const Backend& backend) {
  return backend.launch(&mean_kernel<float>, mean_blocks(task), mean_threads, int64_t{0}, task);
}

}  // namespace ocl::register_attention
