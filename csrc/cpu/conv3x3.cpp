// 3x3 convolution, stride 1, padding 1, NHWC float32, by Winograd's minimal filtering F(MH x MW, 3x3).
//
// An output tile of MH x MW pixels depends on (MH+2) x (MW+2) input pixels. Transforming both the tile and the filter
// turns the convolution into NH*NW independent matrix products over the channels, [tiles x C_in] x [C_in x C_out]:
// F(4x4) needs 2.25 multiplications an output and channel, F(4x2) 3, where the direct sum needs 9.
#include <omp.h>

#include <type_traits>

#include "simd_conv.h"

namespace varsr {
namespace {

// Tiles a block: more reuse of the weight panels that stream from L3, against a transformed input (830 KB at 36 tiles
// of 160 channels) that outgrows L2. Of the AVX2 kernel, 24 to 48 are equal at 160 channels; 24 lose 20 % at 640, 96
// lose 6 to 15 % below that. Of the AVX-512 kernel, 28 to 56 are equal.
constexpr int64_t kMaxTiles = kLanes == 8 ? 36 : 42;
// Channels in a partial sum. One running sum over all makes most of the error of F(4x4), 1.7 times that of torch's
// direct sum (RMS) at 160 channels; partial sums bring that to 0.9, in the same time.
constexpr int64_t kChunk = 32;
// Fewer input channels take F(4x2): where torch's sum is short too, F(4x4) has up to 2.2 times its error.
constexpr int64_t kWide = 160;

// c[kRows][kColumns] = a[kRows][depth] b[depth][kColumns], b a packed panel; depth is a multiple of kLanes.
void multiply_panel(int64_t depth, const float* a, int64_t lda, const float* b, float* c, int64_t ldc) {
  for (int64_t start = 0; start < depth; start += kChunk) {
    const int64_t end = std::min(depth, start + kChunk);
    TileSums sums;
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) sums.left[i] = sums.right[i] = broadcast(0.0f);
    for (int64_t k = start; k < end; k += 4) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u, b += kColumns) {
        const Vec left = load(b), right = load(b + kLanes);
        prefetch_columns(b + kPrefetch);
#pragma GCC unroll 14
        for (int i = 0; i < kRows; ++i) {
          const Vec value = broadcast(a[i * lda + k + u]);
          sums.left[i] = fma(value, left, sums.left[i]);
          sums.right[i] = fma(value, right, sums.right[i]);
        }
      }
    }
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      float* row = c + i * ldc;
      if (start > 0) {
        sums.left[i] = sums.left[i] + load(row);
        sums.right[i] = sums.right[i] + load(row + kLanes);
      }
      store(row, sums.left[i]);
      store(row + kLanes, sums.right[i]);
    }
  }
}

struct Shape {
  int64_t B, H, W, C_in, C_out;
  int64_t doubling;  // 1: the input has half the rows and columns, each read twice; 0: it has all of them
};

template <int MH, int MW>
class Convolution {
 public:
  static constexpr int NH = MH + 2, NW = MW + 2, N = NH * NW;

  static int64_t transformed_size(int64_t C_out, int64_t C_in) {
    return N * round_up(C_out, kColumns) * round_up(C_in, kLanes);
  }

  // Panels of kColumns output channels: [N][C_out / kColumns][C_in][kColumns], zeros where the channels are padded.
  static void transform_weight(const float* weight, float* panels, int64_t C_out, int64_t C_in) {
    double gh[NH][3], gw[NW][3];
    filter_matrix<MH>(gh);
    filter_matrix<MW>(gw);
    const int64_t depth = round_up(C_in, kLanes), width = round_up(C_out, kColumns);
#pragma omp parallel for
    for (int64_t p = 0; p < width / kColumns; ++p)
      for (int64_t c = 0; c < depth; ++c) {
        double w[9][kColumns] = {}, half[NH][3][kColumns];  // one filter a lane
        for (int64_t lane = 0; lane < std::min<int64_t>(kColumns, C_out - p * kColumns) && c < C_in; ++lane)
          for (int k = 0; k < 9; ++k) w[k][lane] = weight[((p * kColumns + lane) * C_in + c) * 9 + k];
        for (int i = 0; i < NH; ++i)
          for (int k = 0; k < 3; ++k)
            for (int64_t lane = 0; lane < kColumns; ++lane)
              half[i][k][lane] = gh[i][0] * w[k][lane] + gh[i][1] * w[3 + k][lane] + gh[i][2] * w[6 + k][lane];
        for (int n = 0; n < N; ++n) {
          const double* g = gw[n % NW];
          float* to = panels + ((n * (width / kColumns) + p) * depth + c) * kColumns;
          for (int64_t lane = 0; lane < kColumns; ++lane) {
            const auto& row = half[n / NW];
            to[lane] = static_cast<float>(g[0] * row[0][lane] + g[1] * row[1][lane] + g[2] * row[2][lane]);
          }
        }
      }
  }

