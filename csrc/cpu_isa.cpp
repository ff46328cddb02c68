// Finds the instruction sets of the CPU: cpuid for the processor, XGETBV for the registers that the system saves.
#include "ocl/cpu/isa.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if OCL_CPU_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ocl {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};

#if OCL_CPU_X86
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers found;
  __get_cpuid_count(leaf, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx);
  return found;
}

bool has(uint32_t word, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if ((word >> bit & 1) == 0) return false;
  }
  return true;
}

// Register files that the system saves: bit 1 SSE, 2 AVX, 5 to 7 AVX-512, 17 and 18 tiles.
uint32_t saved_registers() {
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux hands out the tile registers on request, for all threads of the process.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuIsa widest() {
  const Registers basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1);
  if (!has(basic.ecx, {12, 27, 28, 29})) return CpuIsa::portable;  // FMA, OSXSAVE, AVX, F16C
  const uint32_t saved = saved_registers();
  if (!has(saved, {1, 2}) || !has(extended.ebx, {5})) return CpuIsa::portable;                    // AVX2
  if (!has(saved, {5, 6, 7}) || !has(extended.ebx, {16, 17, 30, 31})) return CpuIsa::avx2;        // AVX-512 F, DQ, BW, VL
  if (!has(more.eax, {5})) return CpuIsa::avx512;                                                           // AVX-512 BF16
  if (!has(saved, {17, 18}) || !has(extended.edx, {22, 24})) return CpuIsa::avx512_bf16;                    // AMX bf16, tiles
  return tiles_permitted() ? CpuIsa::amx : CpuIsa::avx512_bf16;
}
#else
CpuIsa widest() { return CpuIsa::portable; }
#endif

CpuIsa available() {
  static const CpuIsa found = widest();
  return found;
}

CpuIsa choose() {
  const char* request = std::getenv("OCL_CPU_ISA");
  if (request == nullptr || *request == '\0') return available();
  for (int isa = 0; isa <= static_cast<int>(available()); ++isa) {
    if (std::strcmp(request, kNames[isa]) == 0) return static_cast<CpuIsa>(isa);
  }
  std::fprintf(stderr, "ocl: OCL_CPU_ISA expects portable, avx2, avx512, avx512_bf16 or amx, up to what this processor has (%s), got %s; using %s\n",
               cpu_isa_name(available()), request, cpu_isa_name(available()));
  return available();
}

}  // namespace

bool cpu_isa_available(CpuIsa isa) { return isa <= available(); }

CpuIsa cpu_isa() {
  static const CpuIsa chosen = choose();
  return chosen;
}

const char* cpu_isa_name(CpuIsa isa) { return kNames[static_cast<int>(isa)]; }

}  // namespace ocl
