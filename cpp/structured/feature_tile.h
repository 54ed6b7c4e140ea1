// Tiles of a batch that lie features first: tile[feature][row], with `lanes` rows of the batch side by side. In this
// layout any permutation of features, any stride between them and any padding is a matter of which rows of the tile are
// loaded and stored, so that structured products need no pass of their own for them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace heddle {

/// Rows of a packed weight that the micro-kernel multiplies at once.
inline constexpr int64_t kChainPanelRows = 8;
/// Rows of the batch in a tile: three of the widest vectors, and one where there are few rows.
inline constexpr int64_t kTileLanes = 48;
inline constexpr int64_t kFewLanes = 16;
/// Columns of a weight gradient are padded to a multiple of this.
inline constexpr int64_t kGradientColumns = 16;

/// Where features stand in a tile: one behind the other, with a gap after each `period`. Features whose distance is a
/// large power of two would otherwise share a few sets of the first cache.
struct FeaturePlaces {
  /// A multiple of 16; 0: no gaps.
  int64_t period = 0;

  int64_t of(int64_t feature) const { return period == 0 ? feature : feature + feature / period; }
};

/// tile[f][t] = x[t][f] for `rows` rows of `columns` elements, `stride` apart; zero up to `lanes` and `features`.
/// `round`: to bf16.
struct RowsToFeatures {
  const float* x;
  int64_t rows, columns, stride;
  int64_t features, lanes;
  bool round;
  float* tile;
  FeaturePlaces places = {};
};
void rows_to_features(const RowsToFeatures& job);

/// A result of rows x columns is too large to stay in the caches.
inline bool passes_caches(int64_t rows, int64_t columns) { return columns > (int64_t{1} << 21) / rows; }

/// y[t][f] = tile[f][t]: `columns` features, `feature_stride` elements apart, into `rows` rows, `stride` apart.
struct FeaturesToRows {
  const float* tile;
  int64_t feature_stride;
  int64_t rows, columns, stride;
  float* y;
  /// Lines of y are written without being read first, past the caches.
  bool streams = false;
  FeaturePlaces places = {};
};
void features_to_rows(const FeaturesToRows& job);

/// out[i] = sum over terms and j of w[i][term][j] * in[term][j] for rows i of m, with rows of lanes as elements.
struct PanelProduct {
  /// Packed: panels of kChainPanelRows rows, [panel][term][j][row of the panel].
  const float* w;
  int64_t m, terms, k;
  const float* in;
  /// In elements.
  int64_t in_term, in_item;
  float* out;
  int64_t out_item;
  int64_t lanes;
  /// Results are rounded to bf16.
  bool round;
};
void multiply_panels(const PanelProduct& job, int64_t first_panel, int64_t last_panel);

/// dw[i][j] += sum over t of g[i][t] * in[t][j], with dw [m, columns] and in [lanes, columns] dense.
struct OuterProduct {
  const float* g;
  int64_t g_item;
  int64_t m, columns, lanes;
  const float* in;
  float* dw;
};
void accumulate_outer(const OuterProduct& job);

}  // namespace heddle
