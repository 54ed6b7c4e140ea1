// y = a @ b + c + alpha * z @ v with z = alpha_z * (a @ u): a frozen matrix and a low-rank update of it in one pass. A
// tile of a is read and rounded once for both products, and the update is added while the tile of y is in the cache; as
// three instructions, a rank of 16 costs two more ways of a and y through memory.
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "kernels/kernel_table.h"
#include "kernels/matrix_plan.h"

namespace heddle {
namespace {

// Below this many rows there are too few tiles of whole rows for all threads.
constexpr int64_t kFusedRows = 512;

enum Input : size_t { kA, kB, kU, kV, kC };
enum Output : size_t { kY, kZ };

struct Shapes {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t r = 0;
  bool transpose_b = false;
  bool transpose_u = false;
  bool transpose_v = false;
  bool has_c = false;
  float alpha = 1.0F;
  float alpha_z = 1.0F;
  Precision precision = Precision::kF32;
  DType dtype_a = DType::kF32;
};

void check_matrix(const KernelRequest& request, const Operand& operand, int64_t rows, int64_t cols, bool transposed,
                  bool may_be_bf16 = false) {
  const bool known = operand.dtype == DType::kF32 || (may_be_bf16 && operand.dtype == DType::kBF16);
  if (!known) throw Error(ErrorCode::kDtype, std::string(request.op), "f32", dtype_name(operand.dtype));
  const Shape expected = transposed ? Shape{cols, rows} : Shape{rows, cols};
  request.check(operand.present && operand.shape == expected, expected.str(), operand.shape.str());
}

float finite(const KernelRequest& request, std::string_view name) {
  const auto value = static_cast<float>(request.attributes.number(name, 1.0));
  request.check(std::isfinite(value), "a finite " + std::string(name), std::to_string(value));
  return value;
}

Shapes read_shapes(const KernelRequest& request) {
  request.check(request.inputs.size() == 4 || request.inputs.size() == 5, "4 or 5 inputs",
                std::to_string(request.inputs.size()));
  request.check(request.outputs.size() == 2, "2 outputs", std::to_string(request.outputs.size()));
  for (const size_t matrix : {kA, kB, kU, kV})
    request.check(request.inputs[matrix].present && request.inputs[matrix].shape.rank() == 2, "matrices",
                  request.inputs[matrix].shape.str());
  Shapes s;
  s.transpose_b = request.attributes.integer("transpose_b", 0) != 0;
  s.transpose_u = request.attributes.integer("transpose_u", 0) != 0;
  s.transpose_v = request.attributes.integer("transpose_v", 0) != 0;
  s.alpha = finite(request, "alpha");
  s.alpha_z = finite(request, "alpha_z");
  s.precision = request.attributes.has("precision")
                    ? precision_from_name(request.attributes.text("precision"), request.op)
                    : Precision::kF32;
  s.dtype_a = request.inputs[kA].dtype;
  s.m = request.inputs[kA].shape[0];
  s.k = request.inputs[kA].shape[1];
  s.n = request.inputs[kB].shape[s.transpose_b ? 0 : 1];
  s.r = request.inputs[kU].shape[s.transpose_u ? 0 : 1];
  s.has_c = request.inputs.size() == 5 && request.inputs[kC].present;
  request.check(s.m > 0 && s.n > 0 && s.k > 0 && s.r > 0, "no empty dimension", request.inputs[kA].shape.str());
  check_matrix(request, request.inputs[kA], s.m, s.k, false, true);
  check_matrix(request, request.inputs[kB], s.k, s.n, s.transpose_b, true);
  check_matrix(request, request.inputs[kU], s.k, s.r, s.transpose_u);
  check_matrix(request, request.inputs[kV], s.r, s.n, s.transpose_v);
  if (s.has_c) check_matrix(request, request.inputs[kC], s.m, s.n, false);
  check_matrix(request, request.outputs[kY], s.m, s.n, false);
  check_matrix(request, request.outputs[kZ], s.m, s.r, false);
  return s;
}

/// Rows in tiles of equal height, but for the last ones of half that height: the threads finish together.
class TaperedRows {
 public:
  TaperedRows(int64_t rows, int64_t height)
      : rows_(rows), height_(height), whole_(std::max<int64_t>(0, rows / height - 2)) {}

  int64_t height() const { return height_; }
  int64_t count() const { return whole_ + ceil_div(rows_ - whole_ * height_, height_ / 2); }
  int64_t first(int64_t tile) const {
    return std::min(tile, whole_) * height_ + std::max<int64_t>(0, tile - whole_) * height_ / 2;
  }
  int64_t size(int64_t tile) const { return tile < whole_ ? height_ : std::min(height_ / 2, rows_ - first(tile)); }

