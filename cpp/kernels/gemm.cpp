#include "kernels/gemm.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include "core/status.h"
#include "core/tile_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/bf16-inl.h"
#include "kernels/onednn.h"

HWY_BEFORE_NAMESPACE();
namespace heddle {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using U = hn::RebindToUnsigned<F>;

void round_row(const float* source, size_t count, uint16_t* target) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  size_t at = 0;
  for (; at + lanes <= count; at += lanes) store_bf16(f, hn::LoadU(f, source + at), target + at);
  for (; at < count; ++at) target[at] = f32_to_bf16(source[at]);
}

void widen_row(const uint16_t* source, size_t count, float* target) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  size_t at = 0;
  for (; at + lanes <= count; at += lanes) hn::StoreU(load_bf16(f, source + at), f, target + at);
  for (; at < count; ++at) target[at] = bf16_to_f32(source[at]);
}

void round_row_in_f32(const float* source, size_t count, float* target) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  size_t at = 0;
  for (; at + lanes <= count; at += lanes) hn::StoreU(round_to_bf16(f, hn::LoadU(f, source + at)), f, target + at);
  for (; at < count; ++at) target[at] = bf16_to_f32(f32_to_bf16(source[at]));
}

template <class From, class To>
void each_row(void (*convert)(const From*, size_t, To*), const void* source, size_t stride, size_t rows, size_t cols,
              void* target) {
  const From* from = static_cast<const From*>(source);
  To* to = static_cast<To*>(target);
  if (stride == cols) return convert(from, rows * cols, to);
  for (size_t row = 0; row < rows; ++row) convert(from + row * stride, cols, to + row * cols);
}

void round_rows(const void* source, size_t stride, size_t rows, size_t cols, void* target) {
  each_row(round_row, source, stride, rows, cols, target);
}

void widen_rows(const void* source, size_t stride, size_t rows, size_t cols, void* target) {
  each_row(widen_row, source, stride, rows, cols, target);
}

/// Whether every number is a bf16 number.
bool all_bf16(const float* values, size_t count) {
  const F f;
  const U u;
  const size_t lanes = hn::Lanes(f);
  auto low = hn::Zero(u);
  size_t at = 0;
  for (; at + lanes <= count; at += lanes) low = hn::Or(low, hn::BitCast(u, hn::LoadU(f, values + at)));
  for (; at < count; ++at) low = hn::Or(low, hn::BitCast(u, hn::Set(f, values[at])));
  return hn::AllTrue(u, hn::Eq(hn::And(low, hn::Set(u, 0xffff)), hn::Zero(u)));
}

