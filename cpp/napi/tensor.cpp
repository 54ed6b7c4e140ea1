#include <cstring>

#include "core/row_writes.h"
#include "core/status.h"
#include "napi/classes.h"

namespace heddle {

namespace {

/// What may be copied on the event loop: well under a millisecond.
constexpr size_t kSynchronousBytes = size_t{1} << 20;
/// What may be given back to the system there.
constexpr int64_t kQuickRelease = int64_t{16} << 20;
constexpr napi_type_tag kTensorTag = {0x6865646c652d7465, 0x6e736f722d303031};

class NativeTensor : public Napi::ObjectWrap<NativeTensor> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "NativeTensor",
        {InstanceAccessor<&NativeTensor::shape>("shape"), InstanceAccessor<&NativeTensor::dtype>("dtype"),
         InstanceAccessor<&NativeTensor::byte_length>("byteLength"),
         InstanceAccessor<&NativeTensor::version>("version"), InstanceAccessor<&NativeTensor::disposed>("disposed"),
         InstanceMethod<&NativeTensor::dispose>("dispose")});
  }

  explicit NativeTensor(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    auto* const tensor = static_cast<Tensor*>(std::exchange(Addon::of(info.Env()).constructing, nullptr));
    if (tensor == nullptr) throw Napi::TypeError::New(info.Env(), "NativeTensor cannot be constructed");
    tensor_ = std::move(*tensor);
    info.This().As<Napi::Object>().TypeTag(&kTensorTag);
    reported_ = static_cast<int64_t>(tensor_.storage->resident());
    Napi::MemoryManagement::AdjustExternalMemory(info.Env(), reported_);
  }

  void Finalize(Napi::Env env) override { release(env); }

  const Tensor& tensor() const noexcept { return tensor_; }

 private:
  Napi::Value shape(const Napi::CallbackInfo& info) {
    const auto dims = tensor_.shape.dims();
    Napi::Array array = Napi::Array::New(info.Env(), dims.size());
    for (uint32_t axis = 0; axis < dims.size(); ++axis) array[axis] = static_cast<double>(dims[axis]);
    return array;
  }
  Napi::Value dtype(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), dtype_name(tensor_.dtype)); }
  Napi::Value byte_length(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(tensor_.shape.bytes(tensor_.dtype)));
  }
  Napi::Value version(const Napi::CallbackInfo& info) {
    const uint64_t version = tensor_.storage ? tensor_.storage->version() : 0;
    return Napi::Number::New(info.Env(), static_cast<double>(version));
  }
  Napi::Value disposed(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), !tensor_.storage); }
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    release(info.Env());
    return info.Env().Undefined();
  }

  void release(Napi::Env env) {
    if (reported_ >= kQuickRelease) drop_elsewhere(std::move(tensor_.storage));
    tensor_.storage.reset();
    if (const int64_t bytes = std::exchange(reported_, 0); bytes != 0)
      Napi::MemoryManagement::AdjustExternalMemory(env, -bytes);
  }

  Tensor tensor_;
  int64_t reported_ = 0;
};

Napi::Value tensor_from_data(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const DType dtype = dtype_argument(info[0], "dtype");
    const Shape shape = shape_argument(info[1], "shape");
    const auto bytes = bytes_argument(info[2], "data");
    if (bytes.size() != shape.bytes(dtype))
      throw Error(ErrorCode::kShape, "data",
                  std::to_string(shape.bytes(dtype)) + " bytes for " + dtype_name(dtype) + " " + shape.str(),
                  std::to_string(bytes.size()));
    Tensor tensor{dtype, shape, Storage::owned(bytes.size())};
    if (!bytes.empty()) std::memcpy(tensor.storage->mutable_data(), bytes.data(), bytes.size());
    return Addon::of(info.Env()).wrap(info.Env(), std::move(tensor));
  });
}

Napi::Value tensor_zeros(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const DType dtype = dtype_argument(info[0], "dtype");
    const Shape shape = shape_argument(info[1], "shape");
    return Addon::of(info.Env()).wrap(info.Env(), {dtype, shape, Storage::owned(shape.bytes(dtype))});
  });
}

/// The failure, if any, as a value: the caller has something to put away in either case.
std::exception_ptr copy_contents(const std::shared_ptr<Storage>& storage, void* target) noexcept {
  try {
    const bool was_resident = storage->resident() != 0;
    {
      const Storage::Pin pin(storage);
      if (storage->size() != 0) std::memcpy(target, pin.data(), storage->size());
    }
    // What was decoded only to be copied does not stay.
    if (!was_resident) storage->evict();
    return nullptr;
  } catch (...) {
    return std::current_exception();
  }
}

