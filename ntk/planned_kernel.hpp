#pragma once

#include "ntk/kernel.hpp"
#include "ntk/plan.hpp"
#include "ntk/tile_store.hpp"

/// kernel() in two steps, for whoever wants to see or change the plan in between.
namespace gradgram::ntk {

/// The plan that kernel() would follow; versus = nullptr for the symmetric kernel. x must hold an example,
/// the options must be valid. With `result_in_file` the kernel itself takes no memory, but every worker holds
/// one more tile in T (PlanRequest). Throws BudgetError.
template <class T>
Plan plan_for(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
              const KernelOptions& options, std::size_t workers, bool result_in_file = false);

/// The least budget (KernelOptions::memory) that kernel() of `rows` examples, against `columns` others or,
/// for 0, with themselves, does not refuse; with `result_in_file` that kernel_to_file() does not, as long as
/// no unfinished file gives it larger tiles. What is counted is what Plan::total_bytes() counts.
template <class T>
std::size_t least_kernel_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t rows,
                               std::size_t columns, const KernelOptions& options, std::size_t workers,
                               bool result_in_file = false);
/// The same for diagonal().
template <class T>
std::size_t least_diagonal_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                                 const KernelOptions& options, std::size_t workers);

/// The plan that kernel_to_file() would follow from the beginning.
template <class T>
Plan kernel_file_plan(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
                      const KernelOptions& options, std::size_t workers);
/// The plan that diagonal() would follow.
template <class T>
Plan diagonal_plan(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                   std::size_t workers);

/// Follows a plan made for these arguments. Its block sizes (resident, streamed, tape_block, tile) may have
/// been changed to any positive numbers, and `round_seeds` where all examples are held at once; the result
/// has the same bits.
template <class T>
KernelMatrix<T> planned_kernel(const Module<T>& module, TensorView<const T> x,
                               const TensorView<const T>* versus, const KernelOptions& options,
                               const Plan& plan, const Workers& workers);

/// The same into `store`, tile by tile in an order of its own; tiles that it has, and gradients that only
/// they would need, are not computed. When it throws, every tile that was put is whole.
template <class T>
void planned_tiles(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
                   const KernelOptions& options, const Plan& plan, const Workers& workers, TileStore& store);

}  // namespace gradgram::ntk
