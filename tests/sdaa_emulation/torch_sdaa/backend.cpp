// An emulated accelerator: PyTorch's PrivateUse1 device, renamed "sdaa", whose memory is the CPU's.
//
// It is a real device to PyTorch: own allocator, device guard, dispatch key, autocast and process group. What it has no
// kernel for runs through PyTorch's boxed CPU fallback, which copies to the CPU and back. Every operator is counted, an
// operator on tensors of several devices is refused, and so is every operator that the test forbids.
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/extension.h>
#include <torch/version.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
constexpr size_t kAlignment = 64;

// ---- What the tests read and set -----------------------------------------------------------------------------------

thread_local int uncounted = 0;

// What PyTorch's fallback does itself is not what the program asked for.
struct Uncounted {
  Uncounted() { ++uncounted; }
  ~Uncounted() { --uncounted; }
};

struct Ledger {
  std::mutex mutex;
  std::map<std::string, int64_t> operators;  // qualified name -> calls on the device
  std::set<std::string> forbidden;
  int64_t bytes_in_use = 0;
  int64_t peak_bytes = 0;

  void count(const std::string& name) {
    if (uncounted > 0) return;
    std::lock_guard<std::mutex> lock(mutex);
    TORCH_CHECK_NOT_IMPLEMENTED(forbidden.count(name) == 0, name, " is not supported on the device sdaa");
    ++operators[name];
  }
  void allocated(int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    bytes_in_use += bytes;
    peak_bytes = std::max(peak_bytes, bytes_in_use);
  }
};

Ledger& ledger() {
  static Ledger* instance = new Ledger();  // never destroyed: tensors may outlive static objects
  return *instance;
}

// ---- Devices and memory --------------------------------------------------------------------------------------------

thread_local c10::DeviceIndex current_index = 0;

c10::DeviceIndex device_count() {
  const char* visible = std::getenv("SDAA_EMULATED_DEVICES");
  return visible == nullptr ? 4 : static_cast<c10::DeviceIndex>(std::atoi(visible));  // one card is four devices
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto previous = getDevice();
    setDevice(device);
    return previous;
  }
  c10::Device getDevice() const override { return {kDevice, current_index}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < device_count(), "sdaa has ", int(device_count()), " devices, not ", device);
    if (device.index() >= 0) current_index = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current_index = device.index();
  }
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }
  // All work is done when a call returns, so that events and streams have nothing to wait for.
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Block {
  void* data;
  int64_t bytes;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  ledger().allocated(-block->bytes);
  std::free(block->data);
  delete block;
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* data = rounded == 0 ? nullptr : std::aligned_alloc(kAlignment, rounded);
    ledger().allocated(static_cast<int64_t>(rounded));
    return {data, new Block{data, static_cast<int64_t>(rounded)}, &release, {kDevice, current_index}};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    std::memcpy(destination, source, bytes);
  }
};

DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(kDevice, &device_allocator);

struct Hooks final : at::PrivateUse1HooksInterface {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 6
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  c10::DeviceIndex deviceCount() const override { return device_count(); }
  c10::DeviceIndex getCurrentDevice() const override { return current_index; }
  void setCurrentDevice(c10::DeviceIndex index) const override { Guard().setDevice({kDevice, index}); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return Guard().exchangeDevice({kDevice, index}).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
#endif
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto data = device_allocator.allocate(bytes);
    std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr(std::move(data));
    storage.set_nbytes(bytes);
  }
};

// ---- Operators with kernels of their own ----------------------------------------------------------------------------

// The same memory as a CPU tensor. It keeps the device tensor alive.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

std::optional<at::Tensor> on_host(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(on_host(*tensor)) : std::nullopt;
}

at::Tensor on_device(const at::Tensor& host, c10::Device device) {
  if (!host.defined()) return host;
  auto result = at::empty_strided(host.sizes(), host.strides(), host.options().device(device));
  on_host(result).copy_(host);
  return result;
}

