// The CUDA device as a Backend of plan.h.
#pragma once

#include "ocl/cuda/launch.cuh"
#include "register_attention/cuda/plan.h"

namespace ocl::register_attention {

using CudaBackend = DeviceBackend<Device>;

}  // namespace ocl::register_attention
