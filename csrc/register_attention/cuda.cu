// Register attention on the current CUDA device: what kernel.h promises.
#include "register_attention/cuda/backend.cuh"

namespace ocl {
namespace {

using register_attention::CudaBackend;
using register_attention::Device;

Device current_device() {
  Device device;  // limits of an H100, where there is none
  device.multiprocessors = device_limit(cudaDevAttrMultiProcessorCount, device.multiprocessors);
  device.shared_per_block = device_limit(cudaDevAttrMaxSharedMemoryPerBlockOptin, device.shared_per_block);
  device.shared_per_multiprocessor = device_limit(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device.shared_per_multiprocessor);
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
