// Tensor-core kernels, forward, bfloat16, narrow heads.
#include "register_attention/cuda/instances.cuh"

namespace ocl::register_attention {

OCL_NARROW_WIDTHS(OCL_INSTANTIATE_FORWARD, bfloat16)

}  // namespace ocl::register_attention
