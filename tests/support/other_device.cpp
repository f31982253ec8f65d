// A device of torch's own kind for a machine that has none but its CPU: two of them, "other:0" and "other:1".
//
// Their memory is the host's, counted, and everything is computed by the CPU's own operations. What a GPU refuses is
// refused: tensors of two devices in one operation. So code that forgets where a tensor lies fails here as it would
// there. See tests/support/other_device.py.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;
thread_local c10::DeviceIndex current = 0;

std::atomic<int64_t> held{0}, most{0};

// Each block of memory says before its start how long it is, so that what is held can be counted.
void give_back(void* data) {
  if (!data) return;
  auto* start = static_cast<char*>(data) - 64;
  held -= *reinterpret_cast<int64_t*>(start);
  std::free(start);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes) {
      auto* start = static_cast<char*>(std::malloc(bytes + 64));
      *reinterpret_cast<int64_t*>(start) = static_cast<int64_t>(bytes);
      data = start + 64;
      int64_t now = held += static_cast<int64_t>(bytes);
      int64_t before = most.load();
      while (before < now && !most.compare_exchange_weak(before, now)) {}
    }
    return {data, data, &give_back, c10::Device(kType, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
struct RegisterMemory { RegisterMemory() { c10::SetAllocator(kType, &memory); } } register_memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device d) const override { auto old = getDevice(); current = d.index(); return old; }
  c10::Device getDevice() const override { return {kType, current}; }
  void setDevice(c10::Device d) const override { current = d.index(); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { current = d.index(); }
  c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream getDefaultStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DeviceGuard guard(storage.device());
    auto data = memory.allocate(bytes);
    if (auto kept = std::min(bytes, storage.nbytes())) std::memcpy(data.get(), storage.data(), kept);
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
Hooks hooks;
struct RegisterHooks { RegisterHooks() { at::RegisterPrivateUse1HooksInterface(&hooks); } } register_hooks;

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(device.value_or(c10::Device(kType, current)));
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(device.value_or(c10::Device(kType, current)));
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// The same memory, as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& t) {
  auto options = t.options().device(at::kCPU);
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), options);
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), options);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  auto source = from.is_cpu() ? from : on_cpu(from);
  auto target = to.is_cpu() ? to : on_cpu(to);
  target.copy_(source);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& t) { return on_cpu(t).item(); }

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  auto bytes = static_cast<size_t>(self.numel() + self.storage_offset()) * self.itemsize();
  auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) {
    c10::DeviceGuard guard(self.device());
    auto data = memory.allocate(bytes);
    if (storage->nbytes()) std::memcpy(data.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr(std::move(data));
    storage->set_nbytes(bytes);
  }
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_sizes_and_strides(size, stride);
  impl->set_storage_offset(offset);
  return self;
}

at::Tensor strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  auto result = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(self.storage()),
                                                         self.key_set(), self.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(size, stride);
  impl->set_storage_offset(offset.value_or(self.storage_offset()));
  return result;
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef size) {
  const int64_t numel = self.numel();
  std::vector<int64_t> inferred = at::infer_size(size, numel);
  auto stride = at::detail::computeStride(self.sizes(), self.strides(), inferred);
  TORCH_CHECK(stride.has_value(), "view size is not compatible with input tensor's size and stride");
  return strided(self, inferred, *stride, self.storage_offset());
}

at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
  return strided(self, size, stride, self.storage_offset());
}

at::Tensor& zero(at::Tensor& self) { on_cpu(self).zero_(); return self; }

at::Tensor& set_whole(at::Tensor& self, at::Storage source) {
  int64_t n = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {n}, {1});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

