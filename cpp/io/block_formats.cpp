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
  return is_dense(wanted.encoding) && dense_dtype(wanted.encoding) == wanted.dtype && wanted.addend == 0;
}

/// Everything that decoding needs, by value, for it happens later and perhaps again.
struct Source {
  std::shared_ptr<const MappedFile> file;
  std::span<const std::byte> bytes;
  FileTensor wanted;
  /// Elements decoded at a time: a row where rows are reordered, else a piece of a size that stays in the cache.
  size_t run = 0;
  /// Of a row in the file.
  size_t run_bytes = 0;

  /// Where in the file element `index` of the tensor starts: element (half, j) of a head is at (j, half) there.
  size_t bytes_before(size_t index) const {
    if (wanted.interleaved_heads == 0) return index / block_elements(wanted.encoding) * block_bytes(wanted.encoding);
    const size_t head_rows = static_cast<size_t>(wanted.shape[0]) / wanted.interleaved_heads;
    const size_t row = index / run % head_rows;
    const size_t half = row / (head_rows / 2);
    return (index / run - row + 2 * (row % (head_rows / 2)) + half) * run_bytes;
  }

  void decode(size_t first, std::span<std::byte> out) const {
    const size_t element = dtype_size(wanted.dtype);
    const size_t count = out.size() / element;
    const bool as_is = is_own(wanted);
    std::vector<float> floats(wanted.dtype == DType::kBF16 && !as_is ? run : 0);
    for (size_t begin = 0, length = 0; begin < count; begin += length) {
      length = std::min(run, count - begin);
      const std::byte* const from = bytes.data() + bytes_before(first / element + begin);
      std::byte* const to = out.data() + begin * element;
      if (as_is) {
        std::memcpy(to, from, length * element);
      } else if (wanted.dtype == DType::kF32) {
        auto* const numbers = reinterpret_cast<float*>(to);
        decode_floats(wanted.encoding, from, numbers, length);
        add_to_each({numbers, length}, wanted.addend);
      } else {
        decode_floats(wanted.encoding, from, floats.data(), length);
        add_to_each({floats.data(), length}, wanted.addend);
        round_to_bf16(floats.data(), reinterpret_cast<uint16_t*>(to), length);
      }
    }
  }
};

/// A matrix of blocks, or of 16-bit numbers that are decoded to f32, row by row.
class BlockRows : public EncodedRows {
 public:
  explicit BlockRows(Source source) : source_(std::move(source)) {}

  std::string_view encoding() const override { return encoding_name(source_.wanted.encoding); }
  size_t columns() const override { return source_.run; }
  const std::byte* row(size_t index) const override {
    return source_.bytes.data() + source_.bytes_before(index * source_.run);
  }
  void decode_row(size_t index, std::byte* out) const override {
    const size_t row_bytes = source_.run * dtype_size(source_.wanted.dtype);
    source_.decode(index * row_bytes, {out, row_bytes});
  }
  AlignedBuffer planes() const override {
    const BlockPlanes planes = block_planes(source_.wanted.encoding);
    const size_t size = block_bytes(source_.wanted.encoding);
    const size_t blocks = source_.bytes.size() / size;
    AlignedBuffer made(planes.heads_at(blocks) + blocks * planes.head_bytes);
    std::byte* body = made.data();
    std::byte* head = made.data() + planes.heads_at(blocks);
    for (size_t row = 0; row < static_cast<size_t>(source_.wanted.shape[0]); ++row) {
      const std::byte* block = this->row(row);
      if (planes.head_bytes == 0) {
        std::memcpy(body, block, source_.run_bytes);
        body += source_.run_bytes;
        continue;
      }
      for (const std::byte* const end = block + source_.run_bytes; block != end; block += size) {
        std::memcpy(body, block + planes.body_begin, planes.body_bytes);
        std::memcpy(head, block + planes.head_begin, planes.head_bytes);
        body += planes.body_bytes;
        head += planes.head_bytes;
      }
    }
    drop_pages();
    return made;
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
  const bool half = wanted.encoding == Encoding::kBF16 || wanted.encoding == Encoding::kF16;
  const bool by_rows = (!is_dense(wanted.encoding) || (half && wanted.dtype == DType::kF32)) &&
                       wanted.shape.rank() == 2 && wanted.addend == 0;
  if (by_rows || (wanted.interleaved_heads != 0 && wanted.shape.rank() == 2))
    source.run = static_cast<size_t>(wanted.shape[1]);
  else
    source.run = wanted.interleaved_heads == 0 ? kRun : 1;
  source.run_bytes = encoded_bytes(wanted.encoding, source.run, place);
  const size_t size = wanted.shape.bytes(wanted.dtype);
  auto rows = by_rows ? std::make_shared<const BlockRows>(source) : nullptr;
  const auto decode = [source = std::move(source), size](size_t begin, std::span<std::byte> out) {
    source.decode(begin, out);
    // Whoever reads piece by piece has come to the end with the last one.
    if (begin + out.size() == size) drop_file_pages(source.bytes);
  };
  return {wanted.dtype, wanted.shape, Storage::decoded(size, decode, std::move(rows))};
}

}  // namespace heddle
