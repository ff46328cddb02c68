// The products of register attention by tiles (tile.h), for bfloat16 and vectors of 64 bytes: the other arithmetic of its CPU
// kernels. Weights and their gradients are rounded to bfloat16 for the products; sums and the softmax are fp32.
//
// Products over keys take 32 at a time, so the scores have a multiple of 32 columns, with the padding between slots and registers:
//   own:    K slots, padding, the first R % 32 registers    packed for every (image, head)
//   shared: the other registers                             packed once per head
// B tiles hold pairs of steps: a transposed panel is [pair of d][column][2], the natural one [pair of columns][d][2]. Keys that
// are masked, padding, and steps past D, are zeros.
#pragma once

#include "ocl/cpu/tile.h"
#include "register_attention/cpu_blocks.h"

namespace ocl {
namespace {

struct TileLayout {
  explicit TileLayout(const RegisterAttention& in)
      : first_shared(in.R % kTileSteps),
        own(round_up(in.K + first_shared, kTileSteps)),
        shared(in.R - first_shared),
        depth(round_up(in.D, kTileSteps)),
        sums{own - first_shared, in.R, round_up(in.D, kTileSize)} {}
  int64_t first_shared;  // register
  int64_t own, shared;   // columns
  int64_t depth;         // bfloat16 in a row of queries
  Layout sums;           // of scores and sums in fp32
};

// Copies rows of bfloat16, whose sign bits `flip` may invert.
inline void copy_rows(const BFloat16* from, int64_t from_row, int64_t rows, int64_t size, uint16_t flip, BFloat16* to,
                      int64_t to_row) {
  const auto copy = [&](int64_t i) {
    const Halves bits = load_bits(from + i) ^ flip;
    std::memcpy(to + i, &bits, sizeof bits);
  };
  for (int64_t row = 0; row < rows; ++row, from += from_row, to += to_row) {
    for (int64_t i = 0; i + kLanes <= size; i += kLanes) copy(i);
    if (size >= kLanes) {
      copy(size - kLanes);  // faster than counting lanes
    } else {
      for (int64_t i = 0; i < size; ++i) to[i].bits = from[i].bits ^ flip;
    }
  }
}

// One kind of panel: of the keys or of the values, transposed or natural, for slots and registers of all heads.
class TilePanels {
 public:
  TilePanels(const RegisterAttention& in, bool transposed, bool wanted = true)
      : in_(in),
        transposed_(transposed),
        layout_(in),
        column_size_(transposed ? layout_.depth : layout_.sums.width),
        data_(wanted ? (in.B * layout_.own + layout_.shared) * in.H * column_size_ : 0) {}

  // Packs the own columns of (image, head), or for image == B the shared ones of the head.
  void pack(const View& slots, const View& registers, int64_t image, int64_t head) {
    const bool shared = image == in_.B;
    const int64_t columns = shared ? layout_.shared : layout_.own;
    const Scratch<BFloat16> group(kTileSize * layout_.depth);
    for (int64_t first = 0; first < columns; first += kTileSize) {
      for (int64_t i = 0; i < kTileSize; ++i) {
        const BFloat16* row = shared ? element(registers, 0, head, layout_.first_shared + first + i)
                                     : own_row(slots, registers, image, head, first + i);
        const int64_t size = row != nullptr ? in_.D : 0;
        if (row != nullptr) copy_rows(row, 0, 1, in_.D, 0, group.data() + i * layout_.depth, 0);
        std::fill(group.data() + i * layout_.depth + size, group.data() + (i + 1) * layout_.depth, BFloat16{});
      }
      transposed_ ? scatter_transposed(group.data(), panel(image, head) + 2 * first, 2 * columns)
                  : scatter_natural(group.data(), panel(image, head) + first * layout_.sums.width);
    }
  }

  // C = A B for scores: rows times the transposed panels.
  template <class Tiles>
  void multiply_scores(Tiles& tiles, const Rows<BFloat16>& rows, int64_t num_rows, int64_t image, int64_t head, float* scores) const {
    const int64_t columns = layout_.sums.columns, steps = round_up(in_.D, Tiles::kSteps);
    multiply_tiles(tiles, {{rows.data, rows.row, panel(image, head), 2 * layout_.own, steps}}, num_rows, layout_.own,
                   {scores, columns, false});
    multiply_tiles(tiles, {{rows.data, rows.row, panel(in_.B, head), 2 * layout_.shared, steps}}, num_rows, layout_.shared,
                   {scores + layout_.own, columns, false});
  }

