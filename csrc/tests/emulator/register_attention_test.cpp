// The CUDA kernels of register attention on the host emulator (ocl/cuda/host_simt.h) against float64, planned and launched by the
// same code as on a GPU. Memory is poisoned before every launch; masked slots hold NaN; schedules are adversarial and depend on the
// seed. The argument is the number of seeds.
//   g++ -std=c++20 -O1 -Icsrc/include -Icsrc csrc/tests/emulator/register_attention_test.cpp && ./a.out 2
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "register_attention/cuda/launch.h"
#include "tests/emulator/harness.h"
#include "tests/emulator/register_attention_problem.h"

namespace ocl::register_attention::test {
namespace {

using Emulator = ocl::test::Emulator<Device>;

// ---- What the kernels gave

struct Results {
  Tensor output, grad_query, grad_key, grad_value, grad_register_key, grad_register_value;
  std::vector<float> logsumexp, maps, grad_sinks;
};

Results compute(Problem& problem, unsigned seed) {
  const Case& c = problem.c;
  const Emulator emulator{c.device, seed};
  Results got;
  got.output = Tensor(c.dtype, c.layout, c.B, c.H, c.M, c.D);
  got.logsumexp = poisoned_floats(c.B * c.H * c.M);
  if (c.maps) got.maps = poisoned_floats(c.B * c.K * c.M);
  RegisterAttentionForward forward;
  forward.in = problem.in();
  forward.output = got.output.view(), forward.logsumexp = got.logsumexp.data();
  forward.maps = c.maps ? got.maps.data() : nullptr;
  std::vector<float> workspace = poisoned_floats(static_cast<int64_t>(workspace_bytes(forward) / sizeof(float)));
  if (run(forward, workspace.data(), emulator) != 0) throw simt::Failure("the forward refused");

  RegisterAttentionBackward backward;
  backward.in = problem.in();
  backward.grad_output = problem.grad_output.view();
  backward.grad_maps = c.maps ? problem.grad_maps.data() : nullptr;
  backward.logsumexp = got.logsumexp.data();
  const auto wanted = [&](unsigned bit, Tensor& tensor, View& view, int64_t batch, int64_t rows) {
    if ((c.wanted & bit) == 0) return;
    tensor = Tensor(c.dtype, c.layout, batch, c.H, rows, c.D);
    view = tensor.view();
  };
  wanted(Wanted::query, got.grad_query, backward.grad_query, c.B, c.M);
  wanted(Wanted::key, got.grad_key, backward.grad_key, c.B, c.K);
  wanted(Wanted::value, got.grad_value, backward.grad_value, c.B, c.K);
  wanted(Wanted::register_key, got.grad_register_key, backward.grad_register_key, 1, c.R);
  wanted(Wanted::register_value, got.grad_register_value, backward.grad_register_value, 1, c.R);
  if (c.sink && (c.wanted & Wanted::sink) != 0) {
    got.grad_sinks = poisoned_floats(c.H);
    backward.grad_sink_logits = got.grad_sinks.data();
  }
  workspace = poisoned_floats(static_cast<int64_t>(workspace_bytes(backward, c.device) / sizeof(float)));
  if (run(backward, workspace.data(), emulator) != 0) throw simt::Failure("the backward refused");
  return got;
}

bool check(const Case& c, unsigned seed) {
  ocl::test::Verdict verdict;
  try {
    Problem problem(c, seed);
    const Results got = compute(problem, seed);
    const Reference expected = reference(problem);
    const auto rounded = [&](const char* name, const Tensor& tensor, const Expected& value) {
      verdict.rounded(name, error_of(tensor, value, c.floor), tolerance_of(c));
    };
    const auto floats = [&](const char* name, const std::vector<float>& numbers, const Expected& value, double floor) {
      verdict.floats(name, error_of(numbers, value, floor), float_tolerance_of(c));
    };
    rounded("output", got.output, expected.output);
    rounded("grad_query", got.grad_query, expected.grad_query);
    rounded("grad_key", got.grad_key, expected.grad_key);
    rounded("grad_value", got.grad_value, expected.grad_value);
    rounded("grad_register_key", got.grad_register_key, expected.grad_register_key);
    rounded("grad_register_value", got.grad_register_value, expected.grad_register_value);
    floats("logsumexp", got.logsumexp, expected.logsumexp, c.floor);
    floats("maps", got.maps, expected.maps, c.floor);
    floats("grad_sinks", got.grad_sinks, expected.grad_sinks, 1.0);
  } catch (const std::exception& failure) {
    verdict.fail(failure.what());
  }
  return verdict.report(describe(c));
}

// ---- Cases against float64

const Dtype half_types[] = {Dtype::bfloat16, Dtype::float16};

// Every width, number of keys and type that is compiled.
std::vector<Case> every_kernel() {
  const int64_t keys[][2] = {{7, 20}, {7, 77}, {24, 77}, {30, 98}};
  std::vector<Case> cases;
#define OCL_ADD(width, ...)                        \
  for (const auto& [slots, registers] : keys) {    \
    for (const Dtype dtype : half_types) {         \
      Case c;                                      \
      c.what = "every kernel";                     \
      c.dtype = dtype, c.B = 2, c.H = 1, c.M = 70; \
      c.K = slots, c.R = registers, c.D = width;   \
      cases.push_back(c);                          \
    }                                              \
  }
  OCL_WIDTHS(OCL_ADD, )
#undef OCL_ADD
  for (const int64_t width : {1, 7, 33, 40, 64, 100, 160}) {
    Case c;
    c.what = "general kernel, float32";
    c.dtype = Dtype::float32, c.M = 50, c.D = width;
    cases.push_back(c);
  }
  for (const Dtype dtype : half_types) {
    Case c;
    c.what = "general kernel, a width of its own";
    c.dtype = dtype, c.D = 36, c.maps = c.sink = true;
    cases.push_back(c);
  }
  return cases;
}

// What can be asked for, for the tensor-core kernels and for the general one.
std::vector<Case> every_feature(Dtype dtype, int64_t width) {
  std::vector<Case> cases;
  const auto add = [&](const char* what, const auto& change) {
    Case c;
    c.what = what, c.dtype = dtype, c.D = width;
    change(c);
    cases.push_back(c);
  };
  for (const int64_t rows : {1, 16, 31, 64, 129, 200}) add("ragged M", [&](Case& c) { c.M = rows; });
  add("no slots", [](Case& c) { c.K = 0; });
  add("no registers", [](Case& c) { c.R = 0; });
  add("one key", [](Case& c) { c.K = 0, c.R = 1; });
  add("as many slots as fit a tile", [](Case& c) { c.K = 16, c.R = 16; });
  add("all keys are slots", [](Case& c) { c.K = 128, c.R = 0, c.mask = Mask::some; });
  add("some slots masked", [](Case& c) { c.B = 3, c.mask = Mask::some; });
  add("all slots of an image masked", [](Case& c) { c.B = 3, c.mask = Mask::all_of_one_image; });
  add("nothing left to attend to", [](Case& c) { c.R = 0, c.mask = Mask::all_of_one_image, c.maps = true; });
  add("only the sink left", [](Case& c) { c.R = 0, c.mask = Mask::all_of_one_image, c.sink = true; });
  add("no sink in one head", [](Case& c) { c.R = 0, c.mask = Mask::all_of_one_image, c.sink = c.no_sink_in_first_head = true; });
  add("sinks", [](Case& c) { c.H = 3, c.sink = true; });
  add("maps", [](Case& c) { c.H = 3, c.maps = true; });
  add("maps of many slots", [](Case& c) { c.K = 24, c.maps = true, c.mask = Mask::some; });
  add("maps of one head", [](Case& c) { c.H = 1, c.maps = true; });
  add("all at once", [](Case& c) { c.B = 3, c.H = 3, c.K = 11, c.maps = c.sink = true, c.mask = Mask::all_of_one_image; });
  add("many images", [](Case& c) { c.B = 9, c.H = 1, c.M = 20, c.mask = Mask::some; });
  add("heads outside", [](Case& c) { c.layout = Layout::heads_outside; });
  add("gaps between rows", [](Case& c) { c.layout = Layout::padded, c.maps = true; });
  add("rows that are not aligned", [](Case& c) { c.layout = Layout::odd, c.maps = true; });
  add("all logits far below zero", [](Case& c) { c.offset = -300.0, c.mask = Mask::some, c.tolerance = 4e-3, c.floor = 1.0; });
  add("negative scale", [](Case& c) { c.scale = -1.0, c.mask = Mask::some; });
  add("a device of usual size", [](Case& c) { c.device = Device{}, c.M = 150; });
  add("a device with 99 KiB",
      [](Case& c) { c.device.shared_per_block = 99 << 10, c.device.shared_per_multiprocessor = 100 << 10; });
  for (const unsigned wanted : {1u, 2u, 4u, 8u, 16u, 32u, 2u | 4u, 1u | 2u | 4u, 4u | 16u, 8u | 16u | 32u}) {
    add("some gradients", [&](Case& c) { c.wanted = wanted, c.sink = c.maps = true, c.K = 12; });
  }
  return cases;
}

std::vector<Case> extremes() {
  std::vector<Case> cases;
  for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16, Dtype::float16}) {
    Case c;
    c.what = "logits of 1e4", c.dtype = dtype, c.logits = 1e4 / 3, c.mask = Mask::some, c.maps = true;
    // A score of 1e4 carries a rounding error of 5e-4, and gradients vanish but for it.
    c.tolerance = 4e-3, c.floor = 1.0;
    cases.push_back(c);
  }
  for (const int64_t keys : {200, 300, 700, 1100}) {
    Case c;
    c.what = "many keys", c.dtype = keys == 300 ? Dtype::bfloat16 : Dtype::float32;
    c.B = 1, c.H = 2, c.M = 20, c.K = 50, c.R = keys - 50, c.D = 24, c.mask = Mask::some, c.maps = c.sink = true;
    cases.push_back(c);
  }
  Case large;  // where the shared memory of smaller devices is short
  large.what = "widest head, 99 KiB", large.D = 160, large.K = 30, large.R = 98, large.maps = true;
  large.device.shared_per_block = 99 << 10, large.device.shared_per_multiprocessor = 100 << 10;
  cases.push_back(large);
  large.K = 7, large.R = 77;
  cases.push_back(large);
  large.wanted = Wanted::register_key | Wanted::register_value;
  cases.push_back(large);
  Case flat;  // all logits are 0
  flat.what = "no columns", flat.dtype = Dtype::float32, flat.D = 0, flat.sink = flat.maps = true, flat.M = 100;
  cases.push_back(flat);
  for (const auto& [B, H, M, K, R] :
       std::vector<std::array<int64_t, 5>>{{0, 2, 40, 7, 77}, {2, 2, 0, 7, 77}, {2, 0, 40, 7, 0}, {2, 2, 40, 0, 0}}) {
    for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16}) {
      Case c;
      c.what = "nothing to do", c.dtype = dtype, c.B = B, c.H = H, c.M = M, c.K = K, c.R = R, c.sink = true;
      cases.push_back(c);
    }
  }
  return cases;
}