  Convolution(const Shape& shape, const float* x, const float* panels, const float* bias, const float* residual,
              float* out)
      : s_(shape),
        x_(x),
        panels_(panels),
        bias_(bias),
        residual_(residual),
        out_(out),
        depth_(round_up(s_.C_in, kLanes)),
        width_(round_up(s_.C_out, kColumns)),
        tile_rows_((s_.H + MH - 1) / MH),
        tile_columns_((s_.W + MW - 1) / MW),
        tiles_(s_.B * tile_rows_ * tile_columns_) {}

  void run() const {
    const int64_t threads = omp_get_max_threads();
    const int64_t block = round_up(std::min(kMaxTiles, (tiles_ + threads - 1) / threads), kRows);
    const int64_t blocks = (tiles_ + block - 1) / block;
    // With fewer blocks than threads, the threads share each block's output channels.
    const int64_t panel_count = width_ / kColumns;
    const int64_t splits = blocks < threads ? std::min(threads, panel_count) : 1;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < blocks * splits; ++i) {
      const int64_t first = i / splits * block, part = i % splits;
      run_block(first, std::min(block, tiles_ - first), panel_count * part / splits, panel_count * (part + 1) / splits);
    }
  }

 private:
  struct Tile {
    int64_t b, y, x;  // image, and the first output pixel
  };

  Tile tile(int64_t index) const {
    const int64_t row = index / tile_columns_;
    return {row / tile_rows_, row % tile_rows_ * MH, index % tile_columns_ * MW};
  }

  void run_block(int64_t first, int64_t count, int64_t panel0, int64_t panel1) const {
    static thread_local Scratch<float> input_scratch, product_scratch;
    const int64_t rows = round_up(count, kRows), columns = (panel1 - panel0) * kColumns;
    // One cache line more than the matrix: at a power of two the N streams would share a few cache sets.
    const int64_t input_size = rows * depth_ + 16, product_size = rows * columns + 16;
    float* input = input_scratch.get(N * input_size);
    float* product = product_scratch.get(N * product_size);
    for (int64_t t = 0; t < count; ++t) transform_input(tile(first + t), input + t * depth_, input_size);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t p = panel0; p < panel1; ++p) {
        const float* panel = panels_ + (n * (width_ / kColumns) + p) * depth_ * kColumns;
        float* c = product + n * product_size + (p - panel0) * kColumns;
        for (int64_t r = 0; r < rows; r += kRows)
          multiply_panel(depth_, input + n * input_size + r * depth_, depth_, panel, c + r * columns, columns);
      }
    for (int64_t t = 0; t < count; ++t)
      transform_output(tile(first + t), product + t * columns, product_size, panel0 * kColumns,
                       std::min(panel1 * kColumns, s_.C_out));
  }

  void transform_input(const Tile& t, float* v, int64_t stride) const {
    const int64_t half = s_.doubling, stored_width = s_.W >> half;
    const float* image = x_ + t.b * (s_.H >> half) * stored_width * s_.C_in;
    int64_t rows[NH], columns[NW];
    for (int i = 0; i < NH; ++i) rows[i] = ((t.y - 1 + i) >> half) * stored_width * s_.C_in;
    for (int j = 0; j < NW; ++j) columns[j] = ((t.x - 1 + j) >> half) * s_.C_in;
    const bool inside = t.y > 0 && t.x > 0 && t.y + MH < s_.H && t.x + MW < s_.W;
    for (int64_t c = 0; c < s_.C_in; c += kLanes) {
      Vec d[N], between[N], u[N];
      if (inside && c + kLanes <= s_.C_in) {
        for (int i = 0; i < NH; ++i)
          for (int j = 0; j < NW; ++j) d[i * NW + j] = load(image + rows[i] + columns[j] + c);
      } else {
        const Mask mask = lanes_below(s_.C_in, c);
        for (int i = 0; i < NH; ++i)
          for (int j = 0; j < NW; ++j) {
            const int64_t y = t.y - 1 + i, x = t.x - 1 + j;
            const bool in = y >= 0 && y < s_.H && x >= 0 && x < s_.W;
            d[i * NW + j] = in ? load(image + rows[i] + columns[j] + c, mask) : broadcast(0.0f);
          }
      }
      for (int j = 0; j < NW; ++j) Filter<MH>::input(d + j, NW, between + j, NW);
      for (int i = 0; i < NH; ++i) Filter<MW>::input(between + i * NW, 1, u + i * NW, 1);
      for (int n = 0; n < N; ++n) store(v + n * stride + c, u[n]);
    }
  }

  void transform_output(const Tile& t, const float* product, int64_t stride, int64_t first, int64_t end) const {
    const int64_t height = std::min<int64_t>(MH, s_.H - t.y), width = std::min<int64_t>(MW, s_.W - t.x);
    const int64_t corner = ((t.b * s_.H + t.y) * s_.W + t.x) * s_.C_out;
    for (int64_t c = first; c < end; c += kLanes) {
      Vec m[N], half[MH * NW], y[MH * MW];
      for (int n = 0; n < N; ++n) m[n] = load(product + n * stride + c - first);
      for (int j = 0; j < NW; ++j) Filter<MH>::output(m + j, NW, half + j, NW);
      for (int i = 0; i < MH; ++i) Filter<MW>::output(half + i * NW, 1, y + i * MW, 1);
      const Mask mask = lanes_below(end, c);
      const Vec bias = load(bias_ + c, mask);
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j) {
          const int64_t at = corner + (i * s_.W + j) * s_.C_out + c;
          Vec value = y[i * MW + j] + bias;
          if (residual_) value = value + load(residual_ + at, mask);
          store(out_ + at, value, mask);
        }
    }
  }

  const Shape s_;
  const float *x_, *panels_, *bias_, *residual_;
  float* out_;
  const int64_t depth_, width_, tile_rows_, tile_columns_, tiles_;
};

