#include "cuda/library/products.h"

#include <bit>

#include "cuda/host/record.h"

namespace heddle::cuda {

namespace {

float value_of(float value) { return value; }
double value_of(double value) { return value; }
float value_of(uint16_t bits) { return bf16_to_f32(bits); }

/// The nearest number with 10 binary digits behind the point, the even one of two.
struct Tf32 {
  float value;
};
float value_of(Tf32 number) {
  const auto bits = std::bit_cast<uint32_t>(number.value);
  return std::bit_cast<float>((bits + 0xfffU + (bits >> 13 & 1U)) & ~0x1fffU);
}

template <class From, class To>
void multiply(const ProductShape& shape, const void* a_at, const void* b_at, const void* c_at, void* y_at) {
  const auto* a = static_cast<const From*>(a_at);
  const auto* b = static_cast<const From*>(b_at);
  const auto* c = static_cast<const To*>(c_at);
  auto* y = static_cast<To*>(y_at);
  const int64_t row_a = shape.row_a != 0 ? shape.row_a : shape.transpose_a ? shape.m : shape.k;
  const int64_t row_y = shape.row_y != 0 ? shape.row_y : shape.n;
  for (int64_t item = 0; item < shape.batch; ++item, a += shape.stride_a, b += shape.stride_b)
    for (int64_t row = 0; row < shape.m; ++row)
      for (int64_t column = 0; column < shape.n; ++column) {
        double sum = 0;
        for (int64_t i = 0; i < shape.k; ++i)
          sum += static_cast<double>(value_of(a[shape.transpose_a ? i * row_a + row : row * row_a + i])) *
                 static_cast<double>(value_of(b[shape.transpose_b ? column * shape.k + i : i * shape.n + column]));
        const int64_t at = (item * shape.m + row) * row_y + column;
        const double before = shape.bias          ? static_cast<double>(c[column])
                              : shape.beta == 0.0 ? 0.0
                                                  : shape.beta * static_cast<double>(c[at]);
        y[at] = static_cast<To>(shape.alpha * sum + before);
      }
}

class HostProduct : public Product {
 public:
  explicit HostProduct(const ProductShape& shape) : shape_(shape) {}
  size_t scratch_bytes() const override { return 0; }
  void run(cudaStream_t stream, const void* a, const void* b, const void* c, void* y, void*) const override {
    if (host::recorded("cuBLASLt")) return;
    const auto one = shape_.element == DType::kF64    ? multiply<double, double>
                     : shape_.element == DType::kBF16 ? multiply<uint16_t, float>
                     : shape_.tf32                    ? multiply<Tf32, float>
                                                      : multiply<float, float>;
    host::start(stream, [=, shape = shape_] { one(shape, a, b, c, y); });
  }

 private:
  ProductShape shape_;
};

}  // namespace

std::shared_ptr<const Product> Product::get(const ProductShape& shape) {
  return std::make_shared<const HostProduct>(shape);
}

}  // namespace heddle::cuda
