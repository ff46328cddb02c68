// Tensor-core kernels, backward, bfloat16, narrow heads.
#include "register_attention/cuda/instances.cuh"

namespace ocl::register_attention {

OCL_NARROW_WIDTHS(OCL_INSTANTIATE_BACKWARD, bfloat16)

}  // namespace ocl::register_attention
