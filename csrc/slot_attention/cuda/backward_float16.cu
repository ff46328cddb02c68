// Tensor-core kernels, backward, float16.
#include "slot_attention/cuda/instances.cuh"

namespace ocl::slot_attention {

OCL_INSTANTIATE_BACKWARD(float16)

}  // namespace ocl::slot_attention
