// The dispatcher's side of both attention operators, once for every device: tensors to views, results allocated, kernels called.
// Built against torch's stable ABI (2.10 and later), so that one binary serves several versions of torch. Schemas, fake kernels and
// autograd are defined in Python (ocl/ops), beside a readable reference; this only adds implementations for a device.
//
// A Device has: const char* name; Tensor fit(const Tensor&), which copies what its kernels cannot read in place; and
// void run(work, const Tensor& like), which computes.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "register_attention/kernel.h"
#include "slot_attention/kernel.h"

namespace ocl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default: STD_TORCH_CHECK(false, op, ": the fused kernel takes float32, bfloat16 and float16; call ocl.ops, which takes the reference");
  }
}

inline void check_same(const char* op, const char* name, const Tensor& tensor, const Tensor& query, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, op, ": ", name, " must have rank ", rank, ", got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == query.scalar_type(), op, ": ", name, " must have the dtype of query");
}

// [B, H, rows, D] or, without a batch, [H, rows, D].
inline View view_of(const Tensor& tensor) {
  const int64_t shift = tensor.dim() - 3;
  return {tensor.data_ptr(), shift == 1 ? tensor.stride(0) : 0, tensor.stride(shift), tensor.stride(shift + 1)};
}

inline View view_of(const std::optional<Tensor>& tensor) { return tensor ? view_of(*tensor) : View{}; }

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), dtype);
}

// A result [B, H, rows, D] that lies in memory as [B, rows, H, D], so that joining the heads afterwards costs nothing.
inline Tensor new_rows(const Tensor& like, int64_t batch, int64_t heads, int64_t rows, int64_t width) {
  return torch::stable::transpose(new_tensor(like, {batch, rows, heads, width}), 1, 2);
}

inline Tensor new_shared_rows(const Tensor& like, int64_t heads, int64_t rows, int64_t width) {
  return torch::stable::transpose(new_tensor(like, {rows, heads, width}), 0, 1);
}

inline float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

inline const float* floats(const std::optional<Tensor>& tensor) { return tensor ? floats(*tensor) : nullptr; }

inline std::optional<Tensor> as_float(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, ScalarType::Float));
}

// Which gradients are wanted: bit i is the i-th tensor of the forward operator (see WANTED in ocl/ops).
inline bool wants(int64_t wanted, int bit) { return (wanted >> bit) & 1; }

// The inputs of one call, kept alive while the kernel runs.
template <class Device>
struct RegisterAttentionInputs {
  Tensor query, key, value, register_key, register_value;
  std::optional<Tensor> slot_mask, sink_logits;

  RegisterAttentionInputs(const char* op, const Tensor& query_, const Tensor& key_, const Tensor& value_, const Tensor& register_key_,
                          const Tensor& register_value_, const std::optional<Tensor>& slot_mask_,
                          const std::optional<Tensor>& sink_logits_)
      : query(Device::fit(query_)), key(Device::fit(key_)), value(Device::fit(value_)), register_key(Device::fit(register_key_)),
        register_value(Device::fit(register_value_)), sink_logits(as_float(sink_logits_)) {
    check_same(op, "query", query, query, 4);
    check_same(op, "key", key, query, 4);
    check_same(op, "value", value, query, 4);
    check_same(op, "register_key", register_key, query, 3);
    check_same(op, "register_value", register_value, query, 3);
    STD_TORCH_CHECK(key.size(0) == query.size(0) && key.size(1) == query.size(1) && key.size(3) == query.size(3), op,
                    ": key and query must agree in B, H and D");
    STD_TORCH_CHECK(register_key.size(0) == query.size(1) && register_key.size(2) == query.size(3), op,
                    ": register_key and query must agree in H and D");
    for (int64_t axis = 0; axis < 4; ++axis) STD_TORCH_CHECK(key.size(axis) == value.size(axis), op, ": key and value must have one shape");
    for (int64_t axis = 0; axis < 3; ++axis) {
      STD_TORCH_CHECK(register_key.size(axis) == register_value.size(axis), op, ": register_key and register_value must have one shape");
    }
    if (slot_mask_) {
      STD_TORCH_CHECK(slot_mask_->scalar_type() == ScalarType::Bool && slot_mask_->dim() == 2 && slot_mask_->size(0) == query.size(0) &&
                          slot_mask_->size(1) == key.size(2),
                      op, ": slot_mask must be bool [B, K]");
      slot_mask = torch::stable::contiguous(*slot_mask_);
    }
    if (sink_logits) STD_TORCH_CHECK(sink_logits->dim() == 1 && sink_logits->size(0) == query.size(1), op, ": sink_logits must be [H]");
  }

