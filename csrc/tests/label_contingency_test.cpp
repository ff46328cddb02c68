// label_contingency against one pixel at a time, for every pair of integer types and for lengths around a block.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "ocl/labels.h"

namespace {

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);   \
      std::exit(1);                                                                   \
    }                                                                                 \
  } while (false)

template <class Label>
ocl::Labels view(const std::vector<Label>& labels) {
  ocl::LabelType type = ocl::LabelType::kInt64;
  if (std::is_same<Label, std::uint8_t>::value) type = ocl::LabelType::kUInt8;
  if (std::is_same<Label, std::int16_t>::value) type = ocl::LabelType::kInt16;
  if (std::is_same<Label, std::int32_t>::value) type = ocl::LabelType::kInt32;
  return {labels.data(), type};
}

// Labels in runs of about `run` pixels, as in a real label map.
template <class Label>
std::vector<Label> random_runs(std::mt19937& random, std::int64_t size, int num_labels, int run) {
  std::vector<Label> labels(static_cast<std::size_t>(size));
  Label current = 0;
  for (auto& label : labels) {
    if (random() % static_cast<unsigned>(run) == 0) current = static_cast<Label>(random() % static_cast<unsigned>(num_labels));
    label = current;
  }
  return labels;
}

template <class Pred, class True>
void agrees_with_one_pixel_at_a_time() {
  std::mt19937 random(7);
  const std::int64_t num_pred = 7, num_true = 5, images = 3;
  for (std::int64_t pixels : {0, 1, 2, 31, 32, 33, 63, 64, 65, 200, 1000}) {
    for (int run : {1, 3, 40}) {
      const auto pred = random_runs<Pred>(random, images * pixels, num_pred, run);
      const auto truth = random_runs<True>(random, images * pixels, num_true, run);
      const auto ignore = random_runs<std::uint8_t>(random, images * pixels, 2, run);
      for (const bool with_ignore : {false, true}) {
        std::vector<std::int64_t> expected(static_cast<std::size_t>(images * num_pred * (num_true + 1)), 0), got = expected;
        for (std::int64_t i = 0; i < images * pixels; ++i) {
          const auto at = static_cast<std::size_t>(i);
          const std::int64_t column = with_ignore && ignore[at] ? num_true : truth[at];
          ++expected[static_cast<std::size_t>(((i / pixels) * num_pred + pred[at]) * (num_true + 1) + column)];
        }
        const std::uint8_t* mask = with_ignore ? ignore.data() : nullptr;
        CHECK(ocl::label_contingency(view(pred), view(truth), mask, images, pixels, num_pred, num_true, got.data()) == -1);
        CHECK(got == expected);
      }
    }
  }
}

void labels_out_of_range_are_reported_not_written() {
  const std::vector<std::int32_t> pred = {0, 0, 3, 0}, truth = {0, -1, 0, 9};
  std::vector<std::int64_t> table(2 * 3, 0);
  CHECK(ocl::label_contingency(view(pred), view(truth), nullptr, 1, 4, 2, 2, table.data()) == 1);
  const std::vector<std::uint8_t> ignore = {0, 1, 1, 1};
  table.assign(table.size(), 0);
  CHECK(ocl::label_contingency(view(pred), view(truth), ignore.data(), 1, 4, 2, 2, table.data()) == -1);
  CHECK((table == std::vector<std::int64_t>{1, 0, 2, 0, 0, 0}));  // the ignored pixel with pred 3 fits nowhere
}

void range_looks_only_at_pixels_that_count() {
  const std::vector<std::int64_t> labels = {-5, 4, std::numeric_limits<std::int64_t>::max(), 2};
  const std::vector<std::uint8_t> ignore = {1, 0, 1, 0}, all = {1, 1, 1, 1};
  ocl::LabelRange range = ocl::label_range(view(labels), ignore.data(), 4);
  CHECK(range.low == 2 && range.high == 4);
  range = ocl::label_range(view(labels), nullptr, 4);
  CHECK(range.low == -5 && range.high == std::numeric_limits<std::int64_t>::max());
  range = ocl::label_range(view(labels), all.data(), 4);
  CHECK(range.low > range.high);
  range = ocl::label_range(view(labels), nullptr, 0);
  CHECK(range.low > range.high);
}

template <class Pred>
void agrees_for_every_true_type() {
  agrees_with_one_pixel_at_a_time<Pred, std::uint8_t>();
  agrees_with_one_pixel_at_a_time<Pred, std::int16_t>();
  agrees_with_one_pixel_at_a_time<Pred, std::int32_t>();
  agrees_with_one_pixel_at_a_time<Pred, std::int64_t>();
}

}  // namespace

int main() {
  agrees_for_every_true_type<std::uint8_t>();
  agrees_for_every_true_type<std::int16_t>();
  agrees_for_every_true_type<std::int32_t>();
  agrees_for_every_true_type<std::int64_t>();
  labels_out_of_range_are_reported_not_written();
  range_looks_only_at_pixels_that_count();
  std::puts("label_contingency: all checks hold");
  return 0;
}
