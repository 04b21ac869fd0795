#include "cli/kernel_input.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <type_traits>
#include <utility>

#include "cli/inputs.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"
#include "engine/npy.hpp"
#include "ntk/packed.hpp"
#include "ntk/precision.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

/// The .json beside the kernel or, of a symbolic link, beside what it leads to.
std::filesystem::path description_of(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::path there = beside(behind_links(path), ".json");
  return std::filesystem::exists(there, error) ? there : beside(path, ".json");
}

/// What it says; null when there is none.
ordered_json sidecar_of(const std::filesystem::path& sidecar) {
  std::error_code error;
  if (!std::filesystem::exists(sidecar, error)) return nullptr;
  const std::vector<std::byte> bytes = read_file(sidecar, std::size_t{1} << 26);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  ordered_json json = ordered_json::parse(text, text + bytes.size(), nullptr, false);
  if (json.is_discarded()) throw FormatError(fmt::format("{}: is not JSON", sidecar.string()));
  return json;
}

double number_below_one(const ordered_json& json, const char* name, const std::filesystem::path& sidecar) {
  const double value = json[name].get<double>();
  if (value >= 0 && value < 1) return value;
  throw FormatError(
      fmt::format("{}: {} is {}, expected at least 0 and below 1", sidecar.string(), name, value));
}

/// n of a kernel of this shape. Throws ShapeError.
std::size_t side_of(const std::string& path, const std::vector<std::size_t>& found, bool packed) {
  const std::string sidecar = description_of(path).string();
  std::vector<std::size_t> shape = found;
  const std::size_t rank = packed ? 1 : 2;
  if (shape.size() == rank + 2 && shape[rank] == 1 && shape[rank + 1] == 1) shape.resize(rank);
  if (packed) {
    const std::optional<std::size_t> side =
        shape.size() == 1 && shape[0] != 0 ? ntk::packed_side(shape[0]) : std::nullopt;
    if (side) return *side;
    throw ShapeError(
        fmt::format("{}: {} calls it packed, so its shape must be [n (n + 1) / 2] or [n (n + 1) / 2, 1, 1], "
                    "found [{}]",
                    path, sidecar, fmt::join(found, ", ")));
  }
  if (shape.size() == 2 && shape[0] == shape[1] && shape[0] != 0) return shape[0];
  throw ShapeError(fmt::format(
      "{}: the shape of a kernel must be [n, n] or [n, n, 1, 1], found [{}]{}", path, fmt::join(found, ", "),
      found.size() == 1 && ntk::packed_side(found[0])
          ? fmt::format("; a packed kernel needs {} with \"packed\": true beside it", sidecar)
          : ""));
}

}  // namespace

KernelFacts read_kernel_facts(const std::string& path, NpyType type) {
  const std::filesystem::path sidecar = description_of(path);
  const ordered_json json = sidecar_of(sidecar);
  KernelFacts facts;
  const auto member = [](const ordered_json& object, const char* name) {
    return object.is_object() && object.contains(name) ? object[name] : ordered_json();
  };
  facts.packed = member(json, "packed") == true;
  if (member(json, "relative_entry_error").is_number()) {
    facts.entry_error = number_below_one(json, "relative_entry_error", sidecar);
    facts.entry_error_origin = sidecar.filename().string();
  } else if (type == NpyType::F4) {
    facts.entry_error = ntk::entry_error<float>();
    facts.entry_error_origin = "its being stored as f32";
  } else {
    facts.entry_error = ntk::entry_error<double>();
    facts.entry_error_origin = "its being stored as f64";
  }
  if (const ordered_json approximate = member(json, "approximate"); approximate.is_object()) {
    const ordered_json label = member(approximate, "label");
    facts.estimate = label.is_string() ? label.get<std::string>() : "approximate";
  }
  const ordered_json standard_error = member(json, "standard_error");
  if (member(standard_error, "relative").is_number()) {
    facts.standard_error = standard_error["relative"].get<double>();
    if (!(facts.standard_error >= 0)) {
      throw FormatError(fmt::format("{}: the relative standard error is {}, expected at least 0",
                                    sidecar.string(), facts.standard_error));
    }
    const ordered_json samples = member(json, "samples");
    facts.estimate = fmt::format("a Monte Carlo estimate{}",
                                 samples.is_number_unsigned()
                                     ? fmt::format(", the mean of {} networks", samples.get<std::size_t>())
                                     : "");
  }
  return facts;
}

KernelInput read_kernel(const std::string& path, const std::function<void(const KernelExtent&)>& before) {
  const NpyLayout layout = read_npy_layout(path);
  KernelInput input;
  input.facts = read_kernel_facts(path, layout.type);
  const std::size_t n = side_of(path, layout.shape, input.facts.packed);
  const bool square = !input.facts.packed && layout.shape.size() == 2;
  std::error_code error;
  const std::uintmax_t file_bytes = std::filesystem::file_size(path, error);
  const std::size_t wide =
      checked_multiply(checked_multiply(n, n, path.c_str()), sizeof(double), path.c_str());
  // A file that is shorter than its shape says is refused when it is read.
  if (!error && wide / 16 <= file_bytes) {
    // The file, the numbers in f64, and once more where they are brought into shape.
    before({n, checked_add(file_bytes, checked_multiply(wide, square ? 1 : 2, path.c_str()), path.c_str())});
  }
  const NpyArray array = read_npy(path);
  Tensor<double> values = input.facts.packed ? ntk::unpack(array) : array.to_tensor<double>();
  input.values = values.shape().rank() == 2 ? std::move(values) : Tensor<double>(Shape{n, n}, values.span());
  return input;
}

std::size_t kernel_side(const std::string& path, const Shape& shape, bool packed) {
  return side_of(path, {shape.extents().begin(), shape.extents().end()}, packed);
}

template <class T>
MappedKernel<T>::MappedKernel(const std::string& path, const ntk::MappedNpy& file, bool packed) {
  const std::size_t n = kernel_side(path, file.shape(), packed);
  TensorView<const T> stored;
  if constexpr (std::is_same_v<T, float>) {
    stored = file.f32();
  } else {
    stored = file.f64();
  }
  if (!packed) {
    view_ = stored.reshaped(Shape{n, n});
    return;
  }
  unpacked_ = ntk::unpack<T>(stored.reshaped(Shape{stored.size()}));
  view_ = unpacked_.view();
}
template class MappedKernel<float>;
template class MappedKernel<double>;

}  // namespace gradgram::cli