  // C = A B for weighted sums of keys or values: weights times the natural panels.
  template <class Tiles>
  void multiply_rows(Tiles& tiles, const BFloat16* weights, int64_t num_rows, int64_t image, int64_t head, float* rows) const {
    const int64_t width = layout_.sums.width, columns = layout_.sums.columns;
    // The padding between the slots and the first registers is left out where a product takes few steps at once.
    const int64_t registers = std::min(layout_.sums.slots / Tiles::kSteps * Tiles::kSteps, layout_.own);
    const int64_t slots = std::min(round_up(in_.K, Tiles::kSteps), registers);
    multiply_tiles(tiles,
                   {{weights, columns, panel(image, head), 2 * width, slots},
                    {weights + registers, columns, panel(image, head) + registers * width, 2 * width, layout_.own - registers},
                    {weights + layout_.own, columns, panel(in_.B, head), 2 * width, layout_.shared}},
                   num_rows, width, {rows, width, false});
  }

 private:
  BFloat16* panel(int64_t image, int64_t head) const {
    const int64_t own = (image * in_.H + head) * layout_.own;
    return data_.data() + (image < in_.B ? own : in_.B * in_.H * layout_.own + head * layout_.shared) * column_size_;
  }

  const BFloat16* element(const View& view, int64_t image, int64_t head, int64_t row) const {
    return static_cast<const BFloat16*>(address(view, Dtype::bfloat16, image, head, row));
  }

  const BFloat16* own_row(const View& slots, const View& registers, int64_t image, int64_t head, int64_t column) const {
    if (column >= layout_.sums.slots) return element(registers, 0, head, column - layout_.sums.slots);
    if (column >= in_.K) return nullptr;
    const bool kept = in_.slot_mask == nullptr || in_.slot_mask[image * in_.K + column] != 0;
    return kept ? element(slots, image, head, column) : nullptr;
  }

  void scatter_transposed(const BFloat16* group, BFloat16* to, int64_t to_row) const {
    for (int64_t d = 0; d < layout_.depth; d += kTileSteps) {
      Bits words[kTileSize];
      for (int64_t i = 0; i < kTileSize; ++i) words[i] = load_words(group + i * layout_.depth + d);
      transpose(words);
      for (int64_t pair = 0; pair < kTileSize; ++pair) store_words(to + (d / 2 + pair) * to_row, words[pair]);
    }
  }

  void scatter_natural(const BFloat16* group, BFloat16* to) const {
    const int64_t width = layout_.sums.width;
    for (int64_t i = 0; i < kTileSize; i += 2, group += 2 * layout_.depth, to += 2 * width) {
      for (int64_t d = 0; d < width; d += kTileSize) {
        store_words(to + 2 * d, pairs(load_bits(group + d), load_bits(group + layout_.depth + d)));
      }
    }
  }

  const RegisterAttention& in_;
  bool transposed_;
  TileLayout layout_;
  int64_t column_size_;
  Scratch<BFloat16> data_;
};

// Sums over rows of vectors[row][d] * scores[row][column], for one kind of gradient (keys or values). One side has to be
// transposed, the shorter one: as [d][column] from vectors, as [column][d] from scores. Rows are gathered until a product is worth
// loading and storing sums.
template <class Tiles>
class TileSumsOverRows {
 public:
  TileSumsOverRows(const TileLayout& layout, int64_t first_column, int64_t last_column, Tiles& tiles)
      : tiles_(tiles),
        width_(layout.sums.width),
        columns_(layout.sums.columns),
        first_(first_column),
        last_(first_column + round_up(last_column - first_column, kTileSize)),
        wanted_(round_up(last_column - first_column, Tiles::kRows)),
        by_column_(last_column - first_column < layout.sums.width),
        vectors_(width_ * kRows),
        scores_(kRows * columns_),
        sums_(width_ * columns_) {}

  void begin() { filled_ = 0, add_ = false; }

  // Vectors are zeros from `rows` to kBlockRows.
  void add(const Rows<BFloat16>& vectors, const float* scores, int64_t rows) {
    if (first_ == last_) return;
    by_column_ ? pair_vectors(vectors) : transpose_vectors(vectors);
    by_column_ ? transpose_scores(scores, rows) : pair_scores(scores, rows);
    filled_ += kBlockRows;
    if (filled_ == kRows) multiply();
  }

  void end() {
    if (filled_ > 0) multiply();
  }

  // Stores the sums of each column at row_of(column), where that is not null.
  template <class RowOf>
  void write(const RowOf& row_of) const {
    for (int64_t column = first_; column < last_; column += kTileSize) {
      for (int64_t d = 0; d < width_; d += kTileSize) {
        Bits words[kTileSize];
        for (int64_t i = 0; i < kTileSize; ++i) {
          words[i] = load_words(by_column_ ? sums_.data() + (column + i) * width_ + d : sums_.data() + (d + i) * columns_ + column);
        }
        if (!by_column_) transpose(words);
        for (int64_t i = 0; i < kTileSize; ++i) {
          if (float* to = row_of(column + i); to != nullptr) store_words(to + d, words[i]);
        }
      }
    }
  }

