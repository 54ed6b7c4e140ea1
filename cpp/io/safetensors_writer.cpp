#include "io/safetensors_writer.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <string_view>

#include "io/atomic_file.h"
#include "io/tensor_writer.h"

namespace heddle {

namespace {

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
  for (const SafetensorsEntry& entry : entries)
    write_tensor(file, {entry.name, entry.tensor, static_cast<Encoding>(stored_dtype(entry))});
  file.commit();
}

}  // namespace heddle
