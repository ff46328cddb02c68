// Tensor-core kernels, backward, bfloat16, wide heads.
#include "register_attention/cuda/instances.cuh"

namespace ocl::register_attention {

OCL_WIDE_WIDTHS(OCL_INSTANTIATE_BACKWARD, bfloat16)

}  // namespace ocl::register_attention
