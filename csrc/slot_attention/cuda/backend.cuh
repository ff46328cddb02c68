// The CUDA device as a Backend of plan.h.
#pragma once

#include "ocl/cuda/launch.cuh"
#include "slot_attention/cuda/plan.h"

namespace ocl::slot_attention {

using CudaBackend = DeviceBackend<Device>;

}  // namespace ocl::slot_attention
