// The CPU kernels as dispatcher operators: ocl/lib/attention_cpu.so, loaded by ocl/ops/_library.py.
#include "ocl/cpu/isa.h"
#include "torch_attention.h"

namespace ocl {

struct Cpu {
  // The kernels read any strides but need each row in one piece.
  static Tensor fit(const Tensor& tensor) {
    const int64_t last = tensor.dim() - 1;
    return last < 0 || tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : torch::stable::contiguous(tensor);
  }

  static void parallel(int64_t size, const std::function<void(int64_t, int64_t)>& body) {
    torch::stable::parallel_for(0, size, 1, body);
  }

  static void run(const RegisterAttentionForward& work, const Tensor&) { register_attention_cpu(work, parallel); }
  static void run(const RegisterAttentionBackward& work, const Tensor&) { register_attention_cpu(work, parallel); }
  static void run(const SlotAttentionForward& work, const Tensor&) { slot_attention_cpu(work, parallel); }
  static void run(const SlotAttentionBackward& work, const Tensor&) { slot_attention_cpu(work, parallel); }
};

}  // namespace ocl

OCL_ATTENTION_OPERATORS(CPU, ocl::Cpu)

// Asked through ctypes: the instruction set that the kernels use on this processor.
extern "C" __attribute__((visibility("default"))) const char* ocl_cpu_isa() { return ocl::cpu_isa_name(); }