// ---- Laws about bits

bool report(const char* what, const Case& c, bool holds) {
  std::printf("%s %s: %s\n", holds ? "ok  " : "FAIL", what, describe(c).c_str());
  return holds;
}

Case cut_into_chunks(Dtype dtype, int64_t width) {
  Case c;
  c.dtype = dtype, c.B = 5, c.H = 2, c.M = 300, c.D = width, c.K = 11, c.maps = c.sink = true, c.mask = Mask::some;
  return c;
}

// All results are the same bits whatever the schedule and the number of multiprocessors.
bool same_bits_anywhere(const Case& c) {
  Problem problem(c, 5);
  const Results first = compute(problem, 1);
  problem.c.device.multiprocessors = 7;
  const Results second = compute(problem, 2);
  const auto equal = [&](Tensor Results::* tensor) { return (first.*tensor).bytes() == (second.*tensor).bytes(); };
  const auto equal_floats = [&](std::vector<float> Results::* floats) { return (first.*floats) == (second.*floats); };
  return report("same bits on every schedule and device", c,
                equal(&Results::output) && equal(&Results::grad_query) && equal(&Results::grad_key) &&
                    equal(&Results::grad_value) && equal(&Results::grad_register_key) && equal(&Results::grad_register_value) &&
                    equal_floats(&Results::logsumexp) && equal_floats(&Results::maps) && equal_floats(&Results::grad_sinks));
}