void round_rows_in_f32(const void* source, size_t stride, size_t rows, size_t cols, void* target) {
  each_row(round_row_in_f32, source, stride, rows, cols, target);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace heddle
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heddle {
namespace {

HWY_EXPORT(round_rows);
HWY_EXPORT(widen_rows);
HWY_EXPORT(round_rows_in_f32);
HWY_EXPORT(all_bf16);

using dnnl::memory;
using Tag = memory::format_tag;

// Rows at which oneDNN is asked for the layout of a packed matrix; one row must then do with the same.
constexpr int64_t kPackingRows = 256;
constexpr const char* kPlace = "matmul";

memory::data_type library_type(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

/// A slice of columns of a wider matrix.
memory::desc slice_desc(DType dtype, int64_t rows, int64_t cols, bool transposed, int64_t stride) {
  const memory::dims strides = transposed ? memory::dims{1, stride} : memory::dims{stride, 1};
  return {{rows, cols}, library_type(dtype), strides};
}

/// Rows x cols, dense, stored the other way round when `transposed`; with a leading batch dimension if batch > 0.
memory::desc matrix_desc(DType dtype, int64_t batch, int64_t rows, int64_t cols, bool transposed) {
  if (batch == 0) return {{rows, cols}, library_type(dtype), transposed ? Tag::ba : Tag::ab};
  return {{batch, rows, cols}, library_type(dtype), transposed ? Tag::acb : Tag::abc};
}

dnnl::primitive_attr attributes_of(const ProductShape& shape) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (shape.alpha != 1.0F) attributes.set_output_scales(0, {shape.alpha});
  if (shape.accumulate) {
    dnnl::post_ops after;
    after.append_sum(1.0F);
    attributes.set_post_ops(after);
  }
  return attributes;
}

dnnl::matmul::primitive_desc describe(const ProductShape& shape, const memory::desc& b) {
  const int64_t batch = shape.batch == 1 ? 0 : shape.batch;
  const memory::desc a = shape.stride_a != 0
                             ? slice_desc(shape.dtype, shape.m, shape.k, shape.transpose_a, shape.stride_a)
                             : matrix_desc(shape.dtype, batch, shape.m, shape.k, shape.transpose_a);
  const memory::desc y = matrix_desc(DType::kF32, batch, shape.m, shape.n, false);
  if (!shape.bias) return {dnnl::matmul::desc(a, b, y), attributes_of(shape), cpu_engine()};
  const memory::desc bias = matrix_desc(DType::kF32, batch == 0 ? 0 : 1, 1, shape.n, false);
  return {dnnl::matmul::desc(a, b, bias, y), attributes_of(shape), cpu_engine()};
}

bool is_reference(const dnnl::matmul::primitive_desc& made) {
  return std::string_view(made.impl_info_str()).find("ref") != std::string_view::npos;
}

memory::desc any_layout(DType dtype, int64_t k, int64_t n) { return {{k, n}, library_type(dtype), Tag::any}; }

/// The layout that serves many rows best, provided that it serves a single row as well.
memory::desc choose_packed_layout(DType dtype, int64_t k, int64_t n) {
  const ProductShape many{.dtype = dtype, .m = kPackingRows, .n = n, .k = k};
  const memory::desc layout = describe(many, any_layout(dtype, k, n)).weights_desc();
  const ProductShape one{.dtype = dtype, .m = 1, .n = n, .k = k};
  return is_reference(describe(one, layout)) ? matrix_desc(dtype, 0, k, n, false) : layout;
}

memory::desc packed_layout(DType dtype, int64_t k, int64_t n) {
  static std::mutex mutex;
  static std::map<std::tuple<DType, int64_t, int64_t>, memory::desc> known;
  const std::lock_guard lock(mutex);
  const auto [entry, fresh] = known.try_emplace({dtype, k, n});
  if (fresh) entry->second = choose_packed_layout(dtype, k, n);
  return entry->second;
}

memory::desc desc_of_b(const ProductShape& shape) {
  if (shape.packed_b) return packed_layout(shape.dtype, shape.k, shape.n);
  if (shape.stride_b != 0) return slice_desc(shape.dtype, shape.k, shape.n, shape.transpose_b, shape.stride_b);
  const int64_t batch = shape.batch == 1 ? 0 : shape.share_b ? 1 : shape.batch;
  return matrix_desc(shape.dtype, batch, shape.k, shape.n, shape.transpose_b);
}

/// Whether column blocks of the first layout, one behind the other, are what the second layout is.
bool tiles_seamlessly(const memory::desc& block, const memory::desc& whole) {
  const auto& a = block.data.format_desc.blocking;
  const auto& b = whole.data.format_desc.blocking;
  if (a.inner_nblks == 0 || a.inner_nblks != b.inner_nblks) return false;
  for (int i = 0; i < a.inner_nblks; ++i)
    if (a.inner_blks[i] != b.inner_blks[i] || a.inner_idxs[i] != b.inner_idxs[i]) return false;
  // Blocks of columns (axis 1) are the outermost dimension, equally far apart.
  return a.strides[0] == b.strides[0] && a.strides[1] == b.strides[1] && b.strides[1] > b.strides[0];
}

/// Where element (row, column) lies, counted in elements.
size_t element_offset(const memory::desc& layout, std::array<int64_t, 2> at) {
  const auto& blocking = layout.data.format_desc.blocking;
  int64_t offset = 0;
  int64_t inner = 1;
  for (int i = blocking.inner_nblks; i-- > 0;) {
    int64_t& index = at[blocking.inner_idxs[i]];
    offset += index % blocking.inner_blks[i] * inner;
    inner *= blocking.inner_blks[i];
    index /= blocking.inner_blks[i];
  }
  return offset + at[0] * blocking.strides[0] + at[1] * blocking.strides[1];
}

/// Block of the source as it is stored, converted and dense, in `staging`; then reordered into `target`.
void pack_block(const MatrixSource& source, const OperandForm& form, int64_t k0, int64_t n0, int64_t k, int64_t n,
                std::vector<std::byte>& staging, const memory& target) {
  const int64_t stride = source.transposed ? source.k : source.n;
  const int64_t offset = source.transposed ? n0 * stride + k0 : k0 * stride + n0;
  const std::byte* data = static_cast<const std::byte*>(source.data) + offset * dtype_size(source.dtype);
  const int64_t rows = source.transposed ? n : k;
  const int64_t cols = source.transposed ? k : n;
  staging.resize(checked_mul(static_cast<size_t>(rows * cols), dtype_size(form.to), kPlace));
  convert_rows(form, data, stride, rows, cols, staging.data());
  const memory plain = memory_at(matrix_desc(form.to, 0, k, n, source.transposed), staging.data());
  memory destination = target;
  dnnl::reorder(plain, destination).execute(cpu_stream(), const_cast<memory&>(plain), destination);
}

/// Whether all f32 elements of a storage are bf16 numbers; found out once.
bool holds_bf16(const std::shared_ptr<Storage>& storage) {
  const auto found = storage->derived("holds bf16", [&]() -> std::shared_ptr<void> {
    const Storage::Pin pin(storage);
    const auto* values = reinterpret_cast<const float*>(pin.data());
    return std::make_shared<bool>(HWY_DYNAMIC_DISPATCH(all_bf16)(values, storage->size() / sizeof(float)));
  });
  return *std::static_pointer_cast<bool>(found);
}

}  // namespace

Precision precision_from_name(std::string_view name, std::string_view place) {
  if (name == "f32") return Precision::kF32;
  if (name == "bf16" || name == "stored") return Precision::kBF16;
  throw Error(ErrorCode::kArgument, std::string(place), "precision f32, bf16 or stored", std::string(name));
}

DType product_dtype(Precision precision) {
  static const bool kHasBF16 = [] {
    try {
      const ProductShape probe{.dtype = DType::kBF16, .m = 64, .n = 64, .k = 64};
      return !is_reference(describe(probe, any_layout(DType::kBF16, 64, 64)));
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return precision == Precision::kBF16 && kHasBF16 ? DType::kBF16 : DType::kF32;
}

OperandForm OperandForm::of(DType stored, Precision precision) {
  const DType to = product_dtype(precision);
  return {stored, to, precision == Precision::kBF16 && stored == DType::kF32 && to == DType::kF32};
}

void convert_rows(const OperandForm& form, const void* source, size_t stride, size_t rows, size_t cols, void* target) {
  if (!form.converts()) {
    const size_t bytes = cols * dtype_size(form.from);
    const size_t step = stride * dtype_size(form.from);
    const std::byte* from = static_cast<const std::byte*>(source);
    if (stride == cols) return static_cast<void>(std::memcpy(target, from, rows * bytes));
    for (size_t row = 0; row < rows; ++row)
      std::memcpy(static_cast<std::byte*>(target) + row * bytes, from + row * step, bytes);
  } else if (form.round) {
    HWY_DYNAMIC_DISPATCH(round_rows_in_f32)(source, stride, rows, cols, target);
  } else if (form.to == DType::kBF16) {
    HWY_DYNAMIC_DISPATCH(round_rows)(source, stride, rows, cols, target);
  } else {
    HWY_DYNAMIC_DISPATCH(widen_rows)(source, stride, rows, cols, target);
  }
}

std::shared_ptr<const Product> Product::get(const ProductShape& shape) {
  static std::mutex mutex;
  static std::map<ProductShape, std::shared_ptr<const Product>> made;
  const std::lock_guard lock(mutex);
  std::shared_ptr<const Product>& product = made[shape];
  if (!product) product = std::make_shared<const Product>(shape);
  return product;
}

Product::Product(const ProductShape& shape) {
  guarded(kPlace, "a matrix product that oneDNN can do", [&] {
    const dnnl::matmul::primitive_desc made = describe(shape, desc_of_b(shape));
    primitive_ = dnnl::matmul(made);
    a_desc_ = made.src_desc();
    b_desc_ = made.weights_desc();
    y_desc_ = made.dst_desc();
    bias_desc_ = made.bias_desc();
    workspace_desc_ = made.scratchpad_desc();
  });
}

void Product::run(const void* a, const void* b, const float* bias, float* y, std::byte* workspace) const {
  run(a, memory_at(b_desc_, b), bias, y, workspace);
}

void Product::run(const void* a, const memory& packed_b, const float* bias, float* y, std::byte* workspace) const {
  guarded(kPlace, "a matrix product to run", [&] {
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, memory_at(a_desc_, a)},
                                              {DNNL_ARG_WEIGHTS, packed_b},
                                              {DNNL_ARG_DST, memory_at(y_desc_, y)},
                                              {DNNL_ARG_SCRATCHPAD, memory_at(workspace_desc_, workspace)}};
    if (bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, memory_at(bias_desc_, bias));
    primitive_.execute(cpu_stream(), arguments);
  });
}

int64_t PackedMatrix::column_block(int64_t n) {
  // At least eight blocks where they are not too thin, so that a single row's product can be shared by threads.
  return std::clamp<int64_t>((n / 8 + 63) / 64 * 64, 128, 512);
}

PackedMatrix::PackedMatrix(const MatrixSource& source, Precision precision, int64_t block_k, int64_t block_n,
                           Packing packing)
    : block_k_(block_k), block_n_(block_n), n_blocks_((source.n + block_n - 1) / block_n) {
  const OperandForm form = OperandForm::of(source.dtype, precision);
  const int64_t k_blocks = (source.k + block_k - 1) / block_k;
  const auto rows_of = [&](int64_t i) { return std::min(block_k, source.k - i * block_k); };
  const auto cols_of = [&](int64_t j) { return std::min(block_n, source.n - j * block_n); };
  guarded(kPlace, "a matrix that oneDNN can pack", [&] {
    std::vector<memory::desc> layouts;
    offsets_.push_back(0);
    for (int64_t i = 0; i < k_blocks; ++i) {
      for (int64_t j = 0; j < n_blocks_; ++j) {
        layouts.push_back(packed_layout(form.to, rows_of(i), cols_of(j)));
        offsets_.push_back(checked_add(offsets_.back(), (layouts.back().get_size() + 63) / 64 * 64, kPlace));
      }
    }
    bytes_ = AlignedBuffer(offsets_.back());
    for (size_t i = 0; i < layouts.size(); ++i) blocks_.push_back(memory_at(layouts[i], bytes_.data() + offsets_[i]));
    TilePool::shared().run(blocks_.size(), [&](size_t tile, size_t) {
      const auto i = static_cast<int64_t>(tile) / n_blocks_;
      const auto j = static_cast<int64_t>(tile) % n_blocks_;
      std::vector<std::byte> staging;
      pack_block(source, form, i * block_k, j * block_n, rows_of(i), cols_of(j), staging, blocks_[tile]);
    });
    if (k_blocks == 1) {
      const memory::desc whole = packed_layout(form.to, source.k, source.n);
      const bool seamless = std::all_of(layouts.begin(), layouts.end(),
                                        [&](const memory::desc& block) { return tiles_seamlessly(block, whole); });
      is_whole_ = blocks_.size() == 1 || (seamless && whole.get_size() == offsets_.back());
      if (is_whole_) whole_ = memory_at(whole, bytes_.data());
    }
    if (packing == Packing::kCompact && form.to == DType::kF32) compact();
  });
}

void PackedMatrix::compact() {
  const size_t count = bytes_.size() / sizeof(float);
  const auto* values = reinterpret_cast<const float*>(bytes_.data());
  if (!HWY_DYNAMIC_DISPATCH(all_bf16)(values, count)) return;
  AlignedBuffer halves(count * sizeof(uint16_t));
  HWY_DYNAMIC_DISPATCH(round_rows)(values, count, 1, count, halves.data());
  spread_bytes_ = bytes_.size();
  bytes_ = std::move(halves);
}

void PackedMatrix::spread(TilePool& pool, std::byte* target) const {
  constexpr size_t kChunk = size_t{1} << 16;
  const size_t count = spread_bytes_ / sizeof(float);
  const auto* halves = reinterpret_cast<const uint16_t*>(bytes_.data());
  pool.run((count + kChunk - 1) / kChunk, [&](size_t tile, size_t) {
    const size_t begin = tile * kChunk;
    const size_t size = std::min(kChunk, count - begin);
    HWY_DYNAMIC_DISPATCH(widen_rows)(halves + begin, size, 1, size, target + begin * sizeof(float));
  });
}

memory PackedMatrix::block_in(const std::byte* spread, int64_t n_block) const {
  const memory& own = blocks_[n_block];
  return spread_bytes_ == 0 ? own : memory_at(own.get_desc(), spread + offsets_[n_block]);
}

memory PackedMatrix::whole_in(const std::byte* spread) const {
  return spread_bytes_ == 0 ? whole_ : memory_at(whole_.get_desc(), spread);
}

size_t PackedMatrix::spread_block_bytes() const {
  size_t most = 0;
  if (spread_bytes_ == 0) return most;
  for (size_t i = 0; i < blocks_.size(); ++i) most = std::max(most, offsets_[i + 1] - offsets_[i]);
  return most;
}

memory PackedMatrix::spread_block(int64_t k_block, int64_t n_block, std::byte* target) const {
  const size_t block = k_block * n_blocks_ + n_block;
  if (spread_bytes_ == 0) return blocks_[block];
  const size_t count = (offsets_[block + 1] - offsets_[block]) / sizeof(float);
  HWY_DYNAMIC_DISPATCH(widen_rows)(bytes_.data() + offsets_[block] / 2, count, 1, count, target);
  return memory_at(blocks_[block].get_desc(), target);
}

void PackedMatrix::copy_row(int64_t k, std::span<float> row) const {
  const bool compact = spread_bytes_ != 0;
  for (int64_t j = 0; j < n_blocks_; ++j) {
    const size_t block = k / block_k_ * n_blocks_ + j;
    const memory::desc layout = blocks_[block].get_desc();
    const bool half = compact || layout.data_type() == memory::data_type::bf16;
    const std::byte* elements = bytes_.data() + offsets_[block] / (compact ? 2 : 1);
    const std::span<float> part = row.subspan(j * block_n_, layout.dims()[1]);
    for (size_t n = 0; n < part.size(); ++n) {
      const size_t at = element_offset(layout, {k % block_k_, static_cast<int64_t>(n)});
      part[n] = half ? bf16_to_f32(reinterpret_cast<const uint16_t*>(elements)[at])
                     : reinterpret_cast<const float*>(elements)[at];
    }
  }
}

std::shared_ptr<const PackedMatrix> PackedMatrix::of_frozen(const std::shared_ptr<Storage>& storage,
                                                            MatrixSource source, Precision precision, int64_t block_k,
                                                            int64_t block_n, Packing packing) {
  const bool is_compact =
      packing == Packing::kCompact && product_dtype(precision) == DType::kF32 && source.dtype == DType::kF32;
  if (is_compact && !holds_bf16(storage))
    return of_frozen(storage, source, precision, block_k, block_n, Packing::kPlain);
  std::string key = "product";
  key += precision == Precision::kBF16 ? "/bf16" : "/f32";
  key += is_compact ? "/compact" : "";
  key += source.transposed ? "/transposed" : "/plain";
  for (const int64_t size : {source.k, source.n, block_k, block_n}) {
    key += '/';
    key += std::to_string(size);
  }
  const auto packed = storage->derived(key, [&]() -> std::shared_ptr<void> {
    const Storage::Pin pin(storage);
    source.data = pin.data();
    return std::make_shared<PackedMatrix>(source, precision, block_k, block_n,
                                          is_compact ? Packing::kCompact : Packing::kPlain);
  });
  return std::static_pointer_cast<const PackedMatrix>(packed);
}

}  // namespace heddle
#endif  // HWY_ONCE
