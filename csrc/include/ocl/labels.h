// Label maps whose integer type is known at run time, and the functions on them that the library offers.
#pragma once

#include <cstdint>

#include "ocl/label_contingency.h"

namespace ocl {

enum class LabelType { kUInt8, kInt16, kInt32, kInt64 };

struct Labels {
  const void* data;
  LabelType type;
};

LabelRange label_range(Labels labels, const std::uint8_t* ignore, std::int64_t num_pixels);

// Fills `tables` [num_images, num_pred, num_true + 1], which must be zero, from maps [num_images, num_pixels].
// Returns the offset (image * num_pixels + pixel) of the first label outside its range, or -1.
std::int64_t label_contingency(Labels pred, Labels truth, const std::uint8_t* ignore, std::int64_t num_images,
                               std::int64_t num_pixels, std::int64_t num_pred, std::int64_t num_true, std::int64_t* tables);

}  // namespace ocl
