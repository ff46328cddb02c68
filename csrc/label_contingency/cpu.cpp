// Chooses the template for the integer types at hand, and walks over the images of a batch.
#include "ocl/label_contingency.h"

#include "ocl/labels.h"

namespace ocl {
namespace {

// Calls use(pointer of the right type).
template <class Use>
auto with_type(Labels labels, Use use) {
  switch (labels.type) {
    case LabelType::kUInt8: return use(static_cast<const std::uint8_t*>(labels.data));
    case LabelType::kInt16: return use(static_cast<const std::int16_t*>(labels.data));
    case LabelType::kInt32: return use(static_cast<const std::int32_t*>(labels.data));
    default: return use(static_cast<const std::int64_t*>(labels.data));
  }
}

}  // namespace

LabelRange label_range(Labels labels, const std::uint8_t* ignore, std::int64_t num_pixels) {
  return with_type(labels, [&](const auto* data) { return label_range(data, ignore, num_pixels); });
}

std::int64_t label_contingency(Labels pred, Labels truth, const std::uint8_t* ignore, std::int64_t num_images,
                               std::int64_t num_pixels, std::int64_t num_pred, std::int64_t num_true, std::int64_t* tables) {
  return with_type(pred, [&](const auto* pred_data) {
    return with_type(truth, [&](const auto* true_data) -> std::int64_t {
      for (std::int64_t image = 0; image < num_images; ++image) {
        const std::int64_t start = image * num_pixels;
        const std::int64_t bad = count_pairs(pred_data + start, true_data + start, ignore ? ignore + start : nullptr, num_pixels,
                                             num_pred, num_true, tables + image * num_pred * (num_true + 1));
        if (bad >= 0) return start + bad;
      }
      return -1;
    });
  });
}

}  // namespace ocl
