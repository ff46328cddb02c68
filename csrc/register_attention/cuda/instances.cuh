// Which launches a translation unit compiles for CUDA.
#pragma once

#include "register_attention/cuda/backend.cuh"
#include "register_attention/cuda/launch.h"

#define OCL_INSTANTIATE_FORWARD(width, T) \
  template int launch_forward<T, width>(const RegisterAttentionForward&, float*, const CudaBackend&);
#define OCL_INSTANTIATE_BACKWARD(width, T) \
  template int launch_backward<T, width>(const RegisterAttentionBackward&, const BackwardShape&, const CudaBackend&);
