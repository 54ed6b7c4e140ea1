#include "io/block_formats.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "io/block_kernels.h"

namespace heddle {

namespace {

/// Kernels read any element type at this alignment.
constexpr size_t kViewAlignment = 8;
/// Elements decoded at a time where rows keep their order; whole blocks of every encoding.
constexpr size_t kRun = 4096;

bool is_own(const FileTensor& wanted) {
  return is_dense(wanted.encoding) && dense_dtype(wanted.encoding) == wanted.dtype;
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

  void decode(std::span<std::byte> out) const { decode_runs(0, wanted.shape.count(), out.data()); }

  /// Elements [first, last), both at the start of a run or the end of the tensor.
  void decode_runs(size_t first, size_t last, std::byte* out) const {
    const size_t element = dtype_size(wanted.dtype);
    const bool as_is = is_own(wanted);
    std::vector<float> floats(wanted.dtype == DType::kBF16 && !as_is ? run : 0);
    for (size_t begin = first, index = first / run; begin < last; begin += run, ++index) {
      const size_t length = std::min(run, last - begin);
      const std::byte* const from = bytes.data() + run_in_file(index) * run_bytes;
      std::byte* const to = out + (begin - first) * element;
      if (as_is) {
        std::memcpy(to, from, length * element);
      } else if (wanted.dtype == DType::kF32) {
        decode_floats(wanted.encoding, from, reinterpret_cast<float*>(to), length);
      } else {
        decode_floats(wanted.encoding, from, floats.data(), length);
        round_to_bf16(floats.data(), reinterpret_cast<uint16_t*>(to), length);
      }
    }
  }
};

/// A matrix of blocks, row by row.
class BlockRows : public EncodedRows {
 public:
  explicit BlockRows(Source source) : source_(std::move(source)) {}

  std::string_view encoding() const override { return encoding_name(source_.wanted.encoding); }
  size_t columns() const override { return source_.run; }
  const std::byte* row(size_t index) const override {
    return source_.bytes.data() + source_.run_in_file(index) * source_.run_bytes;
  }
  void decode_row(size_t index, std::byte* out) const override {
    source_.decode_runs(index * source_.run, (index + 1) * source_.run, out);
  }
  void drop_pages() const noexcept override { drop_file_pages(source_.bytes); }

 private:
  Source source_;
};

void check(const FileTensor& wanted, const std::string& place) {
  const bool convertible = is_float(wanted.encoding) && (wanted.dtype == DType::kF32 || wanted.dtype == DType::kBF16);
  if (!is_own(wanted) && !convertible)
    throw Error(ErrorCode::kDtype, place,
                std::string("f32, bf16 or the file's own type for ") + encoding_name(wanted.encoding),
                dtype_name(wanted.dtype));
  const size_t block = block_elements(wanted.encoding);
  if (block != 1 && (wanted.shape.rank() == 0 || wanted.shape.back(0) % static_cast<int64_t>(block) != 0))
    throw Error(ErrorCode::kShape, place, "a last dimension in blocks of " + std::to_string(block), wanted.shape.str());
  if (wanted.interleaved_heads == 0) return;
  const size_t heads = wanted.interleaved_heads;
  const size_t rank = wanted.shape.rank();
  const size_t rows = rank == 0 ? 0 : static_cast<size_t>(wanted.shape[0]);
  if (rank < 1 || rank > 2 || (rank == 1 && block != 1) || heads > rows || rows % heads != 0 || rows / heads % 2 != 0)
    throw Error(ErrorCode::kShape, place, "rows in " + std::to_string(heads) + " heads of an even size",
                wanted.shape.str());
}

}  // namespace

Tensor tensor_from_file(std::shared_ptr<const MappedFile> file, const FileTensor& wanted) {
  const std::string place = file->path() + " at byte " + std::to_string(wanted.offset);
  check(wanted, place);
  const size_t count = wanted.shape.count();
  const auto bytes = file->slice(wanted.offset, encoded_bytes(wanted.encoding, count, place));
  const bool aligned = reinterpret_cast<uintptr_t>(bytes.data()) % kViewAlignment == 0;
  if (is_own(wanted) && aligned && wanted.interleaved_heads == 0)
    return {wanted.dtype, wanted.shape, Storage::view(bytes, std::move(file))};

  Source source{std::move(file), bytes, wanted};
  const bool by_rows = !is_dense(wanted.encoding) && wanted.shape.rank() == 2;
  if (by_rows || (wanted.interleaved_heads != 0 && wanted.shape.rank() == 2))
    source.run = static_cast<size_t>(wanted.shape[1]);
  else
    source.run = wanted.interleaved_heads == 0 ? kRun : 1;
  source.run_bytes = encoded_bytes(wanted.encoding, source.run, place);
  const size_t size = wanted.shape.bytes(wanted.dtype);
  auto rows = by_rows ? std::make_shared<const BlockRows>(source) : nullptr;
  const auto decode = [source = std::move(source)](std::span<std::byte> out) {
    source.decode(out);
    drop_file_pages(source.bytes);
  };
  return {wanted.dtype, wanted.shape, Storage::decoded(size, decode, std::move(rows))};
}

}  // namespace heddle
