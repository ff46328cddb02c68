// Which launches a translation unit compiles for CUDA.
#pragma once

#include "slot_attention/cuda/backend.cuh"
#include "slot_attention/cuda/launch.h"

#define OCL_INSTANTIATE_FORWARD(T) template int launch_forward<T>(const SlotAttentionForward&, const Shape&, const CudaBackend&);
#define OCL_INSTANTIATE_BACKWARD(T) template int launch_backward<T>(const SlotAttentionBackward&, const Shape&, const CudaBackend&);