/// Room for the elements, made on the event loop and filled on a runner thread. The reference keeps it from the garbage
/// collector; JavaScript sees it only when it is full.
Napi::Value tensor_data(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor tensor = tensor_argument(info[0], "tensor");
    auto buffer = Napi::ArrayBuffer::New(info.Env(), tensor.storage->size());
    const auto keep = std::make_shared<Napi::ObjectReference>(Napi::Persistent(buffer.As<Napi::Object>()));
    // When the environment goes before the copy is delivered, the environment frees the reference itself.
    keep->SuppressDestruct();
    return Addon::of(info.Env())
        .async(
            info.Env(), [storage = tensor.storage, target = buffer.Data()] { return copy_contents(storage, target); },
            [keep](Napi::Env, const std::exception_ptr& error) -> Napi::Value {
              const Napi::Value value = keep->Value();
              keep->Reset();
              if (error) std::rethrow_exception(error);
              return value;
            });
  });
}

void check_synchronous(size_t bytes) {
  if (bytes > kSynchronousBytes)
    throw Error(ErrorCode::kArgument, "tensor", "at most 1 MiB at once on the event loop",
                std::to_string(bytes) + " bytes");
}

Napi::Value tensor_data_sync(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Tensor tensor = tensor_argument(info[0], "tensor");
    check_synchronous(tensor.storage->size());
    auto buffer = Napi::ArrayBuffer::New(info.Env(), tensor.storage->size());
    const Storage::Pin pin(tensor.storage);
    if (tensor.storage->size() != 0) std::memcpy(buffer.Data(), pin.data(), tensor.storage->size());
    return buffer;
  });
}

Napi::Value tensor_write(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Tensor tensor = tensor_argument(info[0], "tensor");
    const auto bytes = bytes_argument(info[1], "data");
    check_synchronous(tensor.storage->size());
    if (bytes.size() != tensor.storage->size())
      throw Error(ErrorCode::kShape, "data", std::to_string(tensor.storage->size()) + " bytes",
                  std::to_string(bytes.size()));
    if (!bytes.empty()) std::memcpy(tensor.storage->mutable_data(), bytes.data(), bytes.size());
    return info.Env().Undefined();
  });
}

RowWrite row_write_argument(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "writeRows");
  RowWrite write;
  write.target = tensor_argument(object.Get("target"), "writeRows.target");
  write.first = size_argument(object.Get("first"), "writeRows.first");
  write.count = size_argument(object.Get("count"), "writeRows.count");
  if (const Napi::Value source = object.Get("source"); !source.IsUndefined())
    write.source = tensor_argument(source, "writeRows.source");
  write.transposed = object.Get("transposed").ToBoolean();
  if (const Napi::Value scale = object.Get("scale"); !scale.IsUndefined()) {
    if (!scale.IsNumber()) reject_argument("writeRows.scale", "a number", scale);
    write.scale = scale.As<Napi::Number>().FloatValue();
  }
  check_row_write(write);
  return write;
}

/// writeRows(writes)
Napi::Value tensor_write_rows(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    if (!info[0].IsArray()) reject_argument("writeRows", "an array of writes", info[0]);
    const auto array = info[0].As<Napi::Array>();
    std::vector<RowWrite> writes;
    for (uint32_t i = 0; i < array.Length(); ++i) writes.push_back(row_write_argument(array.Get(i)));
    return Addon::of(info.Env())
        .async(
            info.Env(),
            [writes = std::move(writes)] {
              write_rows(writes);
              return true;
            },
            [](Napi::Env env, bool) { return env.Undefined(); });
  });
}

}  // namespace

Tensor tensor_argument(const Napi::Value& value, const std::string& place) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTensorTag))
    reject_argument(place, "a native tensor", value);
  Tensor tensor = NativeTensor::Unwrap(value.As<Napi::Object>())->tensor();
  if (!tensor.storage) throw Error(ErrorCode::kArgument, place, "a live tensor", "a disposed one");
  return tensor;
}

Napi::Object Addon::wrap(Napi::Env, Tensor tensor) {
  constructing = &tensor;
  return tensor_class.New({});
}

void define_tensor(Napi::Env env, Addon& addon, Napi::Object exports) {
  addon.tensor_class = Napi::Persistent(NativeTensor::define(env));
  exports.Set("NativeTensor", addon.tensor_class.Value());
  exports.Set("tensorFromData", Napi::Function::New<tensor_from_data>(env, "tensorFromData"));
  exports.Set("tensorZeros", Napi::Function::New<tensor_zeros>(env, "tensorZeros"));
  exports.Set("tensorData", Napi::Function::New<tensor_data>(env, "tensorData"));
  exports.Set("tensorDataSync", Napi::Function::New<tensor_data_sync>(env, "tensorDataSync"));
  exports.Set("tensorWrite", Napi::Function::New<tensor_write>(env, "tensorWrite"));
  exports.Set("writeRows", Napi::Function::New<tensor_write_rows>(env, "writeRows"));
}

}  // namespace heddle
