// Tensor-core kernels, forward, float16, narrow heads.
#include "register_attention/cuda/instances.cuh"

namespace ocl::register_attention {

OCL_NARROW_WIDTHS(OCL_INSTANTIATE_FORWARD, float16)

}  // namespace ocl::register_attention
