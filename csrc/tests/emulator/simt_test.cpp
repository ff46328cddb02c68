// The host bodies of simt.h: fragments, ldmatrix and asynchronous copies against their documented layout, rounding of the 16-bit
// types, and that planted mistakes of a kernel are noticed.
#include "ocl/cuda/simt.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

using namespace ocl::simt;

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (false)

constexpr unsigned seeds = 8;

template <class T>
T small_integer(std::mt19937& random) {
  return from_float<T>(static_cast<float>(static_cast<int>(random() % 9) - 4));
}

template <class T>
uint32_t word(T low, T high) {
  return pack2<T>(to_float(low), to_float(high));
}

template <class T>
struct Product {
  std::array<std::array<T, 16>, 16> a;
  std::array<std::array<T, 8>, 16> b;
  std::array<std::array<float, 8>, 16> c;

  explicit Product(unsigned seed) {
    std::mt19937 random(seed);
    for (auto& row : a) std::generate(row.begin(), row.end(), [&] { return small_integer<T>(random); });
    for (auto& row : b) std::generate(row.begin(), row.end(), [&] { return small_integer<T>(random); });
    for (auto& row : c) std::generate(row.begin(), row.end(), [&] { return static_cast<float>(random() % 100); });
  }

  float at(int row, int column, int depth) const {
    float sum = c[static_cast<size_t>(row)][static_cast<size_t>(column)];
    for (size_t k = 0; k < static_cast<size_t>(depth); ++k)
      sum += to_float(a[static_cast<size_t>(row)][k]) * to_float(b[k][static_cast<size_t>(column)]);
    return sum;
  }
};

// Fragments built by hand, element by element, as the PTX ISA numbers them.
template <class T>
void mma_multiplies(int depth) {
  for (unsigned seed = 0; seed < seeds; ++seed) {
    const Product<T> p(seed);
    run_grid(1, 1, 1, 32, 0, seed, [&] {
      const auto group = static_cast<size_t>(thread_index() / 4), quad = static_cast<size_t>(thread_index() % 4);
      uint32_t a[4], b[2];
      for (size_t i = 0; i < 4; ++i) {
        const size_t row = group + 8 * (i % 2), k = 2 * quad + 8 * (i / 2);
        a[i] = word(p.a[row][k], p.a[row][k + 1]);
      }
      for (size_t i = 0; i < 2; ++i) b[i] = word(p.b[2 * quad + 8 * i][group], p.b[2 * quad + 8 * i + 1][group]);
      float c[4] = {p.c[group][2 * quad], p.c[group][2 * quad + 1], p.c[group + 8][2 * quad], p.c[group + 8][2 * quad + 1]};
      if (depth == 16) {
        mma_16x8x16<T>(c, a, b[0], b[1]);
      } else {
        mma_16x8x8<T>(c, a[0], a[1], b[0]);
      }
      for (int i = 0; i < 4; ++i) {
        const int row = static_cast<int>(group) + 8 * (i / 2), column = 2 * static_cast<int>(quad) + i % 2;
        CHECK(c[i] == p.at(row, column, depth));
      }
    });
  }
}

// As kernels use it: A by rows and B by columns in shared memory, fetched by ldmatrix; or B by rows, fetched transposed.
template <class T>
void ldmatrix_feeds_mma(bool transposed) {
  for (unsigned seed = 0; seed < seeds; ++seed) {
    const Product<T> p(seed);
    run_grid(1, 1, 1, 32, (16 * 16 + 16 * 16) * 2, seed, [&] {
      OCL_DYNAMIC_SHARED(shared);
      T* a_rows = reinterpret_cast<T*>(shared);
      T* b_rows = a_rows + 16 * 16;
      const int lane = thread_index();
      for (int i = lane; i < 256; i += 32) a_rows[i] = p.a[static_cast<size_t>(i / 16)][static_cast<size_t>(i % 16)];
      for (int i = lane; i < 128; i += 32) {
        const int k = i / 8, n = i % 8;
        b_rows[transposed ? k * 8 + n : n * 16 + k] = p.b[static_cast<size_t>(k)][static_cast<size_t>(n)];
      }
      sync_warp();
      uint32_t a[4], b0, b1;
      ldmatrix_x4(a, a_rows + (lane % 16) * 16 + (lane / 16) * 8);
      if (transposed) {
        ldmatrix_x2_trans(b0, b1, b_rows + (lane % 16) * 8);
      } else {
        ldmatrix_x2(b0, b1, b_rows + (lane % 8) * 16 + (lane / 8 % 2) * 8);
      }
      float c[4] = {};
      mma_16x8x16<T>(c, a, b0, b1);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        CHECK(c[i] + p.c[static_cast<size_t>(row)][static_cast<size_t>(column)] == p.at(row, column, 16));
      }
    });
  }
}

void ldmatrix_x4_has_the_documented_layout() {
  for (unsigned seed = 0; seed < seeds; ++seed) {
    run_grid(1, 1, 1, 32, 4 * 64 * 2, seed, [] {
      OCL_DYNAMIC_SHARED(shared);
      auto* numbers = reinterpret_cast<uint16_t*>(shared);
      const int lane = thread_index(), group = lane / 4, quad = lane % 4;
      for (int i = lane; i < 256; i += 32) numbers[i] = static_cast<uint16_t>(i);
      sync_warp();
      uint32_t plain[4], transposed[4];
      ldmatrix_x4(plain, numbers + lane * 8);
      ldmatrix_x4_trans(transposed, numbers + lane * 8);
      for (int matrix = 0; matrix < 4; ++matrix) {
        const int base = 64 * matrix;
        CHECK(static_cast<int>(plain[matrix] & 0xffff) == base + group * 8 + 2 * quad);
        CHECK(static_cast<int>(plain[matrix] >> 16) == base + group * 8 + 2 * quad + 1);
        CHECK(static_cast<int>(transposed[matrix] & 0xffff) == base + 2 * quad * 8 + group);
        CHECK(static_cast<int>(transposed[matrix] >> 16) == base + (2 * quad + 1) * 8 + group);
      }
    });
  }
}

void transpose_swaps_rows_and_columns() {
  for (unsigned seed = 0; seed < seeds; ++seed) {
    run_grid(1, 1, 1, 32, 0, seed, [] {
      const auto group = static_cast<uint32_t>(thread_index() / 4), quad = static_cast<uint32_t>(thread_index() % 4);
      const auto number = [](uint32_t row, uint32_t column) { return 8 * row + column; };
      const uint32_t transposed = transpose(number(group, 2 * quad) | number(group, 2 * quad + 1) << 16);
      CHECK((transposed & 0xffff) == number(2 * quad, group) && transposed >> 16 == number(2 * quad + 1, group));
    });
  }
}

void shuffles_take_the_value_of_the_other_lane() {
  run_grid(1, 1, 1, 64, 0, 1, [] {
    const int lane = thread_index() % 32;
    const auto mine = static_cast<float>(thread_index());
    for (int mask = 1; mask < 32; mask *= 2) CHECK(shuffle_xor(mine, mask) == mine - static_cast<float>(lane) + static_cast<float>(lane ^ mask));
    CHECK(shuffle(mine, 5) == mine - static_cast<float>(lane) + 5.0f);
  });
}

struct alignas(16) Chunk {
  std::array<float, 4> values;
};

bool is_poison(float value) { return host::bit_cast<uint32_t>(value) == 0xffffffffu; }

void asynchronous_copies_land_at_the_wait() {
  const std::vector<Chunk> source = {{{1, 2, 3, 4}}, {{5, 6, 7, 8}}};
  run_grid(1, 1, 1, 32, 3 * sizeof(Chunk), 1, [&] {
    OCL_DYNAMIC_SHARED(shared);
    if (thread_index() != 0) return;
    auto* target = reinterpret_cast<float*>(shared);
    CHECK(is_poison(target[0]) && is_poison(target[11]));
    std::fill(target, target + 12, 9.0f);
    copy_async_16(target, &source[0], true);
    copy_async_16(target + 4, nullptr, false);
    copy_async_commit();
    copy_async_16(target + 8, &source[1], true);
    copy_async_commit();
    CHECK(is_poison(target[0]) && is_poison(target[4]) && is_poison(target[8]));
    copy_async_wait<1>();
    CHECK(target[0] == 1 && target[3] == 4 && target[4] == 0 && target[7] == 0 && is_poison(target[8]));
    copy_async_wait<0>();
    CHECK(target[8] == 5 && target[11] == 8);
  });
}

