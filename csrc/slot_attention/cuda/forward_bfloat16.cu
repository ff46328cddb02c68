// Tensor-core kernels, forward, bfloat16.
#include "slot_attention/cuda/instances.cuh"

namespace ocl::slot_attention {

OCL_INSTANTIATE_FORWARD(bfloat16)

}  // namespace ocl::slot_attention
