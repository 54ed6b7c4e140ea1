#include "core/row_writes.h"

#include <cstring>
#include <string>

#include "core/status.h"

namespace heddle {

namespace {

constexpr const char* kPlace = "writeRows";

/// The source as rows of the target: element (row, column) lies at row * row_stride + column * column_stride.
struct SourceRows {
  const float* data = nullptr;
  size_t rows = 0;
  size_t row_stride = 0;
  size_t column_stride = 0;
};

size_t rows_of(const RowWrite& write) {
  return write.source ? static_cast<size_t>(write.source->shape[write.transposed ? 1 : 0]) : 0;
}

void store(float value, float* to) { *to = value; }
void store(float value, uint16_t* to) { *to = f32_to_bf16(value); }

template <class Element>
void fill(const RowWrite& write, const SourceRows& source, size_t width, std::byte* target) {
  auto* const rows = reinterpret_cast<Element*>(target) + write.first * width;
  for (size_t row = 0; row < source.rows; ++row) {
    const float* from = source.data + row * source.row_stride;
    for (size_t column = 0; column < width; ++column, from += source.column_stride)
      store(write.scale * *from, rows + row * width + column);
  }
  // The bits of a zero are zeros in both types.
  std::memset(rows + source.rows * width, 0, (write.count - source.rows) * width * sizeof(Element));
}

void write_one(const RowWrite& write) {
  const auto width = static_cast<size_t>(write.target.shape[1]);
  if (write.count == 0 || width == 0) return;
  std::optional<Storage::Pin> pin;
  SourceRows source;
  if (write.source) {
    pin.emplace(write.source->storage);
    const size_t rows = rows_of(write);
    source = {reinterpret_cast<const float*>(pin->data()), rows, write.transposed ? 1 : width,
              write.transposed ? rows : 1};
  }
  std::byte* const target = write.target.storage->mutable_data();
  if (write.target.dtype == DType::kBF16)
    fill<uint16_t>(write, source, width, target);
  else
    fill<float>(write, source, width, target);
}

}  // namespace

void check_row_write(const RowWrite& write) {
  const Tensor& target = write.target;
  if (target.dtype != DType::kF32 && target.dtype != DType::kBF16)
    throw Error(ErrorCode::kDtype, kPlace, "a target of f32 or bf16", dtype_name(target.dtype));
  if (target.shape.rank() != 2) throw Error(ErrorCode::kShape, kPlace, "a target [rows, width]", target.shape.str());
  if (!target.storage->writable()) throw Error(ErrorCode::kArgument, kPlace, "a writable target", "a view of a file");
  const auto rows = static_cast<size_t>(target.shape[0]);
  if (write.first > rows || write.count > rows - write.first)
    throw Error(ErrorCode::kShape, kPlace, "rows within " + target.shape.str(),
                std::to_string(write.count) + " from row " + std::to_string(write.first) + " on");
  if (!write.source) return;
  const Tensor& source = *write.source;
  if (source.dtype != DType::kF32) throw Error(ErrorCode::kDtype, kPlace, "a source of f32", dtype_name(source.dtype));
  const bool fits = source.shape.rank() == 2 && source.shape[write.transposed ? 0 : 1] == target.shape[1] &&
                    rows_of(write) <= write.count;
  if (!fits)
    throw Error(ErrorCode::kShape, kPlace,
                "at most " + std::to_string(write.count) + (write.transposed ? " columns of " : " rows of ") +
                    std::to_string(target.shape[1]),
                source.shape.str());
}

void write_rows(std::span<const RowWrite> writes) {
  for (const RowWrite& write : writes) write_one(write);
}

}  // namespace heddle