// Calls `use` with the algorithm for C_in input channels; the layout of the transformed weight depends on it.
template <typename Use>
auto with_algorithm(int64_t C_in, Use use) {
  if (C_in < kWide) return use(static_cast<Convolution<4, 2>*>(nullptr));
  return use(static_cast<Convolution<4, 4>*>(nullptr));
}

}  // namespace
}  // namespace varsr

// Floats that the transformed weight takes: 4 times the weight, or 2.7 times below 160 input channels.
extern "C" int64_t varsr_cpu_conv3x3_transformed_size(int64_t C_out, int64_t C_in) {
  return varsr::with_algorithm(
      C_in, [&](auto* type) { return std::remove_pointer_t<decltype(type)>::transformed_size(C_out, C_in); });
}

// weight: (C_out, C_in, 3, 3).
extern "C" void varsr_cpu_conv3x3_transform(const float* weight, float* transformed, int64_t C_out, int64_t C_in) {
  varsr::with_algorithm(C_in, [&](auto* type) {
    std::remove_pointer_t<decltype(type)>::transform_weight(weight, transformed, C_out, C_in);
  });
}

// out = conv(x) + bias + residual, without the residual if it is null. out, residual: (B, H, W, C_out), which may be the
// same. x: (B, H, W, C_in), or with doubling = 1 (B, H / 2, W / 2, C_in), enlarged to its nearest neighbours.
extern "C" void varsr_cpu_conv3x3(const float* x, const float* transformed, const float* bias, const float* residual,
                                  float* out, int64_t B, int64_t H, int64_t W, int64_t C_in, int64_t C_out,
                                  int64_t doubling) {
  const varsr::Shape shape{B, H, W, C_in, C_out, doubling};
  varsr::with_algorithm(C_in, [&](auto* type) {
    std::remove_pointer_t<decltype(type)>(shape, x, transformed, bias, residual, out).run();
  });
}