void require_same(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.device() == b.device(), "Expected all tensors to be on the same device, but found at least two devices, ",
              a.device(), " and ", b.device(), "! (convolution)");
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                       at::SymIntArrayRef stride, at::SymIntArrayRef padding, at::SymIntArrayRef dilation,
                       bool transposed, at::SymIntArrayRef output_padding, c10::SymInt groups) {
  require_same(x, w);
  std::optional<at::Tensor> b;
  if (bias && bias->defined()) { require_same(x, *bias); b = on_cpu(*bias); }
  return at::convolution_symint(on_cpu(x), on_cpu(w), b, stride, padding, dilation, transposed, output_padding, groups)
      .to(x.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w, at::SymIntArrayRef stride,
    at::SymIntArrayRef padding, at::SymIntArrayRef dilation, bool transposed, at::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> mask) {
  require_same(x, w);
  require_same(x, grad);
  auto sizes = at::OptionalSymIntArrayRef();
  std::vector<c10::SymInt> bias{transposed ? w.sym_size(1) * groups : w.sym_size(0)};
  sizes = bias;
  auto [a, b, c] = at::convolution_backward_symint(on_cpu(grad), on_cpu(x), on_cpu(w), sizes, stride, padding, dilation,
                                                   transposed, output_padding, groups, mask);
  auto back = [&](const at::Tensor& t) { return t.defined() ? t.to(x.device()) : t; };
  return {back(a), back(b), back(c)};
}

at::Tensor added(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& c, const std::optional<at::Tensor>& d) {
  auto sum = on_cpu(a) + on_cpu(b);
  if (c && c->defined()) sum = sum + on_cpu(*c);
  if (d && d->defined()) sum = sum + on_cpu(*d);
  return sum;
}

// As on CUDA, where recurrent layers are made of these when cuDNN is off.
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& cx,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  auto gates = added(input_gates, hidden_gates, input_bias, hidden_bias).chunk(4, 1);
  auto i = gates[0].sigmoid(), f = gates[1].sigmoid(), g = gates[2].tanh(), o = gates[3].sigmoid();
  auto cy = f * on_cpu(cx) + i * g;
  auto hy = o * cy.tanh();
  auto there = cx.device();
  return {hy.to(there), cy.to(there), at::cat({i, f, g, o}, 1).to(there)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const std::optional<at::Tensor>& grad_hy, const std::optional<at::Tensor>& grad_cy, const at::Tensor& cx,
    const at::Tensor& cy, const at::Tensor& workspace, bool has_bias) {
  auto parts = on_cpu(workspace).chunk(4, 1);
  auto i = parts[0], f = parts[1], g = parts[2], o = parts[3];
  auto t = on_cpu(cy).tanh();
  auto gh = grad_hy && grad_hy->defined() ? on_cpu(*grad_hy) : at::zeros_like(t);
  auto gc = gh * o * (1 - t * t);
  if (grad_cy && grad_cy->defined()) gc = gc + on_cpu(*grad_cy);
  auto gates = at::cat({gc * g * i * (1 - i), gc * on_cpu(cx) * f * (1 - f), gc * i * (1 - g * g), gh * t * o * (1 - o)}, 1);
  auto there = cx.device();
  return {gates.to(there), (gc * f).to(there), has_bias ? gates.sum(0).to(there) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& hx,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  auto a = on_cpu(input_gates), b = on_cpu(hidden_gates), h = on_cpu(hx);
  if (input_bias && input_bias->defined()) a = a + on_cpu(*input_bias);
  if (hidden_bias && hidden_bias->defined()) b = b + on_cpu(*hidden_bias);
  auto x = a.chunk(3, 1), y = b.chunk(3, 1);
  auto r = (x[0] + y[0]).sigmoid(), z = (x[1] + y[1]).sigmoid(), n = (x[2] + r * y[2]).tanh();
  return {(n + z * (h - n)).to(hx.device()), at::cat({r, z, n, h, y[2]}, 1).to(hx.device())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& grad, const at::Tensor& workspace, bool has_bias) {
  auto parts = on_cpu(workspace).chunk(5, 1);
  auto r = parts[0], z = parts[1], n = parts[2], h = parts[3], q = parts[4], g = on_cpu(grad);
  auto gn = g * (1 - z) * (1 - n * n), gz = g * (h - n) * z * (1 - z), gr = gn * q * r * (1 - r);
  auto a = at::cat({gr, gz, gn}, 1), b = at::cat({gr, gz, gn * r}, 1);
  auto there = grad.device();
  auto sums = [&](const at::Tensor& t) { return has_bias ? t.sum(0).to(there) : at::Tensor(); };
  return {a.to(there), b.to(there), (g * z).to(there), sums(a), sums(b)};
}

// Everything else runs on the CPU; tensors of two devices are an error here as they are on a GPU.
void elsewhere(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::optional<c10::Device> first;
  auto look = [&](const at::Tensor& t) {
    if (!t.defined() || (t.is_cpu() && t.dim() == 0)) return;
    if (!first) first = t.device();
    auto name = op.schema().name();
    bool indexed = name.find("index") != std::string::npos && t.is_cpu();
    TORCH_CHECK(*first == t.device() || indexed, "Expected all tensors to be on the same device, but found at least two devices, ",
                *first, " and ", t.device(), "! (", op.schema().name(), ")");
  };
  const auto n = op.schema().arguments().size();
  std::vector<at::Tensor> seen;
  for (auto& value : torch::jit::last(*stack, n)) {
    if (value.isTensor()) look(value.toTensor());
    else if (value.isTensorList()) for (const at::Tensor& t : value.toTensorVector()) look(t);
    else if (value.isOptionalTensorList())
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector()) if (t) look(*t);
  }
  c10::OptionalDeviceGuard guard(first && first->type() == kType ? first : std::nullopt);
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  m.impl("resize_", TORCH_FN(resize));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("set_.source_Storage", TORCH_FN(set_whole));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
  m.impl("_thnn_fused_lstm_cell", TORCH_FN(lstm_cell));
  m.impl("_thnn_fused_lstm_cell_backward_impl", TORCH_FN(lstm_cell_backward));
  m.impl("_thnn_fused_gru_cell", TORCH_FN(gru_cell));
  m.impl("_thnn_fused_gru_cell_backward", TORCH_FN(gru_cell_backward));
  m.impl("as_strided", TORCH_FN(strided));
  m.impl("view", TORCH_FN(view));
  m.impl("_reshape_alias", TORCH_FN(reshape_alias));
  m.impl("zero_", TORCH_FN(zero));
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&elsewhere>()); }

TORCH_LIBRARY(other_device, m) {
  m.def("held", []() -> int64_t { return held.load(); });
  m.def("most", []() -> int64_t { return most.load(); });
  m.def("forget", []() { most = held.load(); });
}

}  // namespace
