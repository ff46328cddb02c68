// Which instruction set the CPU kernels use: the widest that was compiled and that processor and system offer, found once.
// OCL_CPU_ISA=portable|avx2|avx512|avx512_bf16|amx asks for a narrower one (for tests and comparisons).
#pragma once

#if defined(__x86_64__)
#define OCL_CPU_X86 1
#else
#define OCL_CPU_X86 0
#endif

namespace ocl {

enum class CpuIsa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };  // each includes the ones before it

// Can this process run it? avx2: with FMA and F16C. avx512: f, bw, dq, vl. amx: with bf16 tiles, after asking Linux for the tile
// registers.
bool cpu_isa_available(CpuIsa isa);

// The choice for this process. A request that is unknown or not available is reported once on stderr and ignored.
CpuIsa cpu_isa();

const char* cpu_isa_name(CpuIsa isa);
inline const char* cpu_isa_name() { return cpu_isa_name(cpu_isa()); }

}  // namespace ocl
