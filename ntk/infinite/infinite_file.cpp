#include "ntk/infinite/infinite_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/memory_account.hpp"

namespace gradgram::ntk {
namespace {

/// Tiles that are computed before they are written, side by side, and their sides. Both are multiples of the
/// tiles in which InfiniteKernel computes vectors and images with flatten, and take milliseconds to a second;
/// an entry of an image with pooling takes as long as thousands of the others.
constexpr std::size_t kTile = 512;
constexpr std::size_t kBatch = 8;
constexpr std::size_t kPooledTile = 32;

bool pools(const std::vector<models::Layer>& layers) {
  return std::any_of(layers.begin(), layers.end(), [](const models::Layer& layer) {
    return layer.kind == models::LayerKind::AveragePool ||
           layer.kind == models::LayerKind::GlobalAveragePool || pools(layer.body) || pools(layer.shortcut);
  });
}

/// How tiles are made.
struct Batches {
  std::size_t tile = 1;   ///< examples on a side
  std::size_t count = 1;  ///< tiles at once

  Batches(const models::Model& model, std::size_t longest) {
    const bool pooled = pools(model.layers());
    count = pooled ? 1 : kBatch;
    tile = std::min(pooled ? kPooledTile : kTile, std::max<std::size_t>(1, longest));
  }
  /// Tiles on their way into the file.
  template <class T>
  std::size_t bytes(std::size_t workers) const {
    const std::size_t area = tile * tile;
    return count * area * sizeof(T) + workers * area * (sizeof(double) + sizeof(T));
  }
};

template <class T>
class InfiniteTiles final : public TileSource {
 public:
  InfiniteTiles(const models::Model& model, const models::NetworkOptions& options, TensorView<const T> x,
                const TensorView<const T>* versus, const InfiniteOptions& what, const Workers& workers)
      : model_(model),
        options_(options),
        x_(x),
        versus_(versus),
        what_(what),
        workers_(workers),
        batches_(model, std::max(rows(), columns())) {
    if (what.nngp == what.ntk) {
      throw ArgumentError(std::string("infinite_kernel_to_file: ") + (what.ntk ? "both" : "neither") +
                          " of nngp and ntk asked for; a file holds one");
    }
    // Otherwise this is found out before the first tile.
    if (rows() == 0 || columns() == 0) kernel(what.memory);
  }

  TileGrid grid() const override { return {rows(), columns(), versus_ == nullptr, 0, batches_.tile}; }
  void follow(std::size_t tile) override { batches_.tile = tile; }

  Facts facts() const override {
    Facts facts = facts_of_process<T>();
    facts.emplace_back("kernel", fmt::format("{} of infinite width, {}", what_.ntk ? "ntk" : "nngp",
                                             versus_ == nullptr ? "of the inputs with themselves"
                                                                : "of two sets of inputs"));
    facts.emplace_back("model", model_.to_text());
    facts.emplace_back("weight variance", fmt::format("{:.17g}", options_.weight_variance));
    facts.emplace_back("bias variance", fmt::format("{:.17g}", options_.bias_variance));
    facts.emplace_back("inputs (checksum)", fingerprint<T>(x_));
    if (versus_ != nullptr) facts.emplace_back("second inputs (checksum)", fingerprint<T>(*versus_));
    return facts;
  }

  void produce(TileStore& store) override {
    std::vector<TilePlace> places;
    std::size_t total = 0;
    const std::size_t side = batches_.tile;
    for (std::size_t row = 0; row < rows(); row += side) {
      const std::size_t end = versus_ == nullptr ? row + 1 : columns();
      for (std::size_t column = 0; column < end; column += side) {
        const TilePlace place{row, std::min(side, rows() - row), column, std::min(side, columns() - column),
                              versus_ == nullptr && row == column};
        if (store.has(place)) continue;
        places.push_back(place);
        total += entries(place);
      }
    }
    if (places.empty()) return;

    InfiniteKernel<T> prepared = kernel(memory_beside_tiles());
    const std::size_t area = side * side;
    const std::size_t batch = batches_.count;
    Tensor<T> values(Shape{batch, area});
    std::vector<Tensor<double>> wide;
    for (std::size_t w = 0; w < workers_.count(); ++w) wide.emplace_back(Shape{area});
    std::size_t done = 0;
    for (std::size_t first = 0; first < places.size(); first += batch) {
      const std::size_t count = std::min(batch, places.size() - first);
      std::size_t computed = 0;
      std::exception_ptr failure;
      try {
        for (; computed < count; ++computed) {
          const TilePlace& place = places[first + computed];
          compute(prepared, place, values.data() + computed * area, done, total);
          done += entries(place);
        }
      } catch (...) {
        failure = std::current_exception();
      }
      // What is computed is kept, whatever ended the rest.
      workers_.run(computed, [&](std::size_t t, std::size_t worker) {
        const TilePlace& place = places[first + t];
        const T* const from = values.data() + t * area;
        double* const to = wide[worker].data();
        std::transform(from, from + place.rows * place.columns, to,
                       [](T value) { return static_cast<double>(value); });
        store.put({.place = place, .sums = {to, place.rows, place.columns, place.columns}}, worker);
      });
      if (failure) std::rethrow_exception(failure);
    }
  }

