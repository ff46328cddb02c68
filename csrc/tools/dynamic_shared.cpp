// Prints the dynamic shared memory of the kernels whose size is known when they are compiled: what the largest launch asks for.
// Read by kernel_budget.py: name with the whole-number template arguments, then bytes.
#include <cstdio>

#include "register_attention/cuda/table.h"

namespace {

void print(const char* kernel, int width, int keys, int64_t bytes) {
  std::printf("register_attention::%s<%d, %d> %lld\n", kernel, width, keys, static_cast<long long>(bytes));
}

}  // namespace

int main() {
  using namespace ocl::register_attention;
#define OCL_PRINT(width, ...)                                                                                      \
  for (const int tiles : forward_key_tiles) {                                                                      \
    print("forward_kernel", width, tiles, forward_shared_bytes(width, tiles, forward_tile(width, tiles).warps));   \
  }                                                                                                                \
  for (const int blocks : backward_key_blocks) print("backward_kernel", width, blocks, backward_shared_bytes(width, blocks, 2));
  OCL_WIDTHS(OCL_PRINT, )
#undef OCL_PRINT
}
