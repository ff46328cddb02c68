// Host bodies of simt.h: a CUDA block on one CPU thread, every CUDA thread a fibre. Made to find mistakes, not to be fast:
//   - shared memory starts as 0xFF bytes (NaN in every type) and lies between guard zones;
//   - the destination of an asynchronous copy is 0xFF from the issue until the wait that covers it;
//   - addresses of ldmatrix and asynchronous copies are checked for alignment and range;
//   - the schedule is adversarial: a random warp runs as far as it can before another gets a turn, and lanes run in random order
//     between collectives; blocks run in random order. The seed decides, so a failure can be repeated;
//   - a barrier or a warp collective that not every thread reaches, or that lanes reach with different operations, is reported.
// Mistakes throw Failure from run_grid. Not modelled: the memory model within a warp between collectives, and speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define OCL_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define OCL_ADDRESS_SANITIZER 1
#endif
#endif
#if defined(OCL_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define OCL_KERNEL inline
#define OCL_DEVICE inline
#define OCL_HOST_DEVICE inline
#define OCL_LAUNCH_BOUNDS(threads, blocks)
#define OCL_DYNAMIC_SHARED(name) unsigned char* const name = ::ocl::simt::host::block->shared
#define OCL_UNROLL
#define OCL_NO_UNROLL