 private:
  static constexpr int64_t kRows = 128;

  // A: [d][row].
  void transpose_vectors(const Rows<BFloat16>& vectors) {
    const BFloat16* from = vectors.data;
    for (int64_t d = 0; d < width_; d += kTileSize, from += kTileSize) {
      Bits words[kTileSize];
      for (int64_t pair = 0; pair < kTileSize; ++pair) {
        words[pair] = pairs(load_bits(from + 2 * pair * vectors.row), load_bits(from + (2 * pair + 1) * vectors.row));
      }
      transpose(words);
      for (int64_t i = 0; i < kTileSize; ++i) store_words(vectors_.data() + (d + i) * kRows + filled_, words[i]);
    }
  }

  // B: [pair of rows][column][2].
  void pair_scores(const float* scores, int64_t rows) {
    BFloat16* to = scores_.data() + filled_ * columns_;
    for (int64_t row = 0; row < kBlockRows; row += 2, to += 2 * columns_) {
      for (int64_t column = first_; column < last_; column += kLanes) store_words(to + 2 * column, pair(scores, rows, row, column));
    }
  }

  // A: [column][row].
  void transpose_scores(const float* scores, int64_t rows) {
    for (int64_t column = first_; column < last_; column += kTileSize) {
      Bits words[kTileSize];
      for (int64_t i = 0; i < kTileSize; ++i) words[i] = pair(scores, rows, 2 * i, column);
      transpose(words);
      for (int64_t i = 0; i < kTileSize; ++i) store_words(scores_.data() + (column + i) * kRows + filled_, words[i]);
    }
  }

  // B: [pair of rows][d][2].
  void pair_vectors(const Rows<BFloat16>& vectors) {
    const BFloat16* from = vectors.data;
    BFloat16* to = vectors_.data() + filled_ * width_;
    for (int64_t row = 0; row < kBlockRows; row += 2, from += 2 * vectors.row, to += 2 * width_) {
      for (int64_t d = 0; d < width_; d += kLanes) store_words(to + 2 * d, pairs(load_bits(from + d), load_bits(from + vectors.row + d)));
    }
  }

  // Rows `row` and `row` + 1 of the scores, as far as there are rows.
  OCL_INLINE Bits pair(const float* scores, int64_t rows, int64_t row, int64_t column) const {
    const float* from = scores + row * columns_ + column;
    return pairs(row < rows ? narrow_to_bfloat16(load(from)) : Halves{},
                 row + 1 < rows ? narrow_to_bfloat16(load(from + columns_)) : Halves{});
  }

  void multiply() {
    if (by_column_) {
      multiply_tiles(tiles_, {{scores_.data() + first_ * kRows, kRows, vectors_.data(), 2 * width_, filled_}}, wanted_, width_,
                     {sums_.data() + first_ * width_, width_, add_});
    } else {
      multiply_tiles(tiles_, {{vectors_.data(), kRows, scores_.data() + 2 * first_, 2 * columns_, filled_}}, width_, last_ - first_,
                     {sums_.data() + first_, columns_, add_});
    }
    filled_ = 0, add_ = true;
  }

  Tiles& tiles_;
  int64_t width_, columns_, first_, last_, wanted_;  // wanted: columns
  bool by_column_;
  Scratch<BFloat16> vectors_, scores_;
  Scratch<float> sums_;
  int64_t filled_ = 0;
  bool add_ = false;
};

// Sums of one task for the gradients of keys and values.
template <class Tiles>
class TileKeyGradients {
 public:
  TileKeyGradients(const RegisterAttention& in, const Wanted& wanted, Tiles& tiles)
      : in_(in),
        wanted_(wanted),
        layout_(in),
        offsets_(in, wanted, layout_.sums.width),
        keys_(sums_over_rows(wanted.key, wanted.register_key, tiles)),
        values_(sums_over_rows(wanted.value, wanted.register_value, tiles)) {}

  void begin(float* sums) {
    task_ = sums;
    keys_.begin();
    values_.begin();
  }

  void add(const Block<BFloat16>& block) {
    keys_.add(block.query, block.grad_scores, block.rows);
    values_.add(block.grad_output, block.attention, block.rows);
  }

