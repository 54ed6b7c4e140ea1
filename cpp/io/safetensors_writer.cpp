#include "io/safetensors_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>
#include <string_view>
#include <system_error>

namespace heddle {

namespace {

constexpr size_t kChunk = size_t{1} << 18;

[[noreturn]] void fail(const std::string& path, const char* expected) {
  throw Error(ErrorCode::kIo, path, expected, std::generic_category().message(errno));
}

/// A file beside the target that disappears unless it is committed.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path) : path_(path) {
    // Named after process and call, so that two writers of one path do not mix their bytes.
    static std::atomic<unsigned> counter{0};
    temporary_ = path + "." + std::to_string(getpid()) + "-" + std::to_string(counter++) + ".tmp";
    file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ < 0) fail(path, "a place to write a file");
  }
  ~AtomicFile() {
    if (file_ >= 0) close(file_);
    if (!committed_) unlink(temporary_.c_str());
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size) {
    const char* from = static_cast<const char*>(data);
    while (size != 0) {
      const ssize_t written = ::write(file_, from, std::min(size, size_t{1} << 30));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail(path_, "room for the file");
      from += written;
      size -= static_cast<size_t>(written);
    }
  }

  void commit() {
    if (fsync(file_) != 0) fail(path_, "a file on the disk");
    const int file = std::exchange(file_, -1);
    if (close(file) != 0) fail(path_, "a file on the disk");
    if (rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "a path that can be replaced");
    committed_ = true;
    sync_folder();
  }

 private:
  /// The rename itself lasts only when the folder is on the disk; some file systems cannot sync one, and that is fine.
  void sync_folder() const {
    const size_t slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    const int file = open(folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    fsync(file);
    close(file);
  }

  const std::string& path_;
  std::string temporary_;
  int file_ = -1;
  bool committed_ = false;
};

std::string json_string(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    switch (c) {
      case '"': json += "\\\""; break;
      case '\\': json += "\\\\"; break;
      case '\b': json += "\\b"; break;
      case '\f': json += "\\f"; break;
      case '\n': json += "\\n"; break;
      case '\r': json += "\\r"; break;
      case '\t': json += "\\t"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          char escape[8];
          std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
          json += escape;
        } else {
          json += c;
        }
    }
  }
  return json + "\"";
}

const char* format_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kF64: return "F64";
    case DType::kBF16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kI32: return "I32";
    case DType::kI64: return "I64";
    case DType::kU8: return "U8";
    case DType::kU32: return "U32";
  }
  return "";
}

/// The reference library lays tensors out by descending position of their type in its own enumeration.
int reference_rank(DType dtype) {
  switch (dtype) {
    case DType::kU8: return 0;
    case DType::kF16: return 1;
    case DType::kBF16: return 2;
    case DType::kI32: return 3;
    case DType::kU32: return 4;
    case DType::kF32: return 5;
    case DType::kF64: return 6;
    case DType::kI64: return 7;
  }
  return 0;
}

DType stored_dtype(const SafetensorsEntry& entry) { return entry.dtype.value_or(entry.tensor.dtype); }

bool is_convertible(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16; }

void check(const std::vector<SafetensorsEntry>& entries) {
  std::set<std::string_view> names;
  for (const SafetensorsEntry& entry : entries) {
    const bool twice = !names.insert(entry.name).second;
    if (twice || entry.name == "__metadata__")
      throw Error(ErrorCode::kArgument, entry.name, "a name of its own", twice ? "one used twice" : "a reserved name");
    const DType from = entry.tensor.dtype;
    const DType to = stored_dtype(entry);
    if (from != to && !(is_convertible(from) && is_convertible(to)))
      throw Error(ErrorCode::kDtype, entry.name, "f32, bf16 or f16 to convert",
                  std::string(dtype_name(from)) + " to " + dtype_name(to));
  }
}

std::string header_of(const std::vector<SafetensorsEntry>& entries,
                      const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) json += json_string(key) + ":" + json_string(value) + ",";
    json.back() = '}';
    json += ",";
  }
  size_t begin = 0;
  for (const SafetensorsEntry& entry : entries) {
    const DType dtype = stored_dtype(entry);
    const size_t end = checked_add(begin, entry.tensor.shape.bytes(dtype), "safetensors");
    json += json_string(entry.name) + ":{\"dtype\":\"" + format_name(dtype) + "\",\"shape\":[";
    const auto dims = entry.tensor.shape.dims();
    for (size_t axis = 0; axis < dims.size(); ++axis) json += (axis != 0 ? "," : "") + std::to_string(dims[axis]);
    json += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]},";
    begin = end;
  }
  if (json.back() == ',') json.pop_back();
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  return json;
}

float to_f32(DType dtype, const std::byte* from, size_t index) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, from + index * sizeof value, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from + index * sizeof bits, sizeof bits);
  return dtype == DType::kBF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

void write_converted(AtomicFile& file, const Tensor& tensor, const std::byte* from, DType to) {
  const size_t count = tensor.shape.count();
  std::vector<float> floats(to == DType::kF32 ? std::min(kChunk, count) : 0);
  std::vector<uint16_t> halves(to == DType::kF32 ? 0 : std::min(kChunk, count));
  for (size_t begin = 0; begin < count; begin += kChunk) {
    const size_t length = std::min(kChunk, count - begin);
    for (size_t i = 0; i < length; ++i) {
      const float value = to_f32(tensor.dtype, from, begin + i);
      if (to == DType::kF32)
        floats[i] = value;
      else
        halves[i] = to == DType::kBF16 ? f32_to_bf16(value) : f32_to_f16(value);
    }
    if (to == DType::kF32)
      file.write(floats.data(), length * sizeof(float));
    else
      file.write(halves.data(), length * sizeof(uint16_t));
  }
}

}  // namespace

void write_safetensors(const std::string& path, std::vector<SafetensorsEntry> entries,
                       const std::vector<std::pair<std::string, std::string>>& metadata) {
  check(entries);
  std::ranges::sort(entries, [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    const int rank_a = reference_rank(stored_dtype(a));
    const int rank_b = reference_rank(stored_dtype(b));
    return rank_a != rank_b ? rank_a > rank_b : a.name < b.name;
  });
  const std::string header = header_of(entries, metadata);

  AtomicFile file(path);
  const uint64_t length = header.size();
  file.write(&length, sizeof length);
  file.write(header.data(), header.size());
  for (const SafetensorsEntry& entry : entries) {
    const DType dtype = stored_dtype(entry);
    const bool was_resident = entry.tensor.storage->resident() != 0;
    {
      const Storage::Pin pin(entry.tensor.storage);
      if (dtype == entry.tensor.dtype)
        file.write(pin.data(), entry.tensor.storage->size());
      else
        write_converted(file, entry.tensor, pin.data(), dtype);
    }
    // A whole model passes through here: what was decoded only for this does not stay.
    if (!was_resident) entry.tensor.storage->evict();
  }
  file.commit();
}

}  // namespace heddle