// What belongs to one image is the same bits alone and within a batch.
bool same_bits_in_any_batch(const Case& c) {
  Problem together(c, 6);
  const Results all = compute(together, 1);
  bool holds = true;
  for (int64_t image = 0; image < c.B; ++image) {
    Case one = c;
    one.B = 1;
    Problem alone(one, 6);
    const auto copy = [&](Tensor Problem::* tensor) {
      (alone.*tensor).each([&](int64_t, int64_t h, int64_t m, int64_t d) {
        (alone.*tensor).set(0, h, m, d, (together.*tensor).get(image, h, m, d));
      });
    };
    for (auto tensor : {&Problem::query, &Problem::key, &Problem::value, &Problem::grad_output}) copy(tensor);
    alone.register_key = together.register_key, alone.register_value = together.register_value, alone.sinks = together.sinks;
    const auto part = [&](const auto& whole, int64_t size) {
      return std::vector(whole.begin() + static_cast<std::ptrdiff_t>(image * size),
                         whole.begin() + static_cast<std::ptrdiff_t>((image + 1) * size));
    };
    alone.mask = part(together.mask, c.K), alone.grad_maps = part(together.grad_maps, c.K * c.M);
    const Results got = compute(alone, 2);
    const auto equal = [&](Tensor Results::* tensor) {
      (got.*tensor).each([&](int64_t, int64_t h, int64_t m, int64_t d) {
        holds = holds && (got.*tensor).get(0, h, m, d) == (all.*tensor).get(image, h, m, d);
      });
    };
    for (auto tensor : {&Results::output, &Results::grad_query, &Results::grad_key, &Results::grad_value}) equal(tensor);
    holds = holds && got.maps == part(all.maps, c.K * c.M) && got.logsumexp == part(all.logsumexp, c.H * c.M);
  }
  return report("same bits in any batch", c, holds);
}