void every_block_runs_once() {
  std::vector<int> visits(2 * 3 * 4, 0);
  run_grid(2, 3, 4, 32, 0, 5, [&] {
    if (thread_index() == 0) ++visits[static_cast<size_t>(block_x() + 2 * (block_y() + 3 * block_z()))];
  });
  CHECK(std::all_of(visits.begin(), visits.end(), [](int count) { return count == 1; }));
}

template <class T>
void rounding_is_to_nearest_even() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T exact{static_cast<uint16_t>(bits)};
    const float value = to_float(exact);
    if (std::isnan(value)) {
      CHECK(std::isnan(to_float(from_float<T>(value))));
      continue;
    }
    CHECK(from_float<T>(value).bits == exact.bits);
    const T next{static_cast<uint16_t>(bits + 1)};
    if ((bits & 0x7fff) == 0x7fff || !std::isfinite(to_float(next)) || !std::isfinite(value)) continue;
    const float middle = 0.5f * value + 0.5f * to_float(next);
    CHECK(from_float<T>(middle).bits == (bits % 2 == 0 ? exact.bits : next.bits));
    CHECK(from_float<T>(std::nextafter(middle, value)).bits == exact.bits);
    CHECK(from_float<T>(std::nextafter(middle, to_float(next))).bits == next.bits);
  }
}

void known_values_of_16_bit_types() {
  CHECK(to_float(float16{0x3c00}) == 1.0f && to_float(float16{0x0001}) == 0x1p-24f && to_float(float16{0xfbff}) == -65504.0f);
  CHECK(from_float<float16>(65520.0f).bits == 0x7c00 && from_float<float16>(-1e30f).bits == 0xfc00 && from_float<float16>(1e-9f).bits == 0);
  CHECK(to_float(bfloat16{0x3f80}) == 1.0f && from_float<bfloat16>(3.4e38f).bits == 0x7f80);
  CHECK(pack2<bfloat16>(1.0f, -2.0f) == 0xc0003f80u && pack2<float16>(1.0f, -2.0f) == 0xc0003c00u);
}

// ---- Planted mistakes