 private:
  void compute(InfiniteKernel<T>& prepared, const TilePlace& place, T* values, std::size_t done,
               std::size_t total) const {
    InfiniteBlock<T> block;
    (what_.ntk ? block.ntk : block.nngp) = values;
    block.stride = place.columns;
    Progress progress;
    if (what_.progress) {
      progress = [&](std::size_t pieces, std::size_t all) {
        const double share = static_cast<double>(pieces) / static_cast<double>(all);
        what_.progress(done + static_cast<std::size_t>(share * static_cast<double>(entries(place))), total);
      };
    }
    prepared.block({place.row, place.row + place.rows}, {place.column, place.column + place.columns}, block,
                   progress);
  }
  InfiniteKernel<T> kernel(std::size_t memory) const {
    InfiniteOptions held = what_;
    held.progress = {};
    held.memory = memory;
    return versus_ == nullptr ? InfiniteKernel<T>(model_, options_, x_, held, workers_)
                              : InfiniteKernel<T>(model_, options_, x_, *versus_, held, workers_);
  }
  std::size_t rows() const { return x_.shape().rank() == 0 ? 0 : x_.shape()[0]; }
  std::size_t columns() const { return versus_ == nullptr ? rows() : versus_->shape()[0]; }
  static std::size_t entries(const TilePlace& place) {
    return place.diagonal ? place.rows * (place.rows + 1) / 2 : place.rows * place.columns;
  }

  /// What is left of the budget for InfiniteKernel. Throws BudgetError.
  std::size_t memory_beside_tiles() const {
    const std::size_t budget = what_.memory == 0 ? cpu_info().memory_bytes / 2 : what_.memory;
    MemoryAccount account("infinite_kernel_to_file", budget);
    account.hold(batches_.template bytes<T>(workers_.count()));
    const std::size_t room =
        account.phase("what belongs to the examples",
                      infinite_kernel_bytes<T>(model_, options_, rows(), versus_ == nullptr ? 0 : columns(),
                                               what_, workers_.count(), false));
    account.check();
    return room;
  }

  const models::Model& model_;
  const models::NetworkOptions& options_;
  TensorView<const T> x_;
  const TensorView<const T>* versus_;
  const InfiniteOptions& what_;
  const Workers& workers_;
  Batches batches_;
};

template <class T>
KernelFile to_file(const models::Model& model, const models::NetworkOptions& options, TensorView<const T> x,
                   const TensorView<const T>* versus, const InfiniteOptions& what,
                   const KernelDestination& destination, const Workers& workers) {
  InfiniteTiles<T> source(model, options, x, versus, what, workers);
  return tiles_to_file<T>(source, destination, workers, what.stop);
}

}  // namespace

template <class T>
std::size_t infinite_file_bytes(const models::Model& model, const models::NetworkOptions& options,
                                std::size_t rows, std::size_t columns, const InfiniteOptions& what,
                                std::size_t workers) {
  return checked_add(infinite_kernel_bytes<T>(model, options, rows, columns, what, workers, false),
                     Batches(model, std::max(rows, columns)).bytes<T>(workers),
                     "infinite_kernel_to_file: bytes");
}

template <class T>
KernelFile infinite_kernel_to_file(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, const InfiniteOptions& what,
                                   const KernelDestination& destination, const Workers& workers) {
  return to_file<T>(model, options, x, nullptr, what, destination, workers);
}

template <class T>
KernelFile infinite_kernel_to_file(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, TensorView<const T> versus,
                                   const InfiniteOptions& what, const KernelDestination& destination,
                                   const Workers& workers) {
  return to_file<T>(model, options, x, &versus, what, destination, workers);
}

#define GRADGRAM_INSTANTIATE(T)                                                                      \
  template std::size_t infinite_file_bytes<T>(const models::Model&, const models::NetworkOptions&,   \
                                              std::size_t, std::size_t, const InfiniteOptions&,      \
                                              std::size_t);                                          \
  template KernelFile infinite_kernel_to_file(const models::Model&, const models::NetworkOptions&,   \
                                              TensorView<const T>, const InfiniteOptions&,           \
                                              const KernelDestination&, const Workers&);             \
  template KernelFile infinite_kernel_to_file(                                                       \
      const models::Model&, const models::NetworkOptions&, TensorView<const T>, TensorView<const T>, \
      const InfiniteOptions&, const KernelDestination&, const Workers&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk
