// Scratch memory of the CPU kernels.
#pragma once

namespace ocl {
namespace {

// `size` elements without a value, aligned to a cache line, freed at the end of the scope.
template <class Element>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<Element*>(::operator new(static_cast<std::size_t>(size > 0 ? size : 1) * sizeof(Element), kLine))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(data_, kLine); }
  Element* data() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  Element* data_;
};

}  // namespace
}  // namespace ocl
