#include "ntk/infinite/infinite.hpp"

#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>

#include "engine/cpu.hpp"
#include "engine/memory_account.hpp"
#include "ntk/infinite/builder.hpp"
#include "ntk/infinite/inner_precision.hpp"
#include "ntk/infinite/inputs.hpp"
#include "ntk/infinite/memory.hpp"
#include "ntk/infinite/program.hpp"

namespace gradgram::ntk {
namespace infinite {
namespace {

template <class To, class From>
Tensor<To> converted(TensorView<const From> from) {
  Tensor<To> to(from.shape());
  std::transform(from.data(), from.data() + from.size(), to.data(),
                 [](From v) { return static_cast<To>(v); });
  return to;
}

}  // namespace
}  // namespace infinite

template <class T>
struct InfiniteKernel<T>::Implementation {
  std::unique_ptr<infinite::Builder<T>> narrow;
  std::unique_ptr<infinite::Builder<double>> wide;

  Implementation(const models::Model& model, const models::NetworkOptions& options, TensorView<const T> x,
                 const TensorView<const T>* versus, const InfiniteOptions& what, const Workers& workers,
                 bool held) {
    infinite::Program program = infinite::compile(model, options, what.ntk);
    const bool whole = infinite::holds_examples(program, x) &&
                       (versus == nullptr || infinite::holds_examples(program, *versus));
    if (whole) {
      const std::size_t budget = what.memory == 0 ? cpu_info().memory_bytes / 2 : what.memory;
      const std::size_t columns = versus == nullptr ? 0 : versus->shape()[0];
      MemoryAccount account("infinite_kernel", budget);
      account.phase(held ? "the kernel" : "what belongs to the examples",
                    infinite::required_bytes<T>(program, x.shape()[0], columns, what, workers.count(), held));
      account.check();
    }
    if constexpr (std::is_same_v<T, float>) {
      if (infinite::runs_wide<T>(program) || (whole && infinite::mixes_logistics(program, x, versus))) {
        const Tensor<double> wide_x = infinite::converted<double, float>(x);
        Tensor<double> wide_versus;
        if (versus != nullptr) wide_versus = infinite::converted<double, float>(*versus);
        const TensorView<const double> view = std::as_const(wide_versus).view();
        wide = std::make_unique<infinite::Builder<double>>(std::move(program), wide_x.view(),
                                                           versus == nullptr ? nullptr : &view, what, workers,
                                                           infinite_entry_error<T>());
        wide->narrow_planes();
        return;
      }
    }
    narrow = std::make_unique<infinite::Builder<T>>(std::move(program), x, versus, what, workers,
                                                    infinite_entry_error<T>());
  }
  template <class Call>
  auto visit(const Call& call) const {
    return wide != nullptr ? call(*wide) : call(*narrow);
  }
};

template <class T>
InfiniteKernel<T>::InfiniteKernel(const models::Model& model, const models::NetworkOptions& options,
                                  TensorView<const T> x, const InfiniteOptions& what, const Workers& workers)
    : implementation_(std::make_unique<Implementation>(model, options, x, nullptr, what, workers, false)) {}
template <class T>
InfiniteKernel<T>::InfiniteKernel(const models::Model& model, const models::NetworkOptions& options,
                                  TensorView<const T> x, TensorView<const T> versus,
                                  const InfiniteOptions& what, const Workers& workers)
    : implementation_(std::make_unique<Implementation>(model, options, x, &versus, what, workers, false)) {}
template <class T>
InfiniteKernel<T>::InfiniteKernel(InfiniteKernel&&) noexcept = default;
template <class T>
InfiniteKernel<T>& InfiniteKernel<T>::operator=(InfiniteKernel&&) noexcept = default;
template <class T>
InfiniteKernel<T>::~InfiniteKernel() = default;

template <class T>
std::size_t InfiniteKernel<T>::rows() const noexcept {
  return implementation_->visit([](const auto& builder) { return builder.rows(); });
}
template <class T>
std::size_t InfiniteKernel<T>::columns() const noexcept {
  return implementation_->visit([](const auto& builder) { return builder.columns(); });
}
template <class T>
bool InfiniteKernel<T>::symmetric() const noexcept {
  return implementation_->visit([](const auto& builder) { return builder.symmetric(); });
}
template <class T>
void InfiniteKernel<T>::block(IndexRange rows, IndexRange columns, const InfiniteBlock<T>& out,
                              const Progress& progress) {
  implementation_->visit([&](auto& builder) { builder.block(rows, columns, out, progress); });
}

namespace infinite {
namespace {

template <class T>
InfiniteKernels<T> whole(const models::Model& model, const models::NetworkOptions& options,
                         TensorView<const T> x, const TensorView<const T>* versus,
                         const InfiniteOptions& what, const Workers& workers) {
  const typename InfiniteKernel<T>::Implementation prepared(model, options, x, versus, what, workers, true);
  return prepared.visit([&](auto& builder) {
    InfiniteKernels<T> result;
    const Shape shape{builder.rows(), builder.columns()};
    if (what.nngp) result.nngp = Tensor<T>(shape);
    if (what.ntk) result.ntk = Tensor<T>(shape);
    builder.block({0, builder.rows()}, {0, builder.columns()},
                  InfiniteBlock<T>{what.nngp ? result.nngp.data() : nullptr,
                                   what.ntk ? result.ntk.data() : nullptr, builder.columns()},
                  what.progress);
    return result;
  });
}

}  // namespace
}  // namespace infinite

template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, const InfiniteOptions& what,
                                   const Workers& workers) {
  return infinite::whole<T>(model, options, x, nullptr, what, workers);
}

template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, TensorView<const T> versus,
                                   const InfiniteOptions& what, const Workers& workers) {
  return infinite::whole<T>(model, options, x, &versus, what, workers);
}

template <class T>
std::size_t infinite_kernel_bytes(const models::Model& model, const models::NetworkOptions& options,
                                  std::size_t rows, std::size_t columns, const InfiniteOptions& what,
                                  std::size_t workers, bool matrices) {
  return infinite::required_bytes<T>(infinite::compile(model, options, what.ntk), rows, columns, what,
                                     workers, matrices);
}

#define GRADGRAM_INSTANTIATE(T)                                                                             \
  template std::size_t infinite_kernel_bytes<T>(const models::Model&, const models::NetworkOptions&,        \
                                                std::size_t, std::size_t, const InfiniteOptions&,           \
                                                std::size_t, bool);                                         \
  template class InfiniteKernel<T>;                                                                         \
  template InfiniteKernels<T> infinite_kernel(const models::Model&, const models::NetworkOptions&,          \
                                              TensorView<const T>, const InfiniteOptions&, const Workers&); \
  template InfiniteKernels<T> infinite_kernel(const models::Model&, const models::NetworkOptions&,          \
                                              TensorView<const T>, TensorView<const T>,                     \
                                              const InfiniteOptions&, const Workers&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk
