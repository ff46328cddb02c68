// What kernels receive in place of tensors: a pointer, element strides and a dtype. No framework.
#pragma once

#include <cstdint>
#include <functional>

namespace ocl {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Element (b, h, i, d) lies at data[b * batch + h * head + i * row + d]: strides count elements, the last dimension has
// stride 1. A stride may be 0 (expanded tensors). data == nullptr: absent, or a gradient that nobody wants.
struct View {
  void* data = nullptr;
  int64_t batch = 0;
  int64_t head = 0;
  int64_t row = 0;
};

// Runs body(first, last) over disjoint ranges that cover [0, size), perhaps in several threads. The ranges depend on the number of
// threads: a result that must not depend on it is computed per index, never per range.
using ParallelFor = std::function<void(int64_t size, const std::function<void(int64_t, int64_t)>& body)>;

}  // namespace ocl
