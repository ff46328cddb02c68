// Register attention on the current CUDA device: what kernel.h promises.
#include "register_attention/cuda/backend.cuh"

namespace ocl {
namespace {

using register_attention::CudaBackend;
using register_attention::Device;

// Limits of the current device; those of an H100 where there is none, so that sizes can be asked for without a GPU.
Device current_device() {
  Device device;
  int index = 0;
  if (cudaGetDevice(&index) != cudaSuccess) return device;
  const auto read = [index](cudaDeviceAttr attribute, int64_t& value) {
    int found = 0;
    if (cudaDeviceGetAttribute(&found, attribute, index) == cudaSuccess) value = found;
  };
  read(cudaDevAttrMultiProcessorCount, device.multiprocessors);
  read(cudaDevAttrMaxSharedMemoryPerBlockOptin, device.shared_per_block);
  read(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device.shared_per_multiprocessor);
  return device;
}

CudaBackend backend_on(void* stream) { return {current_device(), static_cast<cudaStream_t>(stream)}; }

}  // namespace

bool register_attention_cuda_supported(const RegisterAttention& in) { return register_attention::supported(in); }

size_t register_attention_cuda_workspace(const RegisterAttentionForward& work) { return register_attention::workspace_bytes(work); }

size_t register_attention_cuda_workspace(const RegisterAttentionBackward& work) {
  return register_attention::workspace_bytes(work, current_device());
}

int register_attention_cuda(const RegisterAttentionForward& work, void* workspace, void* stream) {
  return register_attention::run(work, workspace, backend_on(stream));
}

int register_attention_cuda(const RegisterAttentionBackward& work, void* workspace, void* stream) {
  return register_attention::run(work, workspace, backend_on(stream));
}

}  // namespace ocl
