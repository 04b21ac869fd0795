#include "ntk/precision.hpp"

#include <algorithm>

namespace gradgram::ntk {

template <>
double entry_error<float>() {
  return 2e-6;
}

template <>
double entry_error<double>() {
  return 4e-15;
}

template <class T>
double entry_error(const Module<T>& module) {
  const ParameterSet<T>& parameters = module.parameters();
  std::size_t weights = 0;
  for (std::size_t p = 0; p < parameters.count(); ++p)
    weights += parameters.value(p).shape().rank() > 1 ? 1 : 0;
  const double depth = std::max(1.0, static_cast<double>(weights) / static_cast<double>(kShallow));
  return entry_error<T>() * depth * depth;
}

template double entry_error(const Module<float>&);
template double entry_error(const Module<double>&);

}  // namespace gradgram::ntk
