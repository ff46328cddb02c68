// The CUDA device as a Backend of plan.h.
#pragma once

#include <cuda_runtime.h>

#include "register_attention/cuda/plan.h"

namespace ocl::register_attention {

struct CudaBackend {
  Device device;
  cudaStream_t stream = nullptr;

  template <class... Parameters, class... Arguments>
  int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
             const Arguments&... arguments) const {
    if (shared_bytes > (48 << 10)) {  // more than every kernel may have without asking
      const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
      if (error != cudaSuccess) return error;
    }
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), stream>>>(
        arguments...);
    return cudaGetLastError();
  }
};

}  // namespace ocl::register_attention
