// The CUDA kernels as dispatcher operators: ocl/lib/attention_cuda.so, loaded by ocl/ops/_library.py where torch has CUDA.
// Needs no CUDA header: the kernels' own files launch, this one passes the current stream of torch.
#include "torch_attention.h"

#include <torch/csrc/stable/accelerator.h>

// Documented shims of torch 2.10 and later. Declared here because their header wants the CUDA toolkit's.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** result);

namespace ocl {

struct Cuda {
  // cp.async moves 16 bytes: rows must start at such an address.
  static Tensor fit(const Tensor& tensor) {
    const int64_t dims = tensor.dim();
    if (dims == 0) return tensor;
    const int64_t bytes = static_cast<int64_t>(tensor.element_size());
    bool fits = tensor.stride(dims - 1) == 1 || tensor.size(dims - 1) <= 1;
    fits = fits && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
    for (int64_t axis = 0; axis + 1 < dims; ++axis) fits = fits && (tensor.size(axis) <= 1 || tensor.stride(axis) * bytes % 16 == 0);
    return fits ? tensor : torch::stable::clone(torch::stable::contiguous(tensor));
  }

  static void check(int error, const char* op) { STD_TORCH_CHECK(error == 0, op, ": the kernel could not be launched, CUDA error ", error); }

  template <class Work, class Workspace, class Kernel>
  static void launch(const Work& work, const Tensor& like, const char* op, Workspace workspace_size, Kernel kernel) {
    torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    const Tensor workspace = new_tensor(like, {static_cast<int64_t>(workspace_size(work))}, ScalarType::Byte);
    check(kernel(work, workspace.data_ptr(), stream), op);
  }

#define OCL_RUN(Work, operation)                                                                             \
  static void run(const Work& work, const Tensor& like) {                                                    \
    launch(work, like, "ocl::" #operation, [](const Work& w) { return operation##_cuda_workspace(w); },      \
           [](const Work& w, void* workspace, void* stream) { return operation##_cuda(w, workspace, stream); }); \
  }
  OCL_RUN(RegisterAttentionForward, register_attention)
  OCL_RUN(RegisterAttentionBackward, register_attention)
  OCL_RUN(SlotAttentionForward, slot_attention)
  OCL_RUN(SlotAttentionBackward, slot_attention)
#undef OCL_RUN
};

}  // namespace ocl

OCL_ATTENTION_OPERATORS(CUDA, ocl::Cuda)

// Asked through ctypes before a call is routed here (see ocl/ops/_library.py): is there a kernel for these sizes on this GPU?
extern "C" __attribute__((visibility("default"))) int ocl_register_attention_cuda_supported(int dtype, int64_t keys, int64_t width) {
  ocl::RegisterAttention in;
  in.dtype = static_cast<ocl::Dtype>(dtype);
  in.B = in.H = in.M = 1, in.R = keys, in.D = width;
  return ocl::register_attention_cuda_supported(in);
}

extern "C" __attribute__((visibility("default"))) int ocl_slot_attention_cuda_supported(int dtype, int64_t heads, int64_t slots,
                                                                                       int64_t width, int64_t value_width, int64_t shared) {
  ocl::SlotAttention in;
  in.dtype = static_cast<ocl::Dtype>(dtype);
  in.B = in.N = 1, in.H = heads, in.K = slots, in.D = width, in.E = value_width, in.shared = shared != 0;
  return ocl::slot_attention_cuda_supported(in);
}
