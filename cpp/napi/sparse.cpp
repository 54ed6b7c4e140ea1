#include "napi/classes.h"
#include "structured/alternating.h"
#include "structured/sparse_support.h"

namespace heddle {

namespace {

double number_argument(const Napi::Value& value, const std::string& place) {
  if (!value.IsNumber()) reject_argument(place, "a number", value);
  return value.As<Napi::Number>().DoubleValue();
}

std::optional<Tensor> optional_tensor(const Napi::Value& value, const std::string& place) {
  if (value.IsUndefined()) return std::nullopt;
  return tensor_argument(value, place);
}

Napi::Value support_object(Napi::Env env, SparseSupport support) {
  Addon& addon = Addon::of(env);
  Napi::Object object = Napi::Object::New(env);
  object.Set("rowPointers", addon.wrap(env, std::move(support.row_pointers)));
  object.Set("columnIndices", addon.wrap(env, std::move(support.column_indices)));
  object.Set("columnPointers", addon.wrap(env, std::move(support.column_pointers)));
  object.Set("rowIndices", addon.wrap(env, std::move(support.row_indices)));
  object.Set("columnOrder", addon.wrap(env, std::move(support.column_order)));
  if (support.source.storage) object.Set("source", addon.wrap(env, std::move(support.source)));
  return object;
}

/// sparseSupportFromEntries(rowIndices, columnIndices, rows, columns)
Napi::Value from_entries(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor row_indices = tensor_argument(info[0], "sparse support");
    const Tensor column_indices = tensor_argument(info[1], "sparse support");
    const size_t rows = size_argument(info[2], "sparse support");
    const size_t columns = size_argument(info[3], "sparse support");
    return Addon::of(info.Env())
        .async(
            info.Env(), [=] { return support_from_entries(row_indices, column_indices, rows, columns); },
            support_object);
  });
}

/// sparseSupportFromRows(rowPointers, columnIndices, columns)
Napi::Value from_rows(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor pointers = tensor_argument(info[0], "sparse support");
    const Tensor indices = tensor_argument(info[1], "sparse support");
    const size_t columns = size_argument(info[2], "sparse support");
    return Addon::of(info.Env())
        .async(
            info.Env(), [=] { return support_from_rows(pointers, indices, columns); }, support_object);
  });
}

/// sparseSupportFromMask(mask)
Napi::Value from_mask(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor mask = tensor_argument(info[0], "sparse support");
    return Addon::of(info.Env())
        .async(
            info.Env(), [=] { return support_from_mask(mask); }, support_object);
  });
}

/// randomSparseSupport(rows, columns, count, seed)
Napi::Value random(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const size_t rows = size_argument(info[0], "sparse support");
    const size_t columns = size_argument(info[1], "sparse support");
    const size_t count = size_argument(info[2], "sparse support");
    const size_t seed = size_argument(info[3], "seed");
    return Addon::of(info.Env())
        .async(
            info.Env(), [=] { return random_support(rows, columns, count, seed); }, support_object);
  });
}

Observations observations_argument(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "completion");
  return {tensor_argument(object.Get("pointers"), "completion"), tensor_argument(object.Get("indices"), "completion"),
          optional_tensor(object.Get("order"), "completion"), tensor_argument(object.Get("values"), "completion"),
          optional_tensor(object.Get("weights"), "completion")};
}

HalfStepOptions options_argument(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "completion");
  HalfStepOptions options;
  const std::string solver = string_argument(object.Get("solver"), "solver");
  if (solver == "sketch-pcg")
    options.solver = RowSolver::kSketched;
  else if (solver == "cg")
    options.solver = RowSolver::kPlain;
  else if (solver != "exact")
    throw Error(ErrorCode::kArgument, "solver", "exact, sketch-pcg or cg", solver);
  options.sketch_rows = size_argument(object.Get("sketchRows"), "sketchRows");
  options.iterations = size_argument(object.Get("iterations"), "iterations");
  options.tolerance = number_argument(object.Get("tolerance"), "tolerance");
  options.ridge = number_argument(object.Get("ridge"), "ridge");
  options.seed = size_argument(object.Get("seed"), "seed");
  return options;
}

/// alternatingHalfStep(observations, basis, start, options)
Napi::Value alternating_half_step(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Observations observations = observations_argument(info[0]);
    const Tensor basis = tensor_argument(info[1], "completion");
    const std::optional<Tensor> start = optional_tensor(info[2], "completion");
    const HalfStepOptions options = options_argument(info[3]);
    return Addon::of(info.Env())
        .async(
            info.Env(), [=] { return half_step(observations, basis, start, options); },
            [](Napi::Env env, HalfStep result) -> Napi::Value {
              Napi::Object object = Napi::Object::New(env);
              object.Set("factor", Addon::of(env).wrap(env, std::move(result.factor)));
              object.Set("basis", Addon::of(env).wrap(env, std::move(result.basis)));
              object.Set("iterations", static_cast<double>(result.iterations));
              object.Set("undetermined", static_cast<double>(result.undetermined));
              return object;
            });
  });
}

/// orthonormalColumns(a)
Napi::Value orthonormal(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor a = tensor_argument(info[0], "completion");
    return Addon::of(info.Env())
        .async(
            info.Env(), [=] { return orthonormal_columns(a); },
            [](Napi::Env env, Tensor q) -> Napi::Value { return Addon::of(env).wrap(env, std::move(q)); });
  });
}

/// connectedParts(rowPointers, columnIndices, columns)
Napi::Value parts(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Tensor pointers = tensor_argument(info[0], "completion");
    const Tensor indices = tensor_argument(info[1], "completion");
    const size_t columns = size_argument(info[2], "completion");
    return Addon::of(info.Env())
        .async(
            info.Env(), [=] { return connected_parts(pointers, indices, columns); },
            [](Napi::Env env, size_t count) -> Napi::Value {
              return Napi::Number::New(env, static_cast<double>(count));
            });
  });
}

}  // namespace

void define_sparse(Napi::Env env, Napi::Object exports) {
  exports.Set("sparseSupportFromEntries", Napi::Function::New<from_entries>(env, "sparseSupportFromEntries"));
  exports.Set("sparseSupportFromRows", Napi::Function::New<from_rows>(env, "sparseSupportFromRows"));
  exports.Set("sparseSupportFromMask", Napi::Function::New<from_mask>(env, "sparseSupportFromMask"));
  exports.Set("randomSparseSupport", Napi::Function::New<random>(env, "randomSparseSupport"));
  exports.Set("alternatingHalfStep", Napi::Function::New<alternating_half_step>(env, "alternatingHalfStep"));
  exports.Set("orthonormalColumns", Napi::Function::New<orthonormal>(env, "orthonormalColumns"));
  exports.Set("connectedParts", Napi::Function::New<parts>(env, "connectedParts"));
}

}  // namespace heddle