// supported() names what is compiled.
bool says_what_is_supported() {
  RegisterAttention in;
  in.dtype = Dtype::bfloat16, in.B = 2, in.H = 2, in.M = 9, in.K = 7, in.R = 77, in.D = 40;
  bool holds = supported(in) && tensor_cores_take([&] {
                 RegisterAttention fast = in;
                 fast.scale = 0.1f;
                 return fast;
               }());
  in.query.row = 36;
  holds = holds && !supported(in);  // the caller copies
  in.D = 36;
  holds = holds && supported(in);
  in.R = general_max_keys;
  holds = holds && !supported(in);
  std::printf("%s supported\n", holds ? "ok  " : "FAIL");
  return holds;
}

}  // namespace
}  // namespace ocl::register_attention::test

int main(int argc, char** argv) {
  using namespace ocl;
  using namespace ocl::register_attention;
  using namespace ocl::register_attention::test;
  const unsigned seeds = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 2;
  bool ok = says_what_is_supported();
  for (unsigned seed = 1; seed <= seeds; ++seed) {
    std::vector<Case> cases = every_kernel();
    const auto append = [&](const std::vector<Case>& more) { cases.insert(cases.end(), more.begin(), more.end()); };
    append(every_feature(Dtype::bfloat16, 40));
    append(every_feature(Dtype::float16, 64));
    append(every_feature(Dtype::float32, 24));
    append(extremes());
    for (const Case& c : cases) ok = check(c, seed) && ok;
  }
  for (const auto& [dtype, width] : {std::pair{Dtype::bfloat16, 40}, {Dtype::float16, 80}, {Dtype::float32, 20}}) {
    ok = same_bits_anywhere(cut_into_chunks(dtype, width)) && ok;
    ok = same_bits_in_any_batch(cut_into_chunks(dtype, width)) && ok;
  }
  std::printf("%s\n", ok ? "all passed" : "FAILED");
  return ok ? 0 : 1;
}