std::string failure_of(int threads, size_t shared_bytes, unsigned seed, const std::function<void()>& kernel) {
  try {
    run_grid(1, 1, 1, threads, shared_bytes, seed, kernel);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// Every thread writes a number and reads its neighbour's; then the numbers are replaced, and read again.
struct Exchange {
  bool barrier_after_write = true, barrier_before_overwrite = true;

  int wrong_reads(unsigned seed) const {
    int wrong = 0;
    run_grid(1, 1, 1, 128, 128 * sizeof(float), seed, [&] {
      OCL_DYNAMIC_SHARED(shared);
      auto* numbers = reinterpret_cast<float*>(shared);
      const int thread = thread_index(), neighbour = (thread + 32) % 128;
      for (int step = 0; step < 3; ++step) {
        numbers[thread] = static_cast<float>(1000 * step + thread);
        if (barrier_after_write) sync_threads();
        wrong += numbers[neighbour] != static_cast<float>(1000 * step + neighbour);
        if (barrier_before_overwrite) sync_threads();
      }
    });
    return wrong;
  }
};

void missing_barriers_are_noticed() {
  for (unsigned seed = 0; seed < seeds; ++seed) {
    CHECK(Exchange().wrong_reads(seed) == 0);
    CHECK((Exchange{false, true}.wrong_reads(seed) > 0));
    CHECK((Exchange{true, false}.wrong_reads(seed) > 0));
  }
}

void a_missing_wait_is_noticed() {
  const Chunk source = {{1, 2, 3, 4}};
  for (unsigned seed = 0; seed < seeds; ++seed) {
    int poisoned = 0;
    run_grid(1, 1, 1, 32, sizeof(Chunk), seed, [&] {
      OCL_DYNAMIC_SHARED(shared);
      if (thread_index() == 0) {
        copy_async_16(shared, &source, true);
        copy_async_commit();
      }
      sync_threads();
      poisoned += is_poison(reinterpret_cast<float*>(shared)[thread_index() % 4]);
    });
    CHECK(poisoned == 32);
  }
}

void writes_out_of_range_are_noticed() {
#if defined(OCL_ADDRESS_SANITIZER)
  run_grid(1, 1, 1, 32, 64, 1, [] {
    OCL_DYNAMIC_SHARED(shared);
    CHECK(__asan_address_is_poisoned(shared + 64) && __asan_address_is_poisoned(shared - 1) && !__asan_address_is_poisoned(shared + 63));
  });
#else
  for (const int offset : {-4, 64, 1000}) {
    const auto write = [offset] {
      OCL_DYNAMIC_SHARED(shared);
      if (thread_index() == 3) shared[offset] = 7;
    };
    CHECK(contains(failure_of(32, 64, 1, write), offset < 0 ? "before the start" : "past the end"));
  }
#endif
}

void bad_addresses_are_noticed() {
  const auto ldmatrix_at = [](int offset) {
    return [offset] {
      OCL_DYNAMIC_SHARED(shared);
      uint32_t words[4];
      ldmatrix_x4(words, shared + 16 * thread_index() + offset);
    };
  };
  CHECK(failure_of(32, 512, 1, ldmatrix_at(0)).empty());
  CHECK(contains(failure_of(32, 528, 1, ldmatrix_at(8)), "not 16-byte aligned"));
  CHECK(contains(failure_of(32, 512, 1, ldmatrix_at(16)), "out of range"));
  const std::vector<Chunk> source(2);
  const auto copy_from = [&source](int offset) {
    return [&source, offset] {
      OCL_DYNAMIC_SHARED(shared);
      copy_async_16(shared, reinterpret_cast<const unsigned char*>(source.data()) + offset, true);
    };
  };
  CHECK(failure_of(32, 16, 1, copy_from(0)).empty());
  CHECK(contains(failure_of(32, 16, 1, copy_from(4)), "global address"));
  CHECK(contains(failure_of(32, 8, 1, copy_from(0)), "out of range"));
}

void divergence_is_noticed() {
  CHECK(contains(failure_of(64, 0, 1, [] { if (thread_index() < 40) sync_threads(); }), "40 threads wait in sync_threads"));
  CHECK(contains(failure_of(32, 0, 1, [] { if (thread_index() < 5) sync_warp(); }), "5 in a warp collective"));
  const auto mixed = [] {
    if (thread_index() % 2 == 0) {
      sync_warp();
    } else {
      shuffle_xor(1.0f, 1);
    }
  };
  CHECK(contains(failure_of(32, 0, 1, mixed), "lanes of one warp meet in"));
}

}  // namespace

int main() {
  for (const int depth : {8, 16}) {
    mma_multiplies<bfloat16>(depth);
    mma_multiplies<float16>(depth);
  }
  for (const bool transposed : {false, true}) {
    ldmatrix_feeds_mma<bfloat16>(transposed);
    ldmatrix_feeds_mma<float16>(transposed);
  }
  ldmatrix_x4_has_the_documented_layout();
  transpose_swaps_rows_and_columns();
  shuffles_take_the_value_of_the_other_lane();
  asynchronous_copies_land_at_the_wait();
  every_block_runs_once();
  rounding_is_to_nearest_even<bfloat16>();
  rounding_is_to_nearest_even<float16>();
  known_values_of_16_bit_types();
  missing_barriers_are_noticed();
  a_missing_wait_is_noticed();
  writes_out_of_range_are_noticed();
  bad_addresses_are_noticed();
  divergence_is_noticed();
  std::puts("simt: all checks hold");
  return 0;
}
