// Tensor-core kernels, forward, float16.
#include "slot_attention/cuda/instances.cuh"

namespace ocl::slot_attention {

OCL_INSTANTIATE_FORWARD(float16)

}  // namespace ocl::slot_attention
