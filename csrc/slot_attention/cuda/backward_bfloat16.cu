// Tensor-core kernels, backward, bfloat16.
#include "slot_attention/cuda/instances.cuh"

namespace ocl::slot_attention {

OCL_INSTANTIATE_BACKWARD(bfloat16)

}  // namespace ocl::slot_attention
