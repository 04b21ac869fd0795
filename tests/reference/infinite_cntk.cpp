#include "tests/reference/infinite_cntk.hpp"

#include <algorithm>
#include <cmath>

namespace gradgram::reference {
namespace {

using Image = std::vector<double>;
using Matrix = std::vector<double>;  ///< [pixels][pixels]

class Recursion {
 public:
  Recursion(const CntkModel& model, std::size_t height, std::size_t width, std::size_t channels)
      : model_(model), height_(height), width_(width), channels_(channels), pixels_(height * width) {}

  CntkEntry entry(const Image& x, const Image& y) const {
    Matrix xx = products(x, x);
    Matrix yy = products(y, y);
    Matrix xy = products(x, y);
    Matrix theta(pixels_ * pixels_, 0.0);
    for (std::size_t layer = 0; layer < model_.layers; ++layer) {
      xx = convolved(xx, model_.bias_variance);
      yy = convolved(yy, model_.bias_variance);
      xy = convolved(xy, model_.bias_variance);
      theta = convolved(theta, 0);
      Matrix next = xy;
      for (std::size_t p = 0; p < pixels_; ++p) {
        for (std::size_t q = 0; q < pixels_; ++q) {
          const std::size_t at = p * pixels_ + q;
          theta[at] += xy[at];
          double value = 0;
          double slope = 0;
          relu(xx[p * pixels_ + p], yy[q * pixels_ + q], xy[at], value, slope);
          next[at] = value;
          theta[at] *= slope;
        }
      }
      xy = next;
      xx = rectified(xx);
      yy = rectified(yy);
    }
    double nngp = 0;
    double ntk = 0;
    double count = 0;
    for (std::size_t p = 0; p < pixels_; ++p) {
      for (std::size_t q = 0; q < pixels_; ++q) {
        if (!model_.pooling && p != q) continue;
        nngp += xy[p * pixels_ + q];
        ntk += theta[p * pixels_ + q];
        count += 1;
      }
    }
    const double last = model_.weight_variance * nngp / count + model_.bias_variance;
    return {last, model_.weight_variance * ntk / count + last};
  }

 private:
  static void relu(double q, double r, double c, double& value, double& slope) {
    const double pi = std::acos(-1.0);
    const double scale = std::sqrt(q * r);
    if (scale == 0) {
      value = slope = 0;
      return;
    }
    const double cosine = std::clamp(c / scale, -1.0, 1.0);
    value = scale * (std::sqrt(1 - cosine * cosine) + cosine * (pi - std::acos(cosine))) / (2 * pi);
    slope = (pi - std::acos(cosine)) / (2 * pi);
  }
  Matrix rectified(const Matrix& c) const {
    Matrix result(c.size());
    for (std::size_t p = 0; p < pixels_; ++p) {
      for (std::size_t q = 0; q < pixels_; ++q) {
        double slope = 0;
        relu(c[p * pixels_ + p], c[q * pixels_ + q], c[p * pixels_ + q], result[p * pixels_ + q], slope);
      }
    }
    return result;
  }
  Matrix products(const Image& x, const Image& y) const {
    Matrix result(pixels_ * pixels_);
    for (std::size_t p = 0; p < pixels_; ++p) {
      for (std::size_t q = 0; q < pixels_; ++q) {
        double sum = 0;
        for (std::size_t c = 0; c < channels_; ++c) sum += x[p * channels_ + c] * y[q * channels_ + c];
        result[p * pixels_ + q] = sum / static_cast<double>(channels_);
      }
    }
    return result;
  }
  Matrix convolved(const Matrix& c, double bias) const {
    Matrix result(c.size());
    const auto k = static_cast<long>(model_.kernel);
    const long before = (k - 1) / 2;
    const auto h = static_cast<long>(height_);
    const auto w = static_cast<long>(width_);
    const auto inside = [&](long row, long column) {
      return row >= 0 && row < h && column >= 0 && column < w;
    };
    for (long py = 0; py < h; ++py) {
      for (long px = 0; px < w; ++px) {
        for (long qy = 0; qy < h; ++qy) {
          for (long qx = 0; qx < w; ++qx) {
            double sum = 0;
            for (long i = -before; i < k - before; ++i) {
              for (long j = -before; j < k - before; ++j) {
                if (!inside(py + i, px + j) || !inside(qy + i, qx + j)) continue;
                sum += c[static_cast<std::size_t>(((py + i) * w + px + j) * h * w + (qy + i) * w + qx + j)];
              }
            }
            result[static_cast<std::size_t>((py * w + px) * h * w + qy * w + qx)] =
                model_.weight_variance * sum / static_cast<double>(k * k) + bias;
          }
        }
      }
    }
    return result;
  }

  const CntkModel& model_;
  std::size_t height_, width_, channels_, pixels_;
};

}  // namespace

CntkEntry cntk(const CntkModel& model, const std::vector<double>& x, const std::vector<double>& y,
               std::size_t height, std::size_t width, std::size_t channels) {
  return Recursion(model, height, width, channels).entry(x, y);
}

}  // namespace gradgram::reference
