// The Python module ocl._native: numpy arrays in, numpy arrays out, no Torch headers. Shapes are checked in Python;
// what is checked here is only what keeps memory safe.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "ocl/labels.h"

#if defined(__clang__)
#define OCL_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define OCL_COMPILER "g++ " __VERSION__
#else
#define OCL_COMPILER "unknown compiler"
#endif

namespace py = pybind11;

namespace {

ocl::Labels labels_of(const py::array& array, const char* name) {
  if (!(array.flags() & py::array::c_style)) throw std::invalid_argument(std::string(name) + " must be contiguous");
  const char kind = array.dtype().kind();
  const auto size = array.itemsize();
  if (kind == 'u' && size == 1) return {array.data(), ocl::LabelType::kUInt8};
  if (kind == 'i' && size == 2) return {array.data(), ocl::LabelType::kInt16};
  if (kind == 'i' && size == 4) return {array.data(), ocl::LabelType::kInt32};
  if (kind == 'i' && size == 8) return {array.data(), ocl::LabelType::kInt64};
  throw std::invalid_argument(std::string(name) + " must hold uint8, int16, int32 or int64");
}

const std::uint8_t* ignore_of(const py::object& ignore, py::ssize_t num_pixels) {
  if (ignore.is_none()) return nullptr;
  const auto mask = ignore.cast<py::array>();
  if (!(mask.flags() & py::array::c_style) || mask.itemsize() != 1 || mask.size() != num_pixels)
    throw std::invalid_argument("ignore must be contiguous, one byte per pixel, and as large as the labels");
  return static_cast<const std::uint8_t*>(mask.data());
}

py::tuple label_range(const py::array& labels, const py::object& ignore) {
  const ocl::Labels view = labels_of(labels, "labels");
  const std::uint8_t* ignored = ignore_of(ignore, labels.size());
  const std::int64_t num_pixels = labels.size();
  ocl::LabelRange range{};
  {
    py::gil_scoped_release release;
    range = ocl::label_range(view, ignored, num_pixels);
  }
  return py::make_tuple(range.low, range.high);
}

py::tuple label_contingency(const py::array& pred, const py::array& truth, const py::object& ignore,
                            std::int64_t num_pred, std::int64_t num_true) {
  if (pred.ndim() < 1 || truth.ndim() < 1 || pred.size() != truth.size() || pred.shape(0) != truth.shape(0))
    throw std::invalid_argument("pred and true must have one shape [B, ...]");
  if (num_pred < 0 || num_true < 0) throw std::invalid_argument("num_pred and num_true must not be negative");
  const ocl::Labels pred_view = labels_of(pred, "pred"), true_view = labels_of(truth, "true");
  const std::uint8_t* ignored = ignore_of(ignore, pred.size());
  const std::int64_t num_images = pred.shape(0);
  const std::int64_t num_pixels = num_images == 0 ? 0 : pred.size() / num_images;
  py::array_t<std::int64_t> tables({num_images, num_pred, num_true + 1});
  std::int64_t* counts = tables.mutable_data();
  std::int64_t bad = -1;
  {
    py::gil_scoped_release release;
    for (std::int64_t i = 0; i < num_images * num_pred * (num_true + 1); ++i) counts[i] = 0;
    bad = ocl::label_contingency(pred_view, true_view, ignored, num_images, num_pixels, num_pred, num_true, counts);
  }
  return py::make_tuple(tables, bad);
}

py::dict build_info() {
  py::dict info;
  info["version"] = OCL_VERSION;
  info["compiler"] = OCL_COMPILER;
  info["flags"] = OCL_FLAGS;
  info["standard"] = static_cast<long>(__cplusplus);
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled parts of ocl that need no tensors: label counting for the metrics.";
  module.def("label_range", &label_range, py::arg("labels"), py::arg("ignore") = py::none(),
             "(smallest, largest) label outside ignore; (0, -1) if no pixel counts.");
  module.def("label_contingency", &label_contingency, py::arg("pred"), py::arg("true"), py::arg("ignore"), py::arg("num_pred"),
             py::arg("num_true"), "(int64 tables [B, num_pred, num_true + 1], offset of the first label out of range or -1).");
  module.def("build_info", &build_info, "Version, compiler, flags and C++ standard this module was built with.");
}
