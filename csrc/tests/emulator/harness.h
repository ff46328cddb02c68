// What the emulator tests of both attention operators share beside tensors: the emulator as a backend, and the verdict on a case.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

#include "ocl/cuda/simt.h"
#include "ocl/view.h"

namespace ocl::test {

// The emulator as a Backend of plan.h.
template <class Device>
struct Emulator {
  Device device;
  unsigned seed = 1;

  template <class... Parameters, class... Arguments>
  int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
             const Arguments&... arguments) const {
    if (shared_bytes > device.shared_per_block) throw simt::Failure("a block asks for more shared memory than the device has");
    simt::run_grid(blocks, 1, 1, threads, static_cast<std::size_t>(shared_bytes), seed, [&] { kernel(arguments...); });
    return 0;
  }
};

// Results that are rounded to the dtype of the inputs; those that stay float are as good in every dtype.
template <class Case>
double tolerance_of(const Case& c) {
  if (c.tolerance > 0) return c.tolerance;
  return c.dtype == Dtype::float32 ? 2e-6 : c.dtype == Dtype::float16 ? 6e-4 : 4e-3;
}

template <class Case>
double float_tolerance_of(const Case& c) {
  return c.tolerance > 0 ? c.tolerance : 1e-6;
}

// The errors of one case, and the line that tells of them.
class Verdict {
 public:
  void rounded(const char* name, double error, double tolerance) { take(name, error, tolerance, worst_); }
  void floats(const char* name, double error, double tolerance) { take(name, error, tolerance, worst_float_); }
  void fail(const char* why) { problems_ = std::string(" ") + why; }

  bool report(const std::string& what) const {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    std::printf("%s %s  error %.1e, of floats %.1e, %.2f s%s\n", problems_.empty() ? "ok  " : "FAIL", what.c_str(), worst_,
                worst_float_, seconds, problems_.c_str());
    std::fflush(stdout);
    return problems_.empty();
  }

 private:
  void take(const char* name, double error, double tolerance, double& worst) {
    if (!(error <= tolerance)) problems_ += std::string(" ") + name + "=" + std::to_string(error);
    worst = std::max(worst, error);
  }

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::string problems_;
  double worst_ = 0.0, worst_float_ = 0.0;
};

}  // namespace ocl::test
