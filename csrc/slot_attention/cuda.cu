// Slot attention on the current CUDA device: what kernel.h promises.
#include "slot_attention/cuda/backend.cuh"

namespace ocl {
namespace {

using slot_attention::CudaBackend;
using slot_attention::Device;

Device current_device() {
  Device device;  // limits of an H100, where there is none
  device.shared_per_block = device_limit(cudaDevAttrMaxSharedMemoryPerBlockOptin, device.shared_per_block);
  device.shared_per_multiprocessor = device_limit(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device.shared_per_multiprocessor);
  return device;
}

CudaBackend backend_on(void* stream) { return {current_device(), static_cast<cudaStream_t>(stream)}; }

}  // namespace

bool slot_attention_cuda_supported(const SlotAttention& in) { return slot_attention::supported(in); }

size_t slot_attention_cuda_workspace(const SlotAttentionForward& work) {
  return slot_attention::workspace_bytes(work, current_device());
}

size_t slot_attention_cuda_workspace(const SlotAttentionBackward& work) {
  return slot_attention::workspace_bytes(work, current_device());
}

int slot_attention_cuda(const SlotAttentionForward& work, void* workspace, void* stream) {
  return slot_attention::run(work, workspace, backend_on(stream));
}

int slot_attention_cuda(const SlotAttentionBackward& work, void* workspace, void* stream) {
  return slot_attention::run(work, workspace, backend_on(stream));
}

}  // namespace ocl
