// Kernels for any size, and the second stage.
#include "slot_attention/cuda/instances.cuh"

namespace ocl::slot_attention {

#define OCL_INSTANTIATE_GENERAL(T)                                                                              \
  template int launch_general_forward<T>(const SlotAttentionForward&, const Shape&, const CudaBackend&);        \
  template int launch_general_backward<T>(const SlotAttentionBackward&, const Shape&, const CudaBackend&);      \
  template int launch_finish<T>(const Finish&, const CudaBackend&);

OCL_INSTANTIATE_GENERAL(float)
OCL_INSTANTIATE_GENERAL(bfloat16)
OCL_INSTANTIATE_GENERAL(float16)

}  // namespace ocl::slot_attention