  void end() {
    keys_.end();
    values_.end();
    const auto part = [&](bool wanted, int64_t offset) { return wanted ? task_ + offset : nullptr; };
    write(keys_, part(wanted_.key, offsets_.key), part(wanted_.register_key, offsets_.register_key));
    write(values_, part(wanted_.value, offsets_.value), part(wanted_.register_value, offsets_.register_value));
  }

 private:
  TileSumsOverRows<Tiles> sums_over_rows(bool slots, bool registers, Tiles& tiles) const {
    const int64_t first = slots ? 0 : layout_.sums.slots / kTileSize * kTileSize;
    const int64_t last = registers ? layout_.sums.columns : slots ? in_.K : first;
    return {layout_, first, last, tiles};
  }

  void write(const TileSumsOverRows<Tiles>& sums, float* slots, float* registers) const {
    const int64_t width = layout_.sums.width, first_register = layout_.sums.slots;
    sums.write([&](int64_t column) -> float* {
      if (column < in_.K) return slots != nullptr ? slots + column * width : nullptr;
      return column >= first_register && registers != nullptr ? registers + (column - first_register) * width : nullptr;
    });
  }

  const RegisterAttention& in_;
  Wanted wanted_;
  TileLayout layout_;
  SumLayout offsets_;
  TileSumsOverRows<Tiles> keys_, values_;
  float* task_ = nullptr;
};

// Queries enter the products as they are, but with the sign of the scale, so that a larger product is a larger score.
template <class Tiles>
class TileArithmetic {
 public:
  using Element = BFloat16;
  static constexpr Exp2 kExp2 = Exp2::coarse;
  using Panels = TilePanels;
  using KeyGradients = TileKeyGradients<Tiles>;

  explicit TileArithmetic(const RegisterAttention& in) : in_(in), layout_(in), weights_(kBlockRows * layout_.sums.columns) {
    std::fill_n(weights_.data(), kBlockRows * layout_.sums.columns, BFloat16{});
  }

  static Layout layout(const RegisterAttention& in) { return TileLayout(in).sums; }
  static int64_t row_size(const RegisterAttention& in) { return TileLayout(in).depth; }
  // Makes a score an exponent of 2. Never 0, so that -infinity stays what it is.
  static float score_factor(const RegisterAttention& in) { return std::max(std::abs(in.scale) * kLog2E, FLT_MIN); }
  // Makes the sum of dS query the gradient of a key.
  static float key_factor(const RegisterAttention& in) { return std::abs(in.scale); }

  KeyGradients key_gradients(const Wanted& wanted) { return {in_, wanted, tiles_}; }

  Rows<BFloat16> query(const void* from, int64_t stride, int64_t rows, BFloat16* to) const {
    return load_rows(from, stride, rows, in_.scale < 0 ? 0x8000 : 0, to);
  }

  Rows<BFloat16> grad_output(const void* from, int64_t stride, int64_t rows, BFloat16* to) const {
    return load_rows(from, stride, rows, 0, to);
  }

  // scores = rows panel^T
  void scores(const Rows<BFloat16>& rows, int64_t num_rows, const TilePanels& panels, int64_t image, int64_t head, float* scores) {
    panels.multiply_scores(tiles_, rows, round_up(num_rows, kTileSize), image, head, scores);
  }

  // Takes the elements of scores that `weighted` will multiply, each at its place in the scores.
  struct Weights {
    OCL_INLINE void store(int64_t i, Floats score) const { ocl::store(data + i, score); }
    BFloat16* data;
  };
  Weights weights() const { return {weights_.data()}; }

  // rows = scores panel, for the scores that `weights` took
  void weighted(const float*, int64_t num_rows, const TilePanels& panels, int64_t image, int64_t head, float* rows) {
    panels.multiply_rows(tiles_, weights_.data(), round_up(num_rows, kTileSize), image, head, rows);
  }

 private:
  // A whole block is taken as it lies, where no product reads past the end of a row. Otherwise a copy, in which zeros follow the
  // last element of a row, and the last row up to kBlockRows.
  Rows<BFloat16> load_rows(const void* from, int64_t stride, int64_t rows, uint16_t flip, BFloat16* to) const {
    const auto* elements = static_cast<const BFloat16*>(from);
    if (rows == kBlockRows && flip == 0 && in_.D % std::max(Tiles::kSteps, kTileSize) == 0) return {elements, stride};
    copy_rows(elements, stride, rows, in_.D, flip, to, layout_.depth);
    std::fill_n(to + rows * layout_.depth, (kBlockRows - rows) * layout_.depth, BFloat16{});
    return {to, layout_.depth};
  }

  const RegisterAttention& in_;
  TileLayout layout_;
  Tiles tiles_;
  Scratch<BFloat16> weights_;
};

}  // namespace
}  // namespace ocl
