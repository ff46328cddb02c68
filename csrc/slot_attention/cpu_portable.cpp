// Slot attention for the instruction set that the compiler targets by itself, whatever the processor.
#include "slot_attention/cpu.h"

#include "ocl/cpu/target_begin.h"
#include "slot_attention/cpu_backward.h"

namespace ocl {

void portable::slot_attention(const SlotAttentionForward& work, const ParallelFor& parallel) { forward(work, parallel); }
void portable::slot_attention(const SlotAttentionBackward& work, const ParallelFor& parallel) { backward(work, parallel); }

}  // namespace ocl

#include "ocl/cpu/target_end.h"
