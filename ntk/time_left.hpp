#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <optional>

/// How long a kernel still takes.
namespace gradgram::ntk {

/// A kernel's work is of two kinds, which run at rates of their own and not at the same time.
enum class WorkKind {
  Passes,  ///< gradients of examples
  Tiles,   ///< their products
};

/// How far it is: what this call has done and what it has to do, without what earlier calls left. Both kinds
/// are counted in one unit, roughly proportional to the time they are expected to take.
struct KernelWork {
  WorkKind kind = WorkKind::Passes;  ///< of what was done since the last report
  std::array<double, 2> done{};      ///< by WorkKind
  std::array<double, 2> total{};
};
/// Called from one thread at a time.
using WorkProgress = std::function<void(const KernelWork&)>;

/// Learns the rate of each kind from reports, the latest third of its work counting most, and tells what is
/// left. A kind that has not been met yet is taken to run at the other one's rate. No clock of its own.
class TimeLeft {
 public:
  /// `now`: seconds since the work began. Time since the report before counts as this one's kind.
  void report(const KernelWork& work, double now);
  /// Seconds; nothing before the first piece is done.
  std::optional<double> left() const;
  /// Of the time that it takes in all, as far as is known; 0 to 1.
  double share() const;

 private:
  struct Kind {
    double done = 0, total = 0;
    double units = 0, seconds = 0;  ///< fading
    double waiting = 0;             ///< seconds since its last piece
    std::size_t pieces = 0;
  };
  std::array<Kind, 2> kinds_;
  double now_ = 0;
};

}  // namespace gradgram::ntk
