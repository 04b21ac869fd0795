#include "engine/parameters.hpp"

#include <algorithm>

namespace gradgram {

template <class T>
std::size_t ParameterSet<T>::add(std::string name, Tensor<T> value) {
  for (const Entry& entry : entries_) {
    if (entry.name == name) throw ArgumentError("parameters: the name `" + name + "` is taken");
  }
  const std::size_t size = checked_add(size_, value.size(), "parameters");
  entries_.push_back({std::move(name), std::move(value), size_});
  size_ = size;
  return entries_.size() - 1;
}

template <class T>
std::size_t ParameterSet<T>::find(std::string_view name) const {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].name == name) return i;
  }
  throw ArgumentError("parameters: there is no `" + std::string(name) + "` among " + std::to_string(count()) +
                      " parameters");
}

template <class T>
ParameterSet<T> ParameterSet<T>::clone() const {
  ParameterSet result;
  for (const Entry& entry : entries_)
    result.entries_.push_back({entry.name, entry.value.clone(), entry.offset});
  result.size_ = size_;
  return result;
}

template <class T>
ParameterSet<T> ParameterSet<T>::zeros() const {
  ParameterSet result;
  for (const Entry& entry : entries_) {
    result.entries_.push_back({entry.name, Tensor<T>(entry.value.shape()), entry.offset});
  }
  result.size_ = size_;
  return result;
}

template <class T>
template <class U>
ParameterSet<U> ParameterSet<T>::cast() const {
  ParameterSet<U> result;
  for (const Entry& entry : entries_) {
    Tensor<U> value(entry.value.shape());
    std::transform(entry.value.span().begin(), entry.value.span().end(), value.span().begin(),
                   [](T number) { return static_cast<U>(number); });
    result.add(entry.name, std::move(value));
  }
  return result;
}

template <class T>
void ParameterSet<T>::fill_zero() {
  for (Entry& entry : entries_) std::fill(entry.value.span().begin(), entry.value.span().end(), T(0));
}

template class ParameterSet<float>;
template class ParameterSet<double>;
template ParameterSet<float> ParameterSet<float>::cast() const;
template ParameterSet<double> ParameterSet<float>::cast() const;
template ParameterSet<float> ParameterSet<double>::cast() const;
template ParameterSet<double> ParameterSet<double>::cast() const;

}  // namespace gradgram
