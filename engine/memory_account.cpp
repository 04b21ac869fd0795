#include "engine/memory_account.hpp"

#include <algorithm>
#include <utility>

#include "engine/error.hpp"
#include "engine/shape.hpp"

namespace gradgram {

MemoryAccount::MemoryAccount(std::string call, std::size_t budget)
    : call_(std::move(call)), budget_(budget) {}

void MemoryAccount::hold(std::size_t bytes) {
  held_ = checked_add(held_, bytes, "memory account");
}

void MemoryAccount::release(std::size_t bytes) {
  held_ -= std::min(held_, bytes);
}

std::size_t MemoryAccount::phase(std::string_view name, std::size_t least) {
  const std::size_t needed = checked_add(held_, least, "memory account");
  if (needed > least_) {
    least_ = needed;
    largest_ = name;
    beside_ = held_;
  }
  return std::max(least, budget_ > held_ ? budget_ - held_ : 0);
}

void MemoryAccount::check() const {
  if (least_ <= budget_) return;
  throw BudgetError(call_ + ": the memory budget (" + std::to_string(budget_) + " bytes) cannot hold " +
                    largest_ + "; the least that would do is " + std::to_string(least_) + " bytes" +
                    (beside_ == 0 ? "" : ", of which " + std::to_string(beside_) + " are held beside it"));
}

}  // namespace gradgram
