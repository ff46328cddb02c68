// The CUDA kernels of slot attention on the host emulator (ocl/cuda/host_simt.h) against float64, planned and launched by the same
// code as on a GPU. Memory is poisoned before every launch; schedules are adversarial and depend on the seed. The argument is the
// number of seeds.
//   g++ -std=c++20 -O1 -Icsrc/include -Icsrc csrc/tests/emulator/slot_attention_test.cpp && ./a.out 2
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "slot_attention/cuda/launch.h"
#include "tests/emulator/harness.h"
#include "tests/emulator/slot_attention_problem.h"

namespace ocl::slot_attention::test {
namespace {

using Emulator = ocl::test::Emulator<Device>;

// ---- What the kernels gave

struct Results {
  Tensor updates, grad_query, grad_key, grad_value;
  std::vector<float> total, attn;
};

void compute_forward(Problem& problem, const Emulator& emulator, Results& got) {
  const Case& c = problem.c;
  got.updates = Tensor(c.dtype, c.layout, c.B, c.H, c.K, c.E);
  got.total = poisoned_floats(c.B * c.H * c.K);
  if (c.attn) got.attn = poisoned_floats(c.B * c.H * c.K * c.N);
  SlotAttentionForward work;
  work.in = problem.in();
  work.updates = got.updates.view(), work.total = got.total.data(), work.attn = c.attn ? got.attn.data() : nullptr;
  std::vector<float> workspace = poisoned_floats(static_cast<int64_t>(workspace_bytes(work, c.device) / sizeof(float)));
  if (run(work, workspace.data(), emulator) != 0) throw simt::Failure("the forward refused");
}

void compute_backward(Problem& problem, const Emulator& emulator, Results& got) {
  const Case& c = problem.c;
  SlotAttentionBackward work;
  work.in = problem.in();
  work.updates = got.updates.view(), work.grad_updates = problem.grad_updates.view(), work.total = got.total.data();
  work.grad_attn = c.grad_attn ? problem.grad_attn.data() : nullptr;
  const auto wanted = [&](unsigned bit, Tensor& tensor, View& view, int64_t rows, int64_t width) {
    if ((c.wanted & bit) == 0) return;
    tensor = Tensor(c.dtype, c.layout, c.B, c.H, rows, width);
    view = tensor.view();
  };
  wanted(Wanted::query, got.grad_query, work.grad_query, c.K, c.D);
  wanted(Wanted::key, got.grad_key, work.grad_key, c.N, c.D);
  if (!c.shared) wanted(Wanted::value, got.grad_value, work.grad_value, c.N, c.E);
  std::vector<float> workspace = poisoned_floats(static_cast<int64_t>(workspace_bytes(work, c.device) / sizeof(float)));
  if (run(work, workspace.data(), emulator) != 0) throw simt::Failure("the backward refused");
}

Results compute(Problem& problem, unsigned seed) {
  const Emulator emulator{problem.c.device, seed};
  Results got;
  compute_forward(problem, emulator, got);
  compute_backward(problem, emulator, got);
  return got;
}

bool check(const Case& c, unsigned seed) {
  ocl::test::Verdict verdict;
  try {
    Problem problem(c, seed);
    const Results got = compute(problem, seed);
    Reference expected;
    const Float64 float64(problem);
    float64.forward(expected);
    float64.backward(expected, got.updates);
    const auto rounded = [&](const char* name, const Tensor& tensor, const Expected& value) {
      verdict.rounded(name, error_of(tensor, value, c.floor), tolerance_of(c));
    };
    const auto floats = [&](const char* name, const std::vector<float>& numbers, const Expected& value) {
      verdict.floats(name, error_of(numbers, value, c.floor), float_tolerance_of(c));
    };
    rounded("updates", got.updates, expected.updates);
    rounded("grad_query", got.grad_query, expected.grad_query);
    rounded("grad_key", got.grad_key, expected.grad_key);
    rounded("grad_value", got.grad_value, expected.grad_value);
    floats("total", got.total, expected.total);
    floats("attn", got.attn, expected.attn);
  } catch (const std::exception& failure) {
    verdict.fail(failure.what());
  }
  return verdict.report(describe(c));
}

// ---- Cases against float64

const Dtype half_types[] = {Dtype::bfloat16, Dtype::float16};

// Every number of slots and type that is compiled, at widths that fill strips or do not.
std::vector<Case> every_kernel() {
  const int64_t widths[][2] = {{16, 16}, {64, 64}, {96, 48}, {64, 160}, {256, 256}};
  std::vector<Case> cases;
  for (const int64_t slots : {1, 7, 11, 24, 32}) {
    for (const Dtype dtype : half_types) {
      for (const auto& [D, E] : widths) {
        for (const bool shared : {false, true}) {
          if (shared && (D != E || D == 16)) continue;
          Case c;
          c.what = "every kernel";
          c.dtype = dtype, c.B = 1, c.K = slots, c.D = D, c.E = E, c.shared = shared, c.N = 50;
          cases.push_back(c);
        }
      }
    }
  }
  for (const int64_t width : {1, 7, 33, 64, 100, 160}) {
    Case c;
    c.what = "general kernel, float32";
    c.dtype = Dtype::float32, c.N = 50, c.D = width, c.E = width + 3, c.attn = c.grad_attn = true;
    cases.push_back(c);
  }
  for (const Dtype dtype : half_types) {
    Case c;
    c.what = "general kernel, a width of its own";
    c.dtype = dtype, c.D = c.E = 36, c.attn = c.grad_attn = true;
    cases.push_back(c);
  }
  return cases;
}

// What can be asked for, for the tensor-core kernels and for the general one.
std::vector<Case> every_feature(Dtype dtype, int64_t width, bool shared) {
  std::vector<Case> cases;
  const auto add = [&](const char* what, const auto& change) {
    Case c;
    c.what = what, c.dtype = dtype, c.D = c.E = width, c.shared = shared;
    change(c);
    cases.push_back(c);
  };
  for (const int64_t tokens : {2, 15, 16, 33, 128, 200}) add("ragged N", [&](Case& c) { c.N = tokens; });
  add("one token, whose update is its value", [](Case& c) { c.N = 1, c.floor = 1.0; });
  add("several chunks", [](Case& c) { c.N = 1100, c.B = 1; });
  add("one slot", [](Case& c) { c.K = 1; });
  add("eps on the denominator", [](Case& c) { c.eps_on_weights = false, c.eps = 0.1f; });
  add("a large eps on weights", [](Case& c) { c.eps = 0.1f; });
  add("attn", [](Case& c) { c.attn = true; });
  add("gradient of attn", [](Case& c) { c.grad_attn = true; });
  add("gradient of attn, a large eps", [](Case& c) { c.attn = c.grad_attn = true, c.eps = 0.1f, c.K = 11; });
  add("heads", [](Case& c) { c.H = 4, c.attn = c.grad_attn = true; });
  add("heads with many slots", [](Case& c) { c.H = 2, c.K = 20, c.attn = c.grad_attn = true, c.B = 1; });
  add("heads outside", [](Case& c) { c.H = 3, c.layout = Layout::heads_outside; });
  add("heads of one matrix", [](Case& c) { c.H = 2, c.one_matrix = true; });
  add("gaps between rows", [](Case& c) { c.H = 2, c.layout = Layout::padded, c.attn = true; });
  add("rows that are not aligned", [](Case& c) { c.H = 2, c.layout = Layout::odd, c.attn = true; });
  add("a slot that no token chooses", [](Case& c) { c.unchosen = true, c.attn = true; });
  add("negative scale", [](Case& c) { c.scale = -1.0; });
  add("a device with 99 KiB",
      [](Case& c) { c.device.shared_per_block = 99 << 10, c.device.shared_per_multiprocessor = 100 << 10, c.N = 200; });
  add("one tile in flight", [](Case& c) { c.device.shared_per_block = c.shared ? 31 << 10 : 46 << 10, c.N = 200; });
  for (const unsigned wanted : {1u, 2u, 4u, 1u | 2u, 1u | 4u, 2u | 4u}) {
    if (shared && (wanted & Wanted::value) != 0) continue;
    add("some gradients", [&](Case& c) { c.wanted = wanted, c.grad_attn = true, c.K = 11; });
  }
  // A score of 1e4 carries a rounding error of 5e-4, and gradients vanish but for it.
  add("logits of 1e4", [](Case& c) { c.logits = 1e4, c.attn = true, c.tolerance = 4e-3, c.floor = 1.0; });
  return cases;
}

std::vector<Case> large_and_empty() {
  std::vector<Case> cases;
  for (const bool shared : {true, false}) {
    for (const auto& [width, slots] : {std::pair{384, 24}, {768, 7}, {1024, 11}, {1024, 24}}) {
      Case c;
      c.what = "wide", c.D = c.E = width, c.K = slots, c.shared = shared, c.B = 1, c.N = 20;
      cases.push_back(c);
    }
  }
  for (const int64_t slots : {65, 700, 2048}) {
    Case c;
    c.what = "many slots", c.dtype = slots == 700 ? Dtype::bfloat16 : Dtype::float32;
    c.B = 1, c.H = slots % 2 == 0 ? 2 : 1, c.K = slots / c.H, c.N = 9, c.D = 8, c.E = 12, c.attn = c.grad_attn = true;
    cases.push_back(c);
  }
  Case flat;  // all logits are 0
  flat.what = "no columns", flat.dtype = Dtype::float32, flat.D = 0, flat.N = 600, flat.attn = flat.grad_attn = true;
  cases.push_back(flat);
  for (const auto& [B, H, K, N, D, E] : std::vector<std::array<int64_t, 6>>{
           {0, 1, 7, 9, 64, 64}, {2, 0, 7, 9, 64, 64}, {2, 1, 0, 9, 64, 64}, {2, 1, 7, 0, 64, 64}, {2, 1, 7, 9, 64, 0}}) {
    for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16}) {
      for (const bool eps_on_weights : {false, true}) {
        Case c;
        c.what = "nothing to do", c.dtype = dtype, c.B = B, c.H = H, c.K = K, c.N = N, c.D = D, c.E = E;
        c.eps_on_weights = eps_on_weights;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

// ---- Laws about bits

bool report(const char* what, const Case& c, bool holds) {
  std::printf("%s %s: %s\n", holds ? "ok  " : "FAIL", what, describe(c).c_str());
  return holds;
}

constexpr Tensor Results::* tensors_of_results[] = {&Results::updates, &Results::grad_query, &Results::grad_key,
                                                    &Results::grad_value};
constexpr std::vector<float> Results::* floats_of_results[] = {&Results::total, &Results::attn};

// All results are the same bits whatever the schedule and the size of shared memory.
bool same_bits_anywhere(const Case& c) {
  Problem problem(c, 5);
  const Results first = compute(problem, 1);
  problem.c.device.shared_per_block = 99 << 10, problem.c.device.shared_per_multiprocessor = 100 << 10;
  const Results second = compute(problem, 2);
  bool holds = true;
  for (auto tensor : tensors_of_results) holds = holds && (first.*tensor).bytes() == (second.*tensor).bytes();
  for (auto floats : floats_of_results) holds = holds && first.*floats == second.*floats;
  return report("same bits on every schedule and device", c, holds);
}

// Every image gives the same bits alone and within a batch.
bool same_bits_in_any_batch(const Case& c) {
  Problem together(c, 6);
  const Results all = compute(together, 1);
  bool holds = true;
  for (int64_t image = 0; image < c.B; ++image) {
    Case one = c;
    one.B = 1;
    Problem alone(one, 6);
    for (auto tensor : {&Problem::query, &Problem::key, &Problem::value, &Problem::grad_updates}) {
      (alone.*tensor).each([&](int64_t, int64_t h, int64_t row, int64_t d) {
        (alone.*tensor).set(0, h, row, d, (together.*tensor).get(image, h, row, d));
      });
    }
    const auto part = [&](const std::vector<float>& whole) {
      const auto size = static_cast<std::ptrdiff_t>(whole.size()) / c.B;
      return std::vector(whole.begin() + image * size, whole.begin() + (image + 1) * size);
    };
    alone.grad_attn = part(together.grad_attn);
    const Results got = compute(alone, 2);
    for (auto tensor : tensors_of_results) {
      (got.*tensor).each([&](int64_t, int64_t h, int64_t row, int64_t d) {
        holds = holds && (got.*tensor).get(0, h, row, d) == (all.*tensor).get(image, h, row, d);
      });
    }
    for (auto floats : floats_of_results) holds = holds && got.*floats == part(all.*floats);
  }
  return report("same bits in any batch", c, holds);
}

// Attention over slots sums to one for every token.
bool attention_sums_to_one() {
  Case c;
  c.H = 2, c.K = 11, c.N = 100, c.attn = true, c.logits = 5.0;
  Problem problem(c, 7);
  const Results got = compute(problem, 3);
  double worst = 0.0;
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t n = 0; n < c.N; ++n) {
      double sum = 0.0;
      for (int64_t row = 0; row < c.H * c.K; ++row) sum += got.attn[static_cast<std::size_t>((b * c.H * c.K + row) * c.N + n)];
      worst = std::max(worst, std::fabs(sum - 1.0));
    }
  }
  return report("attention sums to one", c, worst < 1e-6);
}

// What the design is for runs on tensor cores whether a block has 99 KiB (sm_86, sm_89), 163 (sm_80) or 227 (sm_90).
bool tensor_cores_take_common_sizes() {
  bool holds = true;
  const auto expect = [&](int64_t kib, int64_t heads, int64_t slots, int64_t width, bool shared, bool forward, bool backward) {
    SlotAttention in;
    in.dtype = Dtype::bfloat16, in.B = 2, in.H = heads, in.K = slots, in.N = 1024, in.D = in.E = width, in.shared = shared;
    Device device;
    device.shared_per_block = kib << 10, device.shared_per_multiprocessor = (kib + 1) << 10;
    SlotAttentionForward one;
    SlotAttentionBackward other;
    one.in = other.in = in;
    holds = holds && (shape_of(one, device).stages > 0) == forward && (shape_of(other, device).stages > 0) == backward;
  };
  for (const int64_t kib : {99, 163, 227}) {
    for (const bool shared : {false, true}) {
      for (const int64_t slots : {7, 11, 24}) {
        for (const int64_t width : {64, 256, 384, 768}) expect(kib, 1, slots, width, shared, true, true);
      }
      for (const int64_t width : {16, 64, 192, 256}) expect(kib, 4, 7, width, shared, true, true);
      expect(kib, 1, 11, 1024, shared, true, true);
      expect(kib, 1, 24, 1024, shared, true, kib == 227);
    }
  }
  std::printf("%s tensor cores take common sizes\n", holds ? "ok  " : "FAIL");
  return holds;
}

bool says_what_is_supported() {
  SlotAttention in;
  in.dtype = Dtype::bfloat16, in.B = 2, in.H = 1, in.K = 7, in.N = 100, in.D = in.E = 768;
  bool holds = supported(in) && tensor_cores_take(in);
  in.key.row = 770;  // rows that cannot move in 16-byte pieces
  holds = holds && supported(in) && !tensor_cores_take(in);
  in.key.row = 768, in.D = 770;
  holds = holds && supported(in) && !tensor_cores_take(in);
  in.D = 768, in.K = general_max_slots;
  holds = holds && supported(in) && !tensor_cores_take(in);
  in.H = 2;
  holds = holds && !supported(in);
  std::printf("%s supported\n", holds ? "ok  " : "FAIL");
  return holds;
}

}  // namespace
}  // namespace ocl::slot_attention::test

int main(int argc, char** argv) {
  using namespace ocl;
  using namespace ocl::slot_attention;
  using namespace ocl::slot_attention::test;
  const unsigned seeds = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 2;
  bool ok = says_what_is_supported();
  ok = tensor_cores_take_common_sizes() && ok;
  for (unsigned seed = 1; seed <= seeds; ++seed) {
    std::vector<Case> cases = every_kernel();
    const auto append = [&](const std::vector<Case>& more) { cases.insert(cases.end(), more.begin(), more.end()); };
    append(every_feature(Dtype::bfloat16, 64, true));
    append(every_feature(Dtype::float16, 48, false));
    append(every_feature(Dtype::float32, 24, false));
    append(every_feature(Dtype::float32, 24, true));
    append(large_and_empty());
    for (const Case& c : cases) ok = check(c, seed) && ok;
  }
  for (const auto& [dtype, width] : {std::pair{Dtype::bfloat16, 64}, {Dtype::float16, 384}, {Dtype::float32, 20}}) {
    Case c;
    c.dtype = dtype, c.B = 3, c.D = c.E = width, c.N = 300, c.K = 11, c.attn = c.grad_attn = true, c.shared = width == 384;
    ok = same_bits_anywhere(c) && ok;
    ok = same_bits_in_any_batch(c) && ok;
  }
  ok = attention_sums_to_one() && ok;
  std::printf("%s\n", ok ? "all passed" : "FAILED");
  return ok ? 0 : 1;
}
