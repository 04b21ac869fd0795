#pragma once

#include <cstddef>
#include <vector>

/// The training of a linear model, written out in its parameters: f(x) = f_0(x) + features(x) . theta from
/// theta = 0 under 1/2 sum r^2 + ridge/2 ||theta||^2. Plain loops in double.
namespace gradgram::reference {

struct LinearModel {
  std::size_t features = 0;
  std::vector<double> train;         ///< [n, features]
  std::vector<double> test;          ///< [m, features]
  std::vector<double> y;             ///< [n]
  std::vector<double> initial;       ///< [n]
  std::vector<double> initial_test;  ///< [m]
  double ridge = 0;
};

struct LinearOutputs {
  std::vector<double> train;
  std::vector<double> test;
};

inline std::vector<double> outputs(const std::vector<double>& rows, const std::vector<double>& initial,
                                   const std::vector<double>& theta) {
  std::vector<double> result = initial;
  for (std::size_t i = 0; i < result.size(); ++i) {
    for (std::size_t p = 0; p < theta.size(); ++p) result[i] += rows[i * theta.size() + p] * theta[p];
  }
  return result;
}

inline std::vector<double> gradient(const LinearModel& model, const std::vector<double>& theta) {
  const std::vector<double> f = outputs(model.train, model.initial, theta);
  std::vector<double> result(theta.size());
  for (std::size_t p = 0; p < theta.size(); ++p) {
    result[p] = model.ridge * theta[p];
    for (std::size_t i = 0; i < f.size(); ++i) {
      result[p] += model.train[i * theta.size() + p] * (f[i] - model.y[i]);
    }
  }
  return result;
}

inline LinearOutputs read_out(const LinearModel& model, const std::vector<double>& theta) {
  return {outputs(model.train, model.initial, theta), outputs(model.test, model.initial_test, theta)};
}

/// Gradient descent with momentum as torch.optim.SGD writes it; momentum 0 is plain.
inline LinearOutputs descend(const LinearModel& model, double rate, double momentum, bool nesterov,
                             std::size_t steps) {
  std::vector<double> theta(model.features, 0.0);
  std::vector<double> velocity(model.features, 0.0);
  for (std::size_t t = 0; t < steps; ++t) {
    const std::vector<double> g = gradient(model, theta);
    for (std::size_t p = 0; p < theta.size(); ++p) {
      velocity[p] = momentum * velocity[p] + g[p];
      theta[p] -= rate * (nesterov ? g[p] + momentum * velocity[p] : velocity[p]);
    }
  }
  return read_out(model, theta);
}

/// Gradient flow by the classical Runge-Kutta method: error about (rate * lambda_max * time / steps)^4.
inline LinearOutputs flow(const LinearModel& model, double rate, double time, std::size_t steps) {
  std::vector<double> theta(model.features, 0.0);
  const double h = -rate * time / static_cast<double>(steps);
  const auto moved = [&](const std::vector<double>& by, double factor) {
    std::vector<double> result = theta;
    for (std::size_t p = 0; p < result.size(); ++p) result[p] += factor * by[p];
    return result;
  };
  for (std::size_t t = 0; t < steps; ++t) {
    const std::vector<double> k1 = gradient(model, theta);
    const std::vector<double> k2 = gradient(model, moved(k1, h / 2));
    const std::vector<double> k3 = gradient(model, moved(k2, h / 2));
    const std::vector<double> k4 = gradient(model, moved(k3, h));
    for (std::size_t p = 0; p < theta.size(); ++p)
      theta[p] += h / 6 * (k1[p] + 2 * k2[p] + 2 * k3[p] + k4[p]);
  }
  return read_out(model, theta);
}

/// Solution of a x = b by Gauss-Jordan elimination with pivoting; a [n, n], b [n, c], both by value.
inline std::vector<double> solve(std::vector<double> a, std::vector<double> b, std::size_t n) {
  const std::size_t c = n == 0 ? 0 : b.size() / n;
  const auto size = [](double value) { return value < 0 ? -value : value; };
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k + 1; i < n; ++i) {
      if (size(a[i * n + k]) > size(a[pivot * n + k])) pivot = i;
    }
    for (std::size_t j = 0; j < n; ++j) std::swap(a[k * n + j], a[pivot * n + j]);
    for (std::size_t j = 0; j < c; ++j) std::swap(b[k * c + j], b[pivot * c + j]);
    for (std::size_t i = 0; i < n; ++i) {
      if (i == k) continue;
      const double factor = a[i * n + k] / a[k * n + k];
      for (std::size_t j = 0; j < n; ++j) a[i * n + j] -= factor * a[k * n + j];
      for (std::size_t j = 0; j < c; ++j) b[i * c + j] -= factor * b[k * c + j];
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < c; ++j) b[i * c + j] /= a[i * n + i];
  }
  return b;
}

}  // namespace gradgram::reference
