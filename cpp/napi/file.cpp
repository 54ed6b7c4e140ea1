#include <cstring>

#include "core/status.h"
#include "io/block_formats.h"
#include "io/mapped_file.h"
#include "io/safetensors_writer.h"
#include "io/tensor_writer.h"
#include "napi/classes.h"

namespace heddle {

namespace {

constexpr size_t kMaxRead = size_t{64} << 20;

float addend_argument(const Napi::Object& options) {
  const Napi::Value addend = options.Get("addend");
  if (addend.IsUndefined()) return 0;
  if (!addend.IsNumber()) reject_argument("addend", "a number", addend);
  return addend.As<Napi::Number>().FloatValue();
}

class NativeFile : public Napi::ObjectWrap<NativeFile> {
 public:
  using File = std::shared_ptr<const MappedFile>;

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeFile",
                       {InstanceAccessor<&NativeFile::size>("size"), InstanceMethod<&NativeFile::read>("read"),
                        InstanceMethod<&NativeFile::tensor>("tensor"), InstanceMethod<&NativeFile::close>("close")});
  }

  explicit NativeFile(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    auto* const file = static_cast<File*>(std::exchange(Addon::of(info.Env()).constructing, nullptr));
    if (file == nullptr) throw Napi::TypeError::New(info.Env(), "NativeFile cannot be constructed");
    file_ = std::move(*file);
  }

 private:
  Napi::Value size(const Napi::CallbackInfo& info) {
    return guarded(info.Env(),
                   [&] { return Napi::Number::New(info.Env(), static_cast<double>(live()->bytes().size())); });
  }

  Napi::Value read(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const size_t offset = size_argument(info[0], "offset");
      const size_t length = size_argument(info[1], "length");
      if (length > kMaxRead)
        throw Error(ErrorCode::kArgument, "length", "at most 64 MiB at once", std::to_string(length) + " bytes");
      const auto bytes = live()->slice(offset, length);
      auto buffer = Napi::ArrayBuffer::New(info.Env(), length);
      if (length != 0) std::memcpy(buffer.Data(), bytes.data(), length);
      return buffer;
    });
  }

  Napi::Value tensor(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const Napi::Object options = object_argument(info[0], "options");
      FileTensor wanted;
      wanted.encoding = encoding_from_name(string_argument(options.Get("encoding"), "encoding"));
      wanted.dtype = dtype_argument(options.Get("dtype"), "dtype");
      wanted.shape = shape_argument(options.Get("shape"), "shape");
      wanted.offset = size_argument(options.Get("offset"), "offset");
      const Napi::Value heads = options.Get("interleavedHeads");
      if (!heads.IsUndefined()) wanted.interleaved_heads = size_argument(heads, "interleavedHeads");
      wanted.addend = addend_argument(options);
      return Addon::of(info.Env()).wrap(info.Env(), tensor_from_file(live(), wanted));
    });
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    file_.reset();
    return info.Env().Undefined();
  }

  const File& live() const {
    if (!file_) throw Error(ErrorCode::kArgument, "file", "an open file", "a closed one");
    return file_;
  }

  File file_;
};

Napi::Value open_file(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return Addon::of(info.Env())
        .async(
            info.Env(), [path = string_argument(info[0], "path")] { return MappedFile::open(path); },
            [](Napi::Env env, NativeFile::File file) -> Napi::Value {
              Addon::of(env).constructing = &file;
              return Addon::of(env).file_class.New({});
            });
  });
}

SafetensorsEntry entry_argument(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "entry");
  SafetensorsEntry entry;
  entry.name = string_argument(object.Get("name"), "entry name");
  entry.tensor = tensor_argument(object.Get("tensor"), entry.name);
  const Napi::Value dtype = object.Get("dtype");
  if (!dtype.IsUndefined()) entry.dtype = dtype_argument(dtype, entry.name);
  return entry;
}

std::vector<std::pair<std::string, std::string>> metadata_argument(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "metadata");
  const Napi::Array keys = object.GetPropertyNames();
  std::vector<std::pair<std::string, std::string>> metadata;
  for (uint32_t i = 0; i < keys.Length(); ++i) {
    std::string key = string_argument(keys.Get(i), "metadata key");
    std::string text = string_argument(object.Get(key), "metadata " + key);
    metadata.emplace_back(std::move(key), std::move(text));
  }
  return metadata;
}

Napi::Value write_safetensors_file(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    if (!info[1].IsArray()) reject_argument("entries", "an array", info[1]);
    const auto array = info[1].As<Napi::Array>();
    std::vector<SafetensorsEntry> entries;
    for (uint32_t i = 0; i < array.Length(); ++i) entries.push_back(entry_argument(array.Get(i)));
    return Addon::of(info.Env())
        .async(
            info.Env(),
            [path = string_argument(info[0], "path"), entries = std::move(entries),
             metadata = metadata_argument(info[2])] {
              write_safetensors(path, entries, metadata);
              return true;
            },
            [](Napi::Env env, bool) { return env.Undefined(); });
  });
}

TensorEntry tensor_entry_argument(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "entry");
  TensorEntry entry;
  entry.name = string_argument(object.Get("name"), "entry name");
  entry.tensor = tensor_argument(object.Get("tensor"), entry.name);
  entry.encoding = encoding_from_name(string_argument(object.Get("encoding"), entry.name));
  const Napi::Value heads = object.Get("interleavedHeads");
  if (!heads.IsUndefined()) entry.interleaved_heads = size_argument(heads, "interleavedHeads");
  entry.addend = addend_argument(object);
  return entry;
}

Napi::Value write_tensor_file_call(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    if (!info[1].IsTypedArray()) reject_argument("head", "a Uint8Array", info[1]);
    const auto view = info[1].As<Napi::Uint8Array>();
    const auto* const begin = reinterpret_cast<const std::byte*>(view.Data());
    std::vector<std::byte> head(begin, begin + view.ByteLength());
    const size_t alignment = size_argument(info[2], "alignment");
    if (alignment == 0 || alignment > (size_t{1} << 20)) reject_argument("alignment", "1 to 2^20", info[2]);
    if (!info[3].IsArray()) reject_argument("entries", "an array", info[3]);
    const auto array = info[3].As<Napi::Array>();
    std::vector<TensorEntry> entries;
    for (uint32_t i = 0; i < array.Length(); ++i) entries.push_back(tensor_entry_argument(array.Get(i)));
    return Addon::of(info.Env())
        .async(
            info.Env(),
            [path = string_argument(info[0], "path"), head = std::move(head), alignment, entries = std::move(entries)] {
              write_tensor_file(path, head, alignment, entries);
              return true;
            },
            [](Napi::Env env, bool) { return env.Undefined(); });
  });
}

}  // namespace

void define_file(Napi::Env env, Addon& addon, Napi::Object exports) {
  addon.file_class = Napi::Persistent(NativeFile::define(env));
  exports.Set("NativeFile", addon.file_class.Value());
  exports.Set("openFile", Napi::Function::New<open_file>(env, "openFile"));
  exports.Set("writeSafetensors", Napi::Function::New<write_safetensors_file>(env, "writeSafetensors"));
  exports.Set("writeTensorFile", Napi::Function::New<write_tensor_file_call>(env, "writeTensorFile"));
}

}  // namespace heddle
