// Kernels for any width, and the second stages.
#include "register_attention/cuda/instances.cuh"

namespace ocl::register_attention {

#define OCL_INSTANTIATE_GENERAL(T)                                                                                         \
  template int launch_general_forward<T>(const RegisterAttentionForward&, const ForwardShape&, const CudaBackend&);        \
  template int launch_general_backward<T>(const RegisterAttentionBackward&, const BackwardShape&, const CudaBackend&);     \
  template int launch_sums<T>(const Sums&, const CudaBackend&);

OCL_INSTANTIATE_GENERAL(float)
OCL_INSTANTIATE_GENERAL(bfloat16)
OCL_INSTANTIATE_GENERAL(float16)
template int launch_mean(const MeanOverHeads&, const CudaBackend&);

}  // namespace ocl::register_attention
