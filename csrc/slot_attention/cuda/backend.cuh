// The CUDA device as a Backend of plan.h.
#pragma once

#include "ocl/cuda/launch.cuh"
#include "slot_attention/cuda/plan.h"

namespace ocl::slot_attention {

struct CudaBackend {
  Device device;
  cudaStream_t stream = nullptr;

  template <class... Parameters, class... Arguments>
  int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
             const Arguments&... arguments) const {
    return launch_kernel(kernel, blocks, threads, shared_bytes, stream, arguments...);
  }
};

}  // namespace ocl::slot_attention
