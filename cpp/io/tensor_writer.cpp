#include "io/tensor_writer.h"

#include <algorithm>
#include <cmath>

#include "io/block_kernels.h"

namespace heddle {

namespace {

constexpr size_t kPiece = size_t{1} << 18;

/// Elements that a decoder can begin at a multiple of.
constexpr size_t kVectorRun = 4096;

bool is_convertible(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16; }

bool is_own(const TensorEntry& entry) {
  return is_dense(entry.encoding) && dense_dtype(entry.encoding) == entry.tensor.dtype && entry.addend == 0;
}

void check(const TensorEntry& entry) {
  const auto& [name, tensor, encoding, interleaved_heads, addend] = entry;
  const bool own = is_own(entry);
  const bool target = encoding == Encoding::kQ8_0 || (is_dense(encoding) && is_convertible(dense_dtype(encoding)));
  if (!own && !(target && is_convertible(tensor.dtype)))
    throw Error(ErrorCode::kDtype, name, "f32, bf16 or f16 to convert",
                std::string(dtype_name(tensor.dtype)) + " to " + encoding_name(encoding));
  const size_t rank = tensor.shape.rank();
  const auto block = static_cast<int64_t>(block_elements(encoding));
  if (block != 1 && (rank == 0 || tensor.shape.back(0) % block != 0))
    throw Error(ErrorCode::kShape, name, "a last dimension in blocks of " + std::to_string(block), tensor.shape.str());
  if (interleaved_heads == 0) return;
  const size_t rows = rank == 0 ? 0 : static_cast<size_t>(tensor.shape[0]);
  if (rank < 1 || rank > 2 || rows % interleaved_heads != 0 || rows / interleaved_heads % 2 != 0)
    throw Error(ErrorCode::kShape, name, "rows in " + std::to_string(interleaved_heads) + " heads of an even size",
                tensor.shape.str());
}

/// Elements of a tensor in the order of the file.
class Reader {
 public:
  Reader(const Tensor& tensor, size_t interleaved_heads) : tensor_(tensor), element_(dtype_size(tensor.dtype)) {
    const size_t rank = tensor.shape.rank();
    width_ = rank >= 2 ? static_cast<size_t>(tensor.shape.back(0)) : kVectorRun;
    if (interleaved_heads == 0) return;
    if (rank == 1) width_ = 1;
    head_rows_ = static_cast<size_t>(tensor.shape[0]) / interleaved_heads;
  }

  /// Elements that are read at a time.
  size_t piece() const { return std::max<size_t>(1, kPiece / std::max<size_t>(1, width_)) * width_; }

  void read(size_t begin, std::span<std::byte> out) const {
    if (head_rows_ == 0) {
      tensor_.storage->read(begin * element_, out);
      return;
    }
    const size_t row_bytes = width_ * element_;
    for (size_t at = 0; at < out.size(); at += row_bytes)
      tensor_.storage->read(row_in_tensor(begin / width_ + at / row_bytes) * row_bytes, out.subspan(at, row_bytes));
  }

 private:
  /// Row (j, half) of a head in the file is row (half, j) of the tensor.
  size_t row_in_tensor(size_t row) const {
    const size_t in_head = row % head_rows_;
    return row - in_head + in_head % 2 * (head_rows_ / 2) + in_head / 2;
  }

  const Tensor& tensor_;
  size_t element_;
  size_t width_ = 1;
  size_t head_rows_ = 0;
};

void require_finite(const std::string& name, std::span<const float> values) {
  const auto found = std::ranges::find_if(values, [](float value) { return !std::isfinite(value); });
  if (found != values.end())
    throw Error(ErrorCode::kArgument, name, "finite numbers to quantise", std::to_string(*found));
}

}  // namespace

void write_tensor(AtomicFile& file, const TensorEntry& entry) {
  check(entry);
  const auto& [name, tensor, encoding, interleaved_heads, addend] = entry;
  const bool as_is = is_own(entry);
  const size_t count = tensor.shape.count();
  const size_t element = dtype_size(tensor.dtype);
  const Reader reader(tensor, interleaved_heads);
  const size_t piece = std::min(reader.piece(), count);
  std::vector<std::byte> raw(checked_mul(piece, element, name.c_str()));
  std::vector<float> floats(as_is ? 0 : piece);
  std::vector<std::byte> encoded(as_is ? 0 : encoded_bytes(encoding, piece, name));
  for (size_t begin = 0; begin < count; begin += piece) {
    const size_t length = std::min(piece, count - begin);
    const std::span<std::byte> bytes(raw.data(), length * element);
    reader.read(begin, bytes);
    if (as_is) {
      file.write(bytes.data(), bytes.size());
      continue;
    }
    decode_floats(static_cast<Encoding>(tensor.dtype), bytes.data(), floats.data(), length);
    add_to_each({floats.data(), length}, addend);
    if (!is_dense(encoding)) require_finite(name, {floats.data(), length});
    encode_floats(encoding, floats.data(), encoded.data(), length);
    file.write(encoded.data(), encoded_bytes(encoding, length, name));
  }
  // A whole model passes through here: pages of its file do not stay.
  if (tensor.storage->resident() == 0) tensor.storage->evict();
}

void write_tensor_file(const std::string& path, std::span<const std::byte> head, size_t alignment,
                       const std::vector<TensorEntry>& entries) {
  for (const TensorEntry& entry : entries) check(entry);
  AtomicFile file(path);
  file.write(head.data(), head.size());
  for (const TensorEntry& entry : entries) {
    file.pad(alignment);
    write_tensor(file, entry);
  }
  file.pad(alignment);
  file.commit();
}

}  // namespace heddle
