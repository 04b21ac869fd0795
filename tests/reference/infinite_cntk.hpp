#pragma once

#include <cstddef>
#include <vector>

/// The recursion of the convolutional neural tangent kernel (Arora et al. 2019, section 4), entry by entry.
namespace gradgram::reference {

struct CntkModel {
  std::size_t layers =
      1;  ///< convolutions kernel x kernel, stride 1, zero padding to the same size, each with relu
  std::size_t kernel = 3;
  double weight_variance = 2;
  double bias_variance = 0;
  bool pooling = true;  ///< global average pooling before the last dense layer, or flattening
};

struct CntkEntry {
  double nngp = 0, ntk = 0;
};

/// x, y: [height][width][channels].
CntkEntry cntk(const CntkModel& model, const std::vector<double>& x, const std::vector<double>& y,
               std::size_t height, std::size_t width, std::size_t channels);

}  // namespace gradgram::reference