at::Tensor empty_memory_format(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  ledger().count("aten::empty.memory_format");
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &device_allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  ledger().count("aten::empty_strided");
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &device_allocator,
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

const char* direction(const at::Tensor& from, const at::Tensor& to) {
  if (from.is_cpu()) return "copy::host_to_device";
  return to.is_cpu() ? "copy::device_to_host" : "copy::device_to_device";
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& destination, bool) {
  ledger().count(direction(self, destination));
  on_host(destination).copy_(on_host(self));
  return destination;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& destination) {
  if (destination.sizes() != self.sizes()) destination.resize_(self.sizes());
  return copy_from(self, destination, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  ledger().count("aten::_local_scalar_dense");
  return on_host(self).item();
}

// A view shares the storage of its source, on the device as anywhere.
at::Tensor as_strided(
    const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  auto* impl = view.unsafeGetTensorImpl();
  impl->set_storage_offset(offset ? offset->expect_int() : self.storage_offset());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return view;
}

// As on the real card: also where the strides would allow it, and also in PyTorch's own decompositions of operators.
at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      self.is_contiguous(), "a view of a non-contiguous tensor is not supported on the device sdaa");
  const auto sizes = at::infer_size_dv(C10_AS_INTARRAYREF_SLOW(size), self.numel());
  const auto strides = at::detail::computeStride(self.sizes(), self.strides(), sizes);
  TORCH_CHECK(strides.has_value(), "view size is not compatible with the input tensor's size and stride");
  return self.as_strided(sizes, *strides, self.storage_offset());
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return self.as_strided_symint(size, stride, self.sym_storage_offset());
}

const at::Tensor& resize_(
    const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(sizes);
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  const size_t bytes = self.numel() == 0 ? 0 : (self.storage_offset() + self.numel()) * self.element_size();
  if (bytes > self.storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), bytes);
  return self;
}

at::Tensor& set_storage(
    at::Tensor& self, c10::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset.expect_int());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, c10::Storage source) {
  const int64_t elements = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, {elements}, {1});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(
      self, source.storage(), source.sym_storage_offset(), source.sym_sizes(), source.sym_strides());
}

at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  ledger().count("aten::convolution_overrideable");
  TORCH_CHECK(input.device() == weight.device(), "convolution on ", input.device(), " and ", weight.device());
  auto output = at::convolution_symint(
      on_host(input), on_host(weight), on_host(bias), stride, padding, dilation, transposed, output_padding, groups);
  return on_device(output, input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> wanted) {
  ledger().count("aten::convolution_backward_overrideable");
  const auto bias_sizes = c10::SymIntArrayRef(grad_output.sym_sizes().data() + 1, 1);
  auto [input_grad, weight_grad, bias_grad] = at::convolution_backward_symint(
      on_host(grad_output), on_host(input), on_host(weight), bias_sizes, stride, padding, dilation, transposed,
      output_padding, groups, wanted);
  const auto device = input.device();
  return {on_device(input_grad, device), on_device(weight_grad, device), on_device(bias_grad, device)};
}

// Its schema does not say that it writes the running statistics, so that the fallback would lose them.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var, bool training,
    double momentum, double epsilon) {
  ledger().count("aten::native_batch_norm");
  auto [output, mean, inverse_std] = at::native_batch_norm(
      on_host(input), on_host(weight), on_host(bias), on_host(running_mean), on_host(running_var), training, momentum,
      epsilon);
  const auto device = input.device();
  return {on_device(output, device), on_device(mean, device), on_device(inverse_std, device)};
}

// ---- Everything else: the boxed CPU fallback -------------------------------------------------------------------------

void check_device(const at::Tensor& tensor, const std::string& name, std::optional<c10::Device>& device) {
  if (!tensor.defined() || (tensor.is_cpu() && tensor.dim() == 0)) return;  // a number may come from the CPU
  if (!device) device = tensor.device();
  TORCH_CHECK(tensor.device() == *device, name, " got tensors on ", *device, " and ", tensor.device());
}

void check_one_device(const std::string& name, const torch::jit::Stack& stack, size_t num_arguments) {
  std::optional<c10::Device> device;
  for (size_t i = stack.size() - num_arguments; i < stack.size(); ++i) {
    const auto& value = stack[i];
    if (value.isTensor()) check_device(value.toTensor(), name, device);
    if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorList()) check_device(tensor, name, device);
    } else if (value.isList()) {
      for (const c10::IValue& item : value.toListRef()) {
        if (item.isTensor()) check_device(item.toTensor(), name, device);
      }
    }
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto name = c10::toString(op.operator_name());
  ledger().count(name);
  check_one_device(name, *stack, op.schema().arguments().size());
  const Uncounted copies_of_the_fallback;
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

// ---- The process group "tccl": gloo over the same memory -------------------------------------------------------------