 private:
  int64_t rows_;
  int64_t height_;
  /// Tiles of full height.
  int64_t whole_;
};

/// Both products on one tile of rows after the other.
class FusedPlan {
 public:
  FusedPlan(const Shapes& shapes, std::shared_ptr<const PackedMatrix> packed)
      : s_(shapes),
        packed_(std::move(packed)),
        form_a_(OperandForm::of(shapes.dtype_a, shapes.precision)),
        form_(OperandForm::of(DType::kF32, shapes.precision)),
        tiles_(shapes.m, shapes.m >= 1024 ? 128 : 64) {
    if (form_.converts()) {
      u_ = shared_.add(kU, form_, checked_mul(s_.k, s_.r, "low_rank_matmul"));
      v_ = shared_.add(kV, form_, checked_mul(s_.r, s_.n, "low_rank_matmul"));
      z_bytes_ = aligned(checked_mul(tiles_.height() * dtype_size(form_.to), s_.r, "low_rank_matmul"));
    }
    if (form_a_.converts())
      a_bytes_ = aligned(checked_mul(tiles_.height() * dtype_size(form_a_.to), s_.k, "low_rank_matmul"));
    spread_ = shared_.reserve(packed_->spread_bytes());
    make_products();
  }

  size_t scratch_per_thread() const { return shared_.scratch_bytes() + a_bytes_ + z_bytes_ + workspace_bytes_; }

  void run(const RunArguments& args) const {
    RunBuffer spill;
    std::byte* const copies = shared_.fill(args, spill);
    const void* u = form_.converts() ? copies + u_ : args.in[kU];
    const void* v = form_.converts() ? copies + v_ : args.in[kV];
    packed_->spread(args.pool, copies + spread_);
    const dnnl::memory base = packed_->whole_in(copies + spread_);
    args.pool.run(tiles_.count(), [&](size_t tile, size_t thread) {
      run_tile(args, {base, u, v}, static_cast<int64_t>(tile),
               args.thread_scratch<std::byte>(thread) + shared_.scratch_bytes());
    });
  }

 private:
  struct Products {
    std::shared_ptr<const Product> base;
    std::shared_ptr<const Product> down;
    std::shared_ptr<const Product> up;
  };

  void make_products() {
    // All heights that there are: whole tiles, half tiles, and the last one.
    for (const int64_t tile : {int64_t{0}, tiles_.count() - 2, tiles_.count() - 1}) {
      const int64_t rows = tiles_.size(std::max<int64_t>(0, tile));
      Products& made = products_[rows];
      made.base =
          Product::get({.dtype = form_.to, .m = rows, .n = s_.n, .k = s_.k, .packed_b = true, .accumulate = s_.has_c});
      made.down = Product::get(
          {.dtype = form_.to, .m = rows, .n = s_.r, .k = s_.k, .transpose_b = s_.transpose_u, .alpha = s_.alpha_z});
      made.up = Product::get({.dtype = form_.to,
                              .m = rows,
                              .n = s_.n,
                              .k = s_.r,
                              .transpose_b = s_.transpose_v,
                              .accumulate = true,
                              .alpha = s_.alpha});
      for (const auto& product : {made.base, made.down, made.up})
        workspace_bytes_ = std::max(workspace_bytes_, aligned(product->workspace_bytes()));
    }
  }

  /// Right operands of the three products.
  struct RightSides {
    const dnnl::memory& base;
    const void* u;
    const void* v;
  };

  void run_tile(const RunArguments& args, const RightSides& right, int64_t tile, std::byte* scratch) const {
    const int64_t row0 = tiles_.first(tile);
    const int64_t rows = tiles_.size(tile);
    const Products& products = products_.at(rows);
    std::byte* workspace = scratch + a_bytes_ + z_bytes_;
    float* y = args.output<float>(kY) + row0 * s_.n;
    float* z = args.output<float>(kZ) + row0 * s_.r;
    const void* a =
        converted(form_a_, args.input<std::byte>(kA) + row0 * s_.k * dtype_size(form_a_.from), rows * s_.k, scratch);
    if (s_.has_c) {
      const float* c = args.input<float>(kC) + row0 * s_.n;
      if (c != y) std::copy_n(c, rows * s_.n, y);
    }
    products.base->run(a, right.base, nullptr, y, workspace);
    products.down->run(a, right.u, nullptr, z, workspace);
    products.up->run(converted(form_, z, rows * s_.r, scratch + a_bytes_), right.v, nullptr, y, workspace);
  }