  RegisterAttention arguments(const char* op, double scale) const {
    RegisterAttention in;
    in.dtype = dtype_of(query, op);
    in.B = query.size(0), in.H = query.size(1), in.M = query.size(2), in.D = query.size(3);
    in.K = key.size(2), in.R = register_key.size(1);
    in.scale = static_cast<float>(scale);
    in.query = view_of(query), in.key = view_of(key), in.value = view_of(value);
    in.register_key = view_of(register_key), in.register_value = view_of(register_value);
    in.slot_mask = slot_mask ? static_cast<const uint8_t*>(slot_mask->data_ptr()) : nullptr;
    in.sink_logits = floats(sink_logits);
    return in;
  }
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> register_attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                                              const Tensor& register_key, const Tensor& register_value,
                                                              const std::optional<Tensor>& slot_mask,
                                                              const std::optional<Tensor>& sink_logits, double scale, bool with_maps) {
  constexpr const char* op = "ocl::register_attention_forward";
  const RegisterAttentionInputs<Device> inputs(op, query, key, value, register_key, register_value, slot_mask, sink_logits);
  RegisterAttentionForward work;
  work.in = inputs.arguments(op, scale);
  const auto& in = work.in;
  Tensor output = new_rows(query, in.B, in.H, in.M, in.D);
  Tensor logsumexp = new_tensor(query, {in.B, in.H, in.M}, ScalarType::Float);
  Tensor maps = new_tensor(query, {in.B, with_maps ? in.K : 0, in.M}, ScalarType::Float);
  work.output = view_of(output);
  work.logsumexp = floats(logsumexp);
  work.maps = with_maps && in.K > 0 ? floats(maps) : nullptr;
  Device::run(work, query);
  return {output, logsumexp, maps};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> register_attention_backward(
    const Tensor& grad_output, const std::optional<Tensor>& grad_maps, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& register_key, const Tensor& register_value, const std::optional<Tensor>& slot_mask,
    const std::optional<Tensor>& sink_logits, const Tensor& logsumexp, double scale, int64_t wanted) {
  constexpr const char* op = "ocl::register_attention_backward";
  const RegisterAttentionInputs<Device> inputs(op, query, key, value, register_key, register_value, slot_mask, sink_logits);
  RegisterAttentionBackward work;
  work.in = inputs.arguments(op, scale);
  const auto& in = work.in;
  check_same(op, "grad_output", grad_output, query, 4);
  const Tensor grad = Device::fit(grad_output);
  const std::optional<Tensor> grad_of_maps = as_float(grad_maps);
  const Tensor saved = torch::stable::contiguous(logsumexp);
  work.grad_output = view_of(grad);
  work.grad_maps = floats(grad_of_maps);
  work.logsumexp = floats(saved);
  const auto none = [&] { return new_tensor(query, {0}); };  // results must not share memory
  const auto slots = [&](int bit, View& view) {
    if (!wants(wanted, bit)) return none();
    Tensor made = new_rows(query, in.B, in.H, in.K, in.D);
    view = view_of(made);
    return made;
  };
  const auto registers = [&](int bit, View& view) {
    if (!wants(wanted, bit)) return none();
    Tensor made = new_shared_rows(query, in.H, in.R, in.D);
    view = view_of(made);
    return made;
  };
  Tensor grad_query = none();
  if (wants(wanted, 0)) {
    grad_query = new_rows(query, in.B, in.H, in.M, in.D);
    work.grad_query = view_of(grad_query);
  }
  Tensor grad_key = slots(1, work.grad_key), grad_value = slots(2, work.grad_value);
  Tensor grad_register_key = registers(3, work.grad_register_key), grad_register_value = registers(4, work.grad_register_value);
  Tensor grad_sink = new_tensor(query, {wants(wanted, 5) && sink_logits ? in.H : 0}, ScalarType::Float);
  if (wants(wanted, 5) && sink_logits) work.grad_sink_logits = floats(grad_sink);
  Device::run(work, query);
  return {grad_query, grad_key, grad_value, grad_register_key, grad_register_value, grad_sink};
}

template <class Device>
SlotAttention slot_attention_arguments(const char* op, const Tensor& query, const Tensor& key, const std::optional<Tensor>& value,
                                       double scale, double eps, bool eps_on_weights) {
  check_same(op, "query", query, query, 4);
  check_same(op, "key", key, query, 4);
  if (value) check_same(op, "value", *value, query, 4);
  SlotAttention in;
  in.dtype = dtype_of(query, op);
  in.B = query.size(0), in.H = query.size(1), in.K = query.size(2), in.D = query.size(3);
  in.N = key.size(2), in.E = value ? value->size(3) : in.D;
  STD_TORCH_CHECK(key.size(0) == in.B && key.size(1) == in.H && key.size(3) == in.D, op, ": key and query must agree in B, H and D");
  if (value) {
    STD_TORCH_CHECK(value->size(0) == in.B && value->size(1) == in.H && value->size(2) == in.N, op,
                    ": value and key must agree in B, H and N");
  }
  in.scale = static_cast<float>(scale), in.eps = static_cast<float>(eps), in.eps_on_weights = eps_on_weights;
  in.shared = !value;
  in.query = view_of(query), in.key = view_of(key), in.value = value ? view_of(*value) : in.key;
  return in;
}

template <class Device>
std::optional<Tensor> fit(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return Device::fit(*tensor);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> slot_attention_forward(const Tensor& query, const Tensor& key, const std::optional<Tensor>& value,
                                                          double scale, double eps, bool eps_on_weights, bool with_attn) {
  constexpr const char* op = "ocl::slot_attention_forward";
  const Tensor q = Device::fit(query), k = Device::fit(key);
  const std::optional<Tensor> v = fit<Device>(value);
  SlotAttentionForward work;
  work.in = slot_attention_arguments<Device>(op, q, k, v, scale, eps, eps_on_weights);
  const auto& in = work.in;
  Tensor updates = new_rows(query, in.B, in.H, in.K, in.E);
  Tensor total = new_tensor(query, {in.B, in.H, in.K}, ScalarType::Float);
  Tensor attn = new_tensor(query, {in.B, in.H, with_attn ? in.K : 0, in.N}, ScalarType::Float);
  work.updates = view_of(updates);
  work.total = floats(total);
  work.attn = with_attn ? floats(attn) : nullptr;
  Device::run(work, query);
  return {updates, total, attn};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> slot_attention_backward(const Tensor& grad_updates, const std::optional<Tensor>& grad_attn,
                                                           const Tensor& query, const Tensor& key, const std::optional<Tensor>& value,
                                                           const Tensor& updates, const Tensor& total, double scale, double eps,
                                                           bool eps_on_weights, int64_t wanted) {
  constexpr const char* op = "ocl::slot_attention_backward";
  const Tensor q = Device::fit(query), k = Device::fit(key), saved = Device::fit(updates), grad = Device::fit(grad_updates);
  const std::optional<Tensor> v = fit<Device>(value), grad_of_attn = as_float(grad_attn);
  const Tensor totals = torch::stable::contiguous(total);
  SlotAttentionBackward work;
  work.in = slot_attention_arguments<Device>(op, q, k, v, scale, eps, eps_on_weights);
  const auto& in = work.in;
  check_same(op, "grad_updates", grad, query, 4);
  work.updates = view_of(saved), work.grad_updates = view_of(grad);
  work.total = floats(totals);
  work.grad_attn = floats(grad_of_attn);
  const auto none = [&] { return new_tensor(query, {0}); };  // results must not share memory
  const auto made = [&](int bit, int64_t rows, int64_t width, View& view) {
    if (!wants(wanted, bit)) return none();
    Tensor result = new_rows(query, in.B, in.H, rows, width);
    view = view_of(result);
    return result;
  };
  Tensor grad_query = made(0, in.K, in.D, work.grad_query), grad_key = made(1, in.N, in.D, work.grad_key);
  Tensor grad_value = in.shared ? none() : made(2, in.N, in.E, work.grad_value);
  Device::run(work, query);
  return {grad_query, grad_key, grad_value};
}

}  // namespace ocl

// The four operators of a device; `Device` is a type in namespace ocl, KEY a dispatch key.
#define OCL_ATTENTION_OPERATORS(KEY, Device)                                                             \
  STABLE_TORCH_LIBRARY_IMPL(ocl, KEY, library) {                                                         \
    library.impl("register_attention_forward", TORCH_BOX(&ocl::register_attention_forward<Device>));     \
    library.impl("register_attention_backward", TORCH_BOX(&ocl::register_attention_backward<Device>));   \
    library.impl("slot_attention_forward", TORCH_BOX(&ocl::slot_attention_forward<Device>));             \
    library.impl("slot_attention_backward", TORCH_BOX(&ocl::slot_attention_backward<Device>));           \
  }
