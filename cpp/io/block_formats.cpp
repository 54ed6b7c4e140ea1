#include "io/block_formats.h"

#include <array>
#include <cstring>
#include <utility>
#include <vector>

namespace heddle {

namespace {

constexpr size_t kBlock = 32;
/// Kernels read any element type at this alignment.
constexpr size_t kViewAlignment = 8;

constexpr std::array<const char*, 11> kNames = {"f32", "f64", "bf16", "f16",  "i32", "i64",
                                                "u8",  "u32", "q4_0", "q4_1", "q8_0"};

bool is_dense(Encoding encoding) { return encoding < Encoding::kQ4_0; }

DType dense_dtype(Encoding encoding) { return static_cast<DType>(encoding); }

size_t block_bytes(Encoding encoding) {
  switch (encoding) {
    case Encoding::kQ4_0: return 18;
    case Encoding::kQ4_1: return 20;
    default: return 34;
  }
}

bool is_float(Encoding encoding) {
  switch (encoding) {
    case Encoding::kI32:
    case Encoding::kI64:
    case Encoding::kU8:
    case Encoding::kU32: return false;
    default: return true;
  }
}

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float half_at(const std::byte* from) { return f16_to_f32(read<uint16_t>(from)); }

void decode_q4_0(const std::byte* block, float* out) {
  const float scale = half_at(block);
  for (size_t i = 0; i < kBlock / 2; ++i) {
    const auto both = static_cast<uint8_t>(block[2 + i]);
    out[i] = static_cast<float>((both & 15) - 8) * scale;
    out[i + kBlock / 2] = static_cast<float>((both >> 4) - 8) * scale;
  }
}

void decode_q4_1(const std::byte* block, float* out) {
  const float scale = half_at(block);
  const float minimum = half_at(block + 2);
  for (size_t i = 0; i < kBlock / 2; ++i) {
    const auto both = static_cast<uint8_t>(block[4 + i]);
    out[i] = static_cast<float>(both & 15) * scale + minimum;
    out[i + kBlock / 2] = static_cast<float>(both >> 4) * scale + minimum;
  }
}

void decode_q8_0(const std::byte* block, float* out) {
  const float scale = half_at(block);
  for (size_t i = 0; i < kBlock; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * scale;
}

/// `count` elements from `from`; whole blocks where the encoding has blocks.
void decode_run(Encoding encoding, const std::byte* from, float* out, size_t count) {
  switch (encoding) {
    case Encoding::kF32: std::memcpy(out, from, count * sizeof(float)); return;
    case Encoding::kF64:
      for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(read<double>(from + i * 8));
      return;
    case Encoding::kBF16:
      for (size_t i = 0; i < count; ++i) out[i] = bf16_to_f32(read<uint16_t>(from + i * 2));
      return;
    case Encoding::kF16:
      for (size_t i = 0; i < count; ++i) out[i] = half_at(from + i * 2);
      return;
    case Encoding::kQ4_0:
      for (size_t i = 0; i < count; i += kBlock) decode_q4_0(from + i / kBlock * 18, out + i);
      return;
    case Encoding::kQ4_1:
      for (size_t i = 0; i < count; i += kBlock) decode_q4_1(from + i / kBlock * 20, out + i);
      return;
    case Encoding::kQ8_0:
      for (size_t i = 0; i < count; i += kBlock) decode_q8_0(from + i / kBlock * 34, out + i);
      return;
    default: return;
  }
}

/// Everything that decoding needs, by value, for it happens later and perhaps again.
struct Source {
  std::shared_ptr<const MappedFile> file;
  std::span<const std::byte> bytes;
  FileTensor wanted;
  /// Runs of elements: rows where rows are reordered, else pieces of a size that stays in the cache.
  size_t run = 0;
  size_t run_bytes = 0;

  /// Which run of the file holds run `index` of the tensor: element (half, j) of a head is at (j, half) there.
  size_t run_in_file(size_t index) const {
    if (wanted.interleaved_heads == 0) return index;
    const size_t head_rows = static_cast<size_t>(wanted.shape[0]) / wanted.interleaved_heads;
    const size_t row = index % head_rows;
    const size_t half = row / (head_rows / 2);
    return index - row + 2 * (row % (head_rows / 2)) + half;
  }

  void decode(std::span<std::byte> out) const {
    const size_t element = dtype_size(wanted.dtype);
    const size_t count = wanted.shape.count();
    const bool as_is = is_dense(wanted.encoding) && dense_dtype(wanted.encoding) == wanted.dtype;
    std::vector<float> floats(wanted.dtype == DType::kBF16 && !as_is ? run : 0);
    for (size_t begin = 0, index = 0; begin < count; begin += run, ++index) {
      const size_t length = std::min(run, count - begin);
      const std::byte* const from = bytes.data() + run_in_file(index) * run_bytes;
      std::byte* const to = out.data() + begin * element;
      if (as_is) {
        std::memcpy(to, from, length * element);
      } else if (wanted.dtype == DType::kF32) {
        decode_run(wanted.encoding, from, reinterpret_cast<float*>(to), length);
      } else {
        decode_run(wanted.encoding, from, floats.data(), length);
        auto* const halves = reinterpret_cast<uint16_t*>(to);
        for (size_t i = 0; i < length; ++i) halves[i] = f32_to_bf16(floats[i]);
      }
    }
  }
};

size_t bytes_in_file(Encoding encoding, size_t count, const std::string& place) {
  if (is_dense(encoding)) return checked_mul(count, dtype_size(dense_dtype(encoding)), place.c_str());
  return checked_mul(count / kBlock, block_bytes(encoding), place.c_str());
}

void check(const FileTensor& wanted, const std::string& place) {
  const bool own = is_dense(wanted.encoding) && dense_dtype(wanted.encoding) == wanted.dtype;
  const bool convertible = is_float(wanted.encoding) && (wanted.dtype == DType::kF32 || wanted.dtype == DType::kBF16);
  if (!own && !convertible)
    throw Error(ErrorCode::kDtype, place,
                std::string("f32, bf16 or the file's own type for ") + kNames[static_cast<size_t>(wanted.encoding)],
                dtype_name(wanted.dtype));
  if (!is_dense(wanted.encoding) &&
      (wanted.shape.rank() == 0 || wanted.shape.back(0) % static_cast<int64_t>(kBlock) != 0))
    throw Error(ErrorCode::kShape, place, "a last dimension in blocks of 32", wanted.shape.str());
  if (wanted.interleaved_heads == 0) return;
  const bool fits = wanted.shape.rank() == 2 && wanted.interleaved_heads <= static_cast<size_t>(wanted.shape[0]) &&
                    static_cast<size_t>(wanted.shape[0]) % wanted.interleaved_heads == 0 &&
                    static_cast<size_t>(wanted.shape[0]) / wanted.interleaved_heads % 2 == 0;
  if (!fits)
    throw Error(ErrorCode::kShape, place,
                "rows in " + std::to_string(wanted.interleaved_heads) + " heads of an even size", wanted.shape.str());
}

}  // namespace

Encoding encoding_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<Encoding>(i);
  throw Error(ErrorCode::kFormat, "encoding", "f32, f64, bf16, f16, i32, i64, u8, u32, q4_0, q4_1 or q8_0",
              std::string(name));
}

Tensor tensor_from_file(std::shared_ptr<const MappedFile> file, const FileTensor& wanted) {
  const std::string place = file->path() + " at byte " + std::to_string(wanted.offset);
  check(wanted, place);
  const size_t count = wanted.shape.count();
  const auto bytes = file->slice(wanted.offset, bytes_in_file(wanted.encoding, count, place));
  const bool own = is_dense(wanted.encoding) && dense_dtype(wanted.encoding) == wanted.dtype;
  const bool aligned = reinterpret_cast<uintptr_t>(bytes.data()) % kViewAlignment == 0;
  if (own && aligned && wanted.interleaved_heads == 0)
    return {wanted.dtype, wanted.shape, Storage::view(bytes, std::move(file))};

  Source source{std::move(file), bytes, wanted};
  source.run = wanted.interleaved_heads != 0 ? static_cast<size_t>(wanted.shape[1]) : 4096;
  source.run_bytes = bytes_in_file(wanted.encoding, source.run, place);
  const size_t size = wanted.shape.bytes(wanted.dtype);
  return {wanted.dtype, wanted.shape, Storage::decoded(size, [source = std::move(source)](std::span<std::byte> out) {
            source.decode(out);
            drop_file_pages(source.bytes);
          })};
}

}  // namespace heddle
