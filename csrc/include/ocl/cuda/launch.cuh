// Launching kernels, and limits of the current CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace ocl {

template <class... Parameters, class... Arguments>
int launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, cudaStream_t stream,
                  const Arguments&... arguments) {
  if (shared_bytes > (48 << 10)) {  // more than every kernel may have without asking
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes), stream>>>(
      arguments...);
  return cudaGetLastError();
}

// A CUDA device, as the operator's plan.h describes it, and a stream: the Backend that its launch.h is given.
template <class Device>
struct DeviceBackend {
  Device device;
  cudaStream_t stream = nullptr;

  template <class... Parameters, class... Arguments>
  int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
             const Arguments&... arguments) const {
    return launch_kernel(kernel, blocks, threads, shared_bytes, stream, arguments...);
  }
};

// `otherwise` where there is no device, so that sizes can be asked for without a GPU.
inline int64_t device_limit(cudaDeviceAttr attribute, int64_t otherwise) {
  int device = 0, found = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&found, attribute, device) != cudaSuccess) return otherwise;
  return found;
}

}  // namespace ocl
