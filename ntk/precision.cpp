#include "ntk/precision.hpp"

namespace gradgram::ntk {

template <>
double entry_error<float>() {
  return 2e-6;
}

template <>
double entry_error<double>() {
  return 4e-15;
}

}  // namespace gradgram::ntk
