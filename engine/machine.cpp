#include "engine/machine.hpp"

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/tensor.hpp"

namespace gradgram {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The shortest of several runs: interruptions only ever lengthen one. At least three, more while the budget
/// lasts.
double best_seconds(double budget, const std::function<void()>& work) {
  double best = seconds_of(work);
  double spent = best;
  for (int run = 1; run < 3 || spent < budget; ++run) {
    const double seconds = seconds_of(work);
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

template <class T>
double fma_rate(Isa isa, double budget) {
  const simd::KernelTable<T>& table = kernels<T>(isa);
  T sink = 1;
  double operations = 0;
  const double seconds = best_seconds(budget, [&] { operations = table.fma_peak(20000, &sink); });
  return operations / seconds;
}

template <class T>
struct Product {
  explicit Product(std::size_t size)
      : size(size), a(Shape{size, size}), b(Shape{size, size}), c(Shape{size, size}) {
    // Anything but zeros and subnormals.
    for (std::size_t i = 0; i < a.span().size(); ++i) {
      a.data()[i] = static_cast<T>(static_cast<double>(i % 17) * 0.125 - 1);
      b.data()[i] = static_cast<T>(static_cast<double>(i % 13) * 0.125 - 0.75);
    }
  }
  void run() {
    blas::gemm(blas::Transpose::No, blas::Transpose::No, size, size, size, T(1), a.data(), size, b.data(),
               size, T(0), c.data(), size);
  }
  double operations() const { return 2.0 * static_cast<double>(size * size) * static_cast<double>(size); }

  std::size_t size;
  Tensor<T> a, b, c;
};

template <class T>
double gemm_rate(std::size_t size, double budget) {
  Product<T> product(size);
  product.run();
  return product.operations() / best_seconds(budget, [&] { product.run(); });
}

double gemm_rate_of_all(const Workers& workers, std::size_t size, double budget) {
  std::vector<Product<float>> products;
  products.reserve(workers.count());
  for (std::size_t i = 0; i < workers.count(); ++i) products.emplace_back(size);
  // Several products a piece: starting the threads is not what is measured.
  constexpr int kRepeats = 3;
  const auto all = [&] {
    workers.run(products.size(), [&](std::size_t index, std::size_t) {
      for (int repeat = 0; repeat < kRepeats; ++repeat) products[index].run();
    });
  };
  all();
  return kRepeats * static_cast<double>(products.size()) * products[0].operations() /
         best_seconds(budget, all);
}

double stream_rate(double budget) {
  const std::size_t length = std::size_t{10} << 20;
  const Tensor<float> x(Shape{length});
  Tensor<float> y(Shape{length});
  const double seconds =
      best_seconds(budget, [&] { kernels<float>().axpy(0.5F, x.data(), y.data(), length); });
  return 3.0 * sizeof(float) * static_cast<double>(length) / seconds;
}

}  // namespace

MachineRates measure_rates(const Workers& workers) {
  MachineRates rates;
  rates.threads = workers.count();
  rates.fma_f32 = fma_rate<float>(active_isa(), 0.05);
  rates.sgemm = gemm_rate<float>(1024, 0.1);
  rates.sgemm_all = gemm_rate_of_all(workers, 1024, 0.15);
  rates.fma_f64 = fma_rate<double>(active_isa(), 0.05);
  rates.dgemm = gemm_rate<double>(1024, 0.1);
  rates.bandwidth = stream_rate(0.05);
  return rates;
}

template <class T>
double probe_fma_rate(Isa isa) {
  return fma_rate<T>(isa, 0.002);
}
template double probe_fma_rate<float>(Isa);
template double probe_fma_rate<double>(Isa);

template <class T>
double probe_gemm_rate() {
  return gemm_rate<T>(512, 0.005);
}
template double probe_gemm_rate<float>();
template double probe_gemm_rate<double>();

}  // namespace gradgram