namespace ocl::simt {

// A mistake of a kernel that the emulator noticed.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace host {

constexpr int lanes = 32;
constexpr std::size_t guard_bytes = 4096;
#if defined(OCL_ADDRESS_SANITIZER)
constexpr std::size_t stack_bytes = 512 << 10;  // instrumented frames are large
#else
constexpr std::size_t stack_bytes = 128 << 10;
#endif

// ---- Switching between stacks

#if defined(__x86_64__)
// swapcontext enters the kernel twice per switch to save the signal mask; a tensor core instruction costs 64 switches.
struct Context {
  void* stack_pointer = nullptr;
};

[[gnu::naked, gnu::noinline]] inline void switch_context(Context* /*from*/, Context* /*to*/) {
  __asm__(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
      "movq %rsp, (%rdi); movq (%rsi), %rsp\n"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
      "ret\n");
}

inline void make_context(Context& context, unsigned char* stack, void (*entry)()) {
  auto** top = reinterpret_cast<void**>((reinterpret_cast<std::uintptr_t>(stack) + stack_bytes) & ~std::uintptr_t{15});
  *--top = nullptr;  // the return address of `entry`: ends a backtrace
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
}
#else
struct Context {
  ucontext_t state;
};

inline void switch_context(Context* from, Context* to) { swapcontext(&from->state, &to->state); }

inline void make_context(Context& context, unsigned char* stack, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = stack_bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
#endif

// ---- State of a block

enum class Collective { none, mma_16x8x16, mma_16x8x8, ldmatrix, transpose, shuffle, sync_warp };

// What a lane brings to a collective of its warp.
struct Mail {
  Collective kind = Collective::none;
  std::uint32_t words[6] = {};
  const void* address = nullptr;
  float value = 0.0f;
};

// What the lanes take from it.
struct Result {
  float product[16][8];
  std::uint32_t words[lanes][4];
};

struct Warp {
  // Of this and the previous collective: a lane may still read the previous one while another already posts the next.
  Mail mail[2][lanes];
  Result result[2];
  int arrived = 0;
  std::int64_t round = 0;
};

struct Copy {
  void* shared;
  const void* global;
  bool valid;
};

enum class Wait { nothing, warp, block };

struct Fibre {
  Context context;
  unsigned char* stack = nullptr;
  void* fake_stack = nullptr;  // address sanitizer
  bool done = false;
  Wait wait = Wait::nothing;
  std::int64_t round = 0;  // of the barrier it waits for
  std::vector<Copy> open_copies;
  std::vector<std::vector<Copy>> copy_groups;
};

struct Block {
  int x = 0, y = 0, z = 0, grid_x = 1;
  unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  int current = 0, arrived = 0, left = 0;
  std::int64_t round = 0;
  std::function<void()> body;
  std::string failure;
  Fibre scheduler;
  const void* scheduler_stack = nullptr;  // address sanitizer
  std::size_t scheduler_stack_bytes = 0;
};

inline Block* block = nullptr;

inline Fibre& current_fibre() { return block->fibres[static_cast<std::size_t>(block->current)]; }
inline int current_lane() { return block->current % lanes; }
inline Warp& current_warp() { return block->warps[static_cast<std::size_t>(block->current / lanes)]; }

inline void enter_fibre(Fibre& fibre) {
#if defined(OCL_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(&block->scheduler.fake_stack, fibre.stack, stack_bytes);
#endif
  switch_context(&block->scheduler.context, &fibre.context);
#if defined(OCL_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(block->scheduler.fake_stack, nullptr, nullptr);
#endif
}

inline void leave_fibre(Fibre& fibre) {
#if defined(OCL_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(fibre.done ? nullptr : &fibre.fake_stack, block->scheduler_stack, block->scheduler_stack_bytes);
#endif
  switch_context(&fibre.context, &block->scheduler.context);
#if defined(OCL_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(fibre.fake_stack, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
}

inline void fibre_main() {
#if defined(OCL_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
  try {
    block->body();
  } catch (const std::exception& error) {
    block->failure = error.what();
  }
  Fibre& fibre = current_fibre();
  fibre.done = true;
  --block->left;
  leave_fibre(fibre);
}

// ---- Collectives

inline const char* name(Collective kind) {
  switch (kind) {
    case Collective::none: return "nothing";
    case Collective::mma_16x8x16: return "mma_16x8x16";
    case Collective::mma_16x8x8: return "mma_16x8x8";
    case Collective::ldmatrix: return "ldmatrix";
    case Collective::transpose: return "transpose";
    case Collective::shuffle: return "shuffle";
    case Collective::sync_warp: return "sync_warp";
  }
  return "?";
}

struct Meeting {
  const Mail* mail;  // [lanes]
  const Result* result;
};

// All lanes of the warp post their mail; the last to come runs `finish(mail, result)`.
template <class Finish>
Meeting meet(const Mail& mine, const Finish& finish) {
  Warp& warp = current_warp();
  const std::int64_t round = warp.round;
  Mail* mail = warp.mail[round % 2];
  Result* result = &warp.result[round % 2];
  mail[current_lane()] = mine;
  if (++warp.arrived == lanes) {
    for (int lane = 0; lane < lanes; ++lane) {
      if (mail[lane].kind != mine.kind)
        throw Failure(std::string("lanes of one warp meet in ") + name(mail[lane].kind) + " and " + name(mine.kind));
    }
    finish(mail, *result);
    warp.arrived = 0;
    ++warp.round;
  } else {
    Fibre& fibre = current_fibre();
    fibre.wait = Wait::warp;
    fibre.round = round;
    leave_fibre(fibre);
    fibre.wait = Wait::nothing;
  }
  return {mail, result};
}

inline Meeting meet(const Mail& mine) {
  return meet(mine, [](const Mail*, Result&) {});
}

inline void check_shared(const char* what, const void* address) {
  const auto* bytes = static_cast<const unsigned char*>(address);
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) throw Failure(std::string(what) + ": shared address is not 16-byte aligned");
  if (bytes < block->shared || bytes + 16 > block->shared + block->shared_bytes)
    throw Failure(std::string(what) + ": shared address is out of range, offset " + std::to_string(bytes - block->shared));
}

// ---- Running a block

inline std::uint64_t next_random(std::uint64_t& state) {  // splitmix64
  std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

inline bool runnable(const Fibre& fibre, const Warp& warp) {
  if (fibre.done) return false;
  if (fibre.wait == Wait::warp) return warp.round != fibre.round;
  if (fibre.wait == Wait::block) return block->round != fibre.round;
  return true;
}

// Gives every lane of the warp that can run one turn, in a random order. False: none could.
inline bool turn(int warp, std::uint64_t& random) {
  const std::uint64_t bits = next_random(random);
  const int start = static_cast<int>(bits % lanes), stride = static_cast<int>(bits / lanes % lanes) | 1;
  bool moved = false;
  for (int i = 0; i < lanes && block->failure.empty(); ++i) {
    const int thread = warp * lanes + (start + i * stride) % lanes;
    Fibre& fibre = block->fibres[static_cast<std::size_t>(thread)];
    if (!runnable(fibre, block->warps[static_cast<std::size_t>(warp)])) continue;
    block->current = thread;
    enter_fibre(fibre);
    moved = true;
  }
  return moved;
}

inline std::string stuck() {
  int at_block = 0, at_warp = 0;
  for (const Fibre& fibre : block->fibres) {
    at_block += !fibre.done && fibre.wait == Wait::block;
    at_warp += !fibre.done && fibre.wait == Wait::warp;
  }
  return "deadlock: " + std::to_string(at_block) + " threads wait in sync_threads, " + std::to_string(at_warp) +
         " in a warp collective, " + std::to_string(block->fibres.size() - static_cast<std::size_t>(block->left)) + " have returned";
}

inline void schedule(std::uint64_t& random) {
  std::vector<int> order(block->warps.size());
  std::iota(order.begin(), order.end(), 0);
  while (block->left > 0) {
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random(random) % i]);
    const std::int64_t round = block->round;
    bool moved = false;
    for (std::size_t i = 0; i < order.size() && block->round == round; ++i) {
      while (turn(order[i], random)) moved = true;
      if (!block->failure.empty()) return;
    }
    if (!moved) {
      block->failure = stuck();
      return;
    }
  }
}

// The stacks of the fibres, kept from run to run.
class Stacks {
 public:
  void reserve(int threads) {
    while (stacks_.size() < static_cast<std::size_t>(threads)) stacks_.emplace_back(new unsigned char[stack_bytes]);
  }

  unsigned char* fresh(std::size_t thread) {
    unsigned char* stack = stacks_[thread].get();
#if defined(OCL_ADDRESS_SANITIZER)
    __asan_unpoison_memory_region(stack + stack_bytes - 4096, 4096);  // the frame of fibre_main, which never returns
#endif
    std::memset(stack, 0xA5, canary_bytes);
    return stack;
  }

  // After a failure: marks the frames of fibres that did not return as free.
  void reclaim() {
#if defined(OCL_ADDRESS_SANITIZER)
    for (const auto& stack : stacks_) __asan_unpoison_memory_region(stack.get(), stack_bytes);
#endif
  }

  bool overflowed(std::size_t thread) const {
    const unsigned char* stack = stacks_[thread].get();
    return std::any_of(stack, stack + canary_bytes, [](unsigned char byte) { return byte != 0xA5; });
  }

 private:
  static constexpr std::size_t canary_bytes = 64;
  std::vector<std::unique_ptr<unsigned char[]>> stacks_;
};

inline Stacks stacks;

// Shared memory of one block after another, between two guard zones.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_(bytes), memory_(bytes + 2 * guard_bytes + 128) {
    const auto first = reinterpret_cast<std::uintptr_t>(memory_.data()) + guard_bytes;
    shared_ = reinterpret_cast<unsigned char*>((first + 127) & ~std::uintptr_t{127});
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { unguard(); }

  unsigned char* fresh() {
    unguard();
    std::memset(shared_ - guard_bytes, 0xFF, bytes_ + 2 * guard_bytes);
#if defined(OCL_ADDRESS_SANITIZER)
    __asan_poison_memory_region(shared_ - guard_bytes, guard_bytes);
    __asan_poison_memory_region(shared_ + bytes_, guard_bytes);
#endif
    return shared_;
  }

  void check_guards() {
    unguard();
    const auto touched = [](const unsigned char* zone) {
      return std::any_of(zone, zone + guard_bytes, [](unsigned char byte) { return byte != 0xFF; });
    };
    if (touched(shared_ - guard_bytes)) throw Failure("a thread wrote before the start of shared memory");
    if (touched(shared_ + bytes_)) throw Failure("a thread wrote past the end of shared memory");
  }

 private:
  void unguard() {
#if defined(OCL_ADDRESS_SANITIZER)
    __asan_unpoison_memory_region(memory_.data(), memory_.size());
#endif
  }

  std::size_t bytes_;
  std::vector<unsigned char> memory_;
  unsigned char* shared_ = nullptr;
};

inline void run_block(Block& state, SharedMemory& memory, int threads, std::uint64_t& random) {
  state.shared = memory.fresh();
  state.fibres.resize(static_cast<std::size_t>(threads));
  state.warps.resize(static_cast<std::size_t>(threads / lanes));
  state.left = threads;
  for (std::size_t thread = 0; thread < state.fibres.size(); ++thread) {
    Fibre& fibre = state.fibres[thread];
    fibre.stack = stacks.fresh(thread);
    make_context(fibre.context, fibre.stack, &fibre_main);
  }
  block = &state;
  schedule(random);
  block = nullptr;
  if (!state.failure.empty()) {
    stacks.reclaim();
    throw Failure(state.failure);
  }
  memory.check_guards();
  for (std::size_t thread = 0; thread < state.fibres.size(); ++thread) {
    if (stacks.overflowed(thread)) throw Failure("a fibre overflowed its stack: raise stack_bytes");
  }
}

inline float ftz(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace host

// Runs kernel() for every thread of every block of the grid. `seed` decides the schedule.
template <class Kernel>
void run_grid(std::int64_t grid_x, std::int64_t grid_y, std::int64_t grid_z, int threads, std::size_t shared_bytes, unsigned seed,
              const Kernel& kernel) {
  if (threads <= 0 || threads % host::lanes != 0 || threads > 1024) throw Failure("run_grid: threads must be a multiple of 32, at most 1024");
  if (grid_x <= 0 || grid_x > INT32_MAX || grid_y <= 0 || grid_y > 65535 || grid_z <= 0 || grid_z > 65535)
    throw Failure("run_grid: the grid has a side that CUDA does not launch");
  if (shared_bytes > 227 * 1024) throw Failure("run_grid: more shared memory than any block gets");
  host::stacks.reserve(threads);
  host::SharedMemory memory(shared_bytes);
  std::vector<std::int64_t> order(static_cast<std::size_t>(grid_x * grid_y * grid_z));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  std::uint64_t random = seed;
  for (const std::int64_t index : order) {
    host::Block state;
    state.x = static_cast<int>(index % grid_x);
    state.y = static_cast<int>(index / grid_x % grid_y);
    state.z = static_cast<int>(index / grid_x / grid_y);
    state.grid_x = static_cast<int>(grid_x);
    state.shared_bytes = shared_bytes;
    state.body = kernel;
    try {
      host::run_block(state, memory, threads, random);
    } catch (const Failure& failure) {
      throw Failure(std::string(failure.what()) + " (block " + std::to_string(state.x) + ", " + std::to_string(state.y) + ", " +
                    std::to_string(state.z) + ", seed " + std::to_string(seed) + ")");
    }
  }
}

// ---- The primitives of simt.h

inline int thread_index() { return host::block->current; }
inline int block_x() { return host::block->x; }
inline int block_y() { return host::block->y; }
inline int block_z() { return host::block->z; }
inline int grid_x() { return host::block->grid_x; }
inline int opaque(int value) { return value; }

inline void sync_threads() {
  host::Block& block = *host::block;
  if (++block.arrived == static_cast<int>(block.fibres.size())) {
    block.arrived = 0;
    ++block.round;
    return;
  }
  host::Fibre& fibre = host::current_fibre();
  fibre.wait = host::Wait::block;
  fibre.round = block.round;
  host::leave_fibre(fibre);
  fibre.wait = host::Wait::nothing;
}

inline void sync_warp() {
  host::Mail mine;
  mine.kind = host::Collective::sync_warp;
  host::meet(mine);
}

inline float shuffle(float value, int lane) {
  host::Mail mine;
  mine.kind = host::Collective::shuffle;
  mine.value = value;
  return host::meet(mine).mail[lane & (host::lanes - 1)].value;
}
inline float shuffle_xor(float value, int mask) { return shuffle(value, host::current_lane() ^ mask); }

inline float exp2_approx(float x) { return host::ftz(std::exp2(host::ftz(x))); }
inline float log2_approx(float x) { return host::ftz(std::log2(host::ftz(x))); }

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) { return host::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }
inline float to_float(float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
  if (magnitude < 0x0400u) {  // subnormal
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -small : small;
  }
  const std::uint32_t exponent = magnitude >= 0x7c00u ? 0x7f800000u : ((magnitude >> 10) + 112u) << 23;
  return host::bit_cast<float>(sign | exponent | (magnitude & 0x3ffu) << 13);
}

// Rounds to nearest, ties to even.
template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline bfloat16 from_float<bfloat16>(float value) {
  if (std::isnan(value)) return {0x7fff};
  const auto bits = host::bit_cast<std::uint32_t>(value);
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline float16 from_float<float16>(float value) {
  if (std::isnan(value)) return {0x7fff};
  const auto bits = host::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const float size = std::fabs(value);
  std::uint32_t magnitude;
  if (size >= 65520.0f) {
    magnitude = 0x7c00u;
  } else if (size < 0x1p-14f) {
    magnitude = static_cast<std::uint32_t>(std::nearbyint(size * 0x1p24f));
  } else {
    const std::uint32_t rebased = (bits & 0x7fffffffu) - (112u << 23);
    magnitude = (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | magnitude)};
}

template <class T>
std::uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

namespace host {

template <class T>
float element(std::uint32_t word, int which) {
  return to_float(T{static_cast<std::uint16_t>(word >> (16 * which))});
}

// Multiplies the fragments of a warp as simt.h lays them out.
template <class T, int depth>
void multiply(const Mail* mail, Result& result) {
  float a[16][depth], b[depth][8];
  for (int lane = 0; lane < lanes; ++lane) {
    const int group = lane / 4, quad = lane % 4;
    for (int word = 0; word < depth / 4; ++word) {
      for (int half = 0; half < 2; ++half)
        a[group + 8 * (word % 2)][8 * (word / 2) + 2 * quad + half] = element<T>(mail[lane].words[word], half);
    }
    for (int word = 0; word < depth / 8; ++word) {
      for (int half = 0; half < 2; ++half) b[8 * word + 2 * quad + half][group] = element<T>(mail[lane].words[4 + word], half);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) result.product[row][column] = 0.0f;
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < 8; ++column) result.product[row][column] += a[row][k] * b[k][column];
    }
  }
}

inline void add_product(float (&c)[4], const Result& result) {
  const int group = current_lane() / 4, quad = current_lane() % 4;
  for (int i = 0; i < 4; ++i) c[i] += result.product[group + 8 * (i / 2)][2 * quad + i % 2];
}

inline std::uint32_t row_word(const void* row, int column) {
  std::uint16_t bits;
  std::memcpy(&bits, static_cast<const unsigned char*>(row) + 2 * column, sizeof bits);
  return bits;
}

// One lane reads for all, as the hardware does: no lane goes on, and overwrites a row, before every lane has its words.
template <int count, bool transposed>
void load_matrices(std::uint32_t (&words)[count], const void* shared) {
  Mail mine;
  mine.kind = Collective::ldmatrix;
  mine.address = shared;
  if (current_lane() < 8 * count) check_shared("ldmatrix", shared);
  const auto load = [](const Mail* mail, Result& result) {
    for (int lane = 0; lane < lanes; ++lane) {
      const int group = lane / 4, quad = lane % 4;
      for (int matrix = 0; matrix < count; ++matrix) {
        const Mail* rows = mail + 8 * matrix;
        result.words[lane][matrix] =
            transposed ? row_word(rows[2 * quad].address, group) | row_word(rows[2 * quad + 1].address, group) << 16
                       : row_word(rows[group].address, 2 * quad) | row_word(rows[group].address, 2 * quad + 1) << 16;
      }
    }
  };
  const std::uint32_t* mine_now = meet(mine, load).result->words[current_lane()];
  std::copy(mine_now, mine_now + count, words);
}

}  // namespace host

template <class T>
void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  host::Mail mine;
  mine.kind = host::Collective::mma_16x8x16;
  std::copy(a, a + 4, mine.words);
  mine.words[4] = b0;
  mine.words[5] = b1;
  host::add_product(c, *host::meet(mine, &host::multiply<T, 16>).result);
}

template <class T>
void mma_16x8x8(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t b0) {
  host::Mail mine;
  mine.kind = host::Collective::mma_16x8x8;
  mine.words[0] = a0;
  mine.words[1] = a1;
  mine.words[4] = b0;
  host::add_product(c, *host::meet(mine, &host::multiply<T, 8>).result);
}

inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* shared) { host::load_matrices<4, false>(r, shared); }
inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* shared) { host::load_matrices<4, true>(r, shared); }
inline void ldmatrix_x2(std::uint32_t& r0, std::uint32_t& r1, const void* shared) {
  std::uint32_t words[2];
  host::load_matrices<2, false>(words, shared);
  r0 = words[0];
  r1 = words[1];
}
inline void ldmatrix_x2_trans(std::uint32_t& r0, std::uint32_t& r1, const void* shared) {
  std::uint32_t words[2];
  host::load_matrices<2, true>(words, shared);
  r0 = words[0];
  r1 = words[1];
}

inline std::uint32_t transpose(std::uint32_t word) {
  host::Mail mine;
  mine.kind = host::Collective::transpose;
  mine.words[0] = word;
  const host::Mail* mail = host::meet(mine).mail;
  const int group = host::current_lane() / 4, quad = host::current_lane() % 4;
  const auto element = [&](int row) { return mail[4 * row + group / 2].words[0] >> (16 * (group % 2)) & 0xffffu; };
  return element(2 * quad) | element(2 * quad + 1) << 16;
}

inline void copy_async_16(void* shared, const void* global, bool valid) {
  host::check_shared("copy_async_16", shared);
  if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0) throw Failure("copy_async_16: global address is not 16-byte aligned");
  std::memset(shared, 0xFF, 16);
  host::current_fibre().open_copies.push_back({shared, global, valid});
}

inline void copy_async_commit() {
  host::Fibre& fibre = host::current_fibre();
  fibre.copy_groups.push_back(std::move(fibre.open_copies));
  fibre.open_copies.clear();
}

template <int N>
void copy_async_wait() {
  auto& groups = host::current_fibre().copy_groups;
  const std::size_t landed = groups.size() > N ? groups.size() - N : 0;
  for (std::size_t group = 0; group < landed; ++group) {
    for (const host::Copy& copy : groups[group]) {
      if (copy.valid) {
        std::memcpy(copy.shared, copy.global, 16);
      } else {
        std::memset(copy.shared, 0, 16);
      }
    }
  }
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(landed));
}

}  // namespace ocl::simt
