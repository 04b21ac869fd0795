#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <optional>

/// How long a kernel still takes.
namespace gradgram::ntk {

/// The kinds of a kernel's work, which run at rates of their own and not at the same time.
enum class WorkKind {
  Passes,   ///< gradients of examples
  Tiles,    ///< their products
  Writing,  ///< spilled factors to the scratch file
  Reading,  ///< and back
};
inline constexpr std::size_t kWorkKinds = 4;

/// How far it is: what this call has done and what it has to do, without what earlier calls left. All kinds
/// are counted in one unit, roughly proportional to the time they are expected to take.
struct KernelWork {
  WorkKind kind = WorkKind::Passes;       ///< of what was done since the last report
  std::array<double, kWorkKinds> done{};  ///< by WorkKind
  std::array<double, kWorkKinds> total{};
};
/// Called from one thread at a time.
using WorkProgress = std::function<void(const KernelWork&)>;

/// Learns the rate of each kind from reports, the latest third of its work counting most, and tells what is
/// left. A kind that has not been met yet is taken to be off by as much as the other one of the processor (of
/// the disk), or when that is new as well as all the others together. No clock of its own.
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
  std::array<Kind, kWorkKinds> kinds_;
  double now_ = 0;
};

}  // namespace gradgram::ntk