struct Done final : c10d::Work {
  explicit Done(std::vector<at::Tensor> tensors)
      : tensors_(std::move(tensors)),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {
    future_->markCompleted(c10::IValue(tensors_));
  }
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds) override { return true; }
  std::vector<at::Tensor> result() override { return tensors_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  std::vector<at::Tensor> tensors_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

struct Tccl final : c10d::Backend {
  explicit Tccl(c10::intrusive_ptr<c10d::Backend> gloo)
      : c10d::Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)) {}

  const std::string getBackendName() const override { return "tccl"; }

  c10::intrusive_ptr<c10d::Work> broadcast(
      std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    auto host = hosts("tccl::broadcast", tensors);
    gloo_->broadcast(host, options)->wait();
    return c10::make_intrusive<Done>(tensors);
  }
  c10::intrusive_ptr<c10d::Work> allreduce(
      std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    auto host = hosts("tccl::allreduce", tensors);
    gloo_->allreduce(host, options)->wait();
    return c10::make_intrusive<Done>(tensors);
  }
  c10::intrusive_ptr<c10d::Work> allgather(
      std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
      const c10d::AllgatherOptions& options) override {
    auto host_inputs = hosts("tccl::allgather", inputs);
    std::vector<std::vector<at::Tensor>> host_outputs;
    for (auto& output : outputs) host_outputs.push_back(hosts("tccl::allgather", output));
    gloo_->allgather(host_outputs, host_inputs, options)->wait();
    return c10::make_intrusive<Done>(outputs.at(0));
  }
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override {
    ledger().count("tccl::barrier");
    gloo_->barrier(options)->wait();
    return c10::make_intrusive<Done>(std::vector<at::Tensor>());
  }

 private:
  static std::vector<at::Tensor> hosts(const char* name, const std::vector<at::Tensor>& tensors) {
    ledger().count(name);
    std::vector<at::Tensor> result;
    for (const auto& tensor : tensors) {
      TORCH_CHECK(tensor.device().type() == kDevice, "tccl needs tensors on sdaa, got one on ", tensor.device());
      result.push_back(on_host(tensor));
    }
    return result;
  }

  c10::intrusive_ptr<c10d::Backend> gloo_;
};

// ---- Registration ----------------------------------------------------------------------------------------------------

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty_memory_format));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
  m.impl("as_strided", TORCH_FN(as_strided));
  m.impl("view", TORCH_FN(view));
  m.impl("_reshape_alias", TORCH_FN(reshape_alias));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("set_.source_Storage", TORCH_FN(set_whole_storage));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("native_batch_norm", TORCH_FN(batch_norm));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 8  // 2.4 and 2.7 lack it, 2.14 registers it itself
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}
#endif

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

// The casts of the vendor's autocast: products in half precision, what half precision cannot hold in float32.
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(baddbmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(layer_norm, fp32)
  KERNEL_PRIVATEUSEONE(group_norm, fp32)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32)
  KERNEL_PRIVATEUSEONE(log_softmax, int, fp32)
  KERNEL_PRIVATEUSEONE(binary_cross_entropy_with_logits, fp32)
  KERNEL_PRIVATEUSEONE(nll_loss, fp32)
  KERNEL_PRIVATEUSEONE(sum, fp32)
  KERNEL_PRIVATEUSEONE(pow, Tensor_Scalar, fp32)
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  m.def("device_count", [] { return int(device_count()); });
  m.def("current_device", [] { return int(current_index); });
  m.def("set_device", [](int index) { Guard().setDevice({kDevice, static_cast<c10::DeviceIndex>(index)}); });
  m.def("memory_allocated", [] { return ledger().bytes_in_use; });
  m.def("max_memory_allocated", [] { return ledger().peak_bytes; });
  m.def("reset_peak_memory_stats", [] { ledger().peak_bytes = ledger().bytes_in_use; });
  m.def("operator_counts", [] { return ledger().operators; });
  m.def("reset_operator_counts", [] { ledger().operators.clear(); });
  m.def("forbid", [](std::set<std::string> names) { ledger().forbidden = std::move(names); });
  m.def("wrap_gloo", [](c10::intrusive_ptr<c10d::Backend> gloo) -> c10::intrusive_ptr<c10d::Backend> {
    return c10::make_intrusive<Tccl>(std::move(gloo));
  });
}