  /// The elements as the products take them.
  static const void* converted(const OperandForm& form, const void* source, int64_t count, std::byte* target) {
    if (!form.converts()) return source;
    convert_rows(form, source, count, 1, count, target);
    return target;
  }

  Shapes s_;
  std::shared_ptr<const PackedMatrix> packed_;
  OperandForm form_a_;
  /// Of u, v and z.
  OperandForm form_;
  TaperedRows tiles_;
  SharedCopies shared_;
  size_t u_ = 0;
  size_t v_ = 0;
  size_t spread_ = 0;
  size_t a_bytes_ = 0;
  size_t z_bytes_ = 0;
  size_t workspace_bytes_ = 0;
  /// By the height of the tile.
  std::map<int64_t, Products> products_;
};

/// The three products one after the other.
class SeparatePlan {
 public:
  SeparatePlan(const Shapes& s, DType dtype_b, std::shared_ptr<const PackedMatrix> packed)
      : has_c_(s.has_c),
        base_(problem(s, {s.dtype_a, dtype_b}, s.n, s.k, s.transpose_b, s.has_c, 1.0F), std::move(packed)),
        down_(problem(s, {s.dtype_a, DType::kF32}, s.r, s.k, s.transpose_u, false, s.alpha_z), nullptr),
        up_(problem(s, {DType::kF32, DType::kF32}, s.n, s.r, s.transpose_v, true, s.alpha), nullptr) {}

  size_t scratch_per_thread() const {
    return std::max({base_.scratch_per_thread(), down_.scratch_per_thread(), up_.scratch_per_thread()});
  }

  void run(const RunArguments& args) const {
    void* const y = args.out[kY];
    void* const z = args.out[kZ];
    run_part(args, base_, {args.in[kA], args.in[kB], has_c_ ? args.in[kC] : nullptr}, y);
    run_part(args, down_, {args.in[kA], args.in[kU], nullptr}, z);
    run_part(args, up_, {z, args.in[kV], y}, y);
  }

 private:
  struct Dtypes {
    DType a;
    DType b;
  };

  static Problem problem(const Shapes& s, Dtypes dtypes, int64_t n, int64_t k, bool transpose_b, bool adds,
                         float alpha) {
    return {.m = s.m,
            .n = n,
            .k = k,
            .transpose_b = transpose_b,
            .addend = adds ? Addend::kFull : Addend::kNone,
            .alpha = alpha,
            .precision = s.precision,
            .form_a = OperandForm::of(dtypes.a, s.precision),
            .form_b = OperandForm::of(dtypes.b, s.precision)};
  }

  static void run_part(const RunArguments& args, const MatrixPlan& plan, const std::array<const void*, 3>& in,
                       void* out) {
    plan.run({.in = in,
              .out = std::span(&out, 1),
              .pool = args.pool,
              .scratch = args.scratch,
              .scratch_per_thread = args.scratch_per_thread});
  }

  bool has_c_;
  MatrixPlan base_;
  MatrixPlan down_;
  MatrixPlan up_;
};

template <class Plan>
CompiledKernel compiled(std::shared_ptr<const Plan> plan) {
  CompiledKernel kernel;
  kernel.scratch_per_thread = plan->scratch_per_thread();
  kernel.run = [plan = std::move(plan)](const RunArguments& args) { plan->run(args); };
  kernel.in_place = {{kC, kY}};
  return kernel;
}

CompiledKernel compile_low_rank_matmul(const KernelRequest& request) {
  const Shapes shapes = read_shapes(request);
  const Operand& b = request.inputs[kB];
  if (!b.frozen) return compiled(std::make_shared<const SeparatePlan>(shapes, b.dtype, nullptr));
  const MatrixSource source{.dtype = b.dtype, .k = shapes.k, .n = shapes.n, .transposed = shapes.transpose_b};
  auto packed =
      PackedMatrix::of_frozen(b.frozen, source, shapes.precision, shapes.k, PackedMatrix::column_block(shapes.n),
                              packing_for(shapes.m, shapes.k, shapes.n));
  const bool fuses = shapes.m >= kFusedRows && packed->is_whole();
  CompiledKernel kernel = fuses ? compiled(std::make_shared<const FusedPlan>(shapes, std::move(packed)))
                                : compiled(std::make_shared<const SeparatePlan>(shapes, b.dtype, std::move(packed)));
  kernel.consumed_inputs = {kB};
  return kernel;
}

}  // namespace

void register_low_rank_matmul(KernelTable& table) { table.emplace("low_rank_matmul", compile_low_rank_matmul); }

}  // namespace heddle
