#include "cli/kernel_input.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/inputs.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"
#include "engine/npy.hpp"
#include "ntk/packed.hpp"
#include "ntk/precision.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

/// The .json beside the kernel; null when there is none.
ordered_json sidecar_of(const std::filesystem::path& sidecar) {
  std::error_code error;
  if (!std::filesystem::exists(sidecar, error)) return nullptr;
  const std::vector<std::byte> bytes = read_file(sidecar, std::size_t{1} << 26);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  ordered_json json = ordered_json::parse(text, text + bytes.size(), nullptr, false);
  if (json.is_discarded()) throw FormatError(fmt::format("{}: is not JSON", sidecar.string()));
  return json;
}

}  // namespace

KernelInput read_kernel(const std::string& path) {
  const NpyArray array = read_npy(path);
  const std::filesystem::path sidecar = beside(path, ".json");
  const ordered_json json = sidecar_of(sidecar);
  KernelInput input;
  input.packed = json.is_object() && json.contains("packed") && json["packed"].is_boolean() &&
                 json["packed"].get<bool>();

  std::vector<std::size_t> shape = array.shape;
  const std::size_t rank = input.packed ? 1 : 2;
  if (shape.size() == rank + 2 && shape[rank] == 1 && shape[rank + 1] == 1) shape.resize(rank);
  if (input.packed) {
    if (shape.size() != 1 || shape[0] == 0 || !ntk::packed_side(shape[0])) {
      throw ShapeError(fmt::format(
          "{}: {} calls it packed, so its shape must be [n (n + 1) / 2] or [n (n + 1) / 2, 1, 1], "
          "found [{}]",
          path, sidecar.filename().string(), fmt::join(array.shape, ", ")));
    }
  } else if (shape.size() != 2 || shape[0] != shape[1] || shape[0] == 0) {
    throw ShapeError(fmt::format(
        "{}: a spectrum needs a kernel of shape [n, n] or [n, n, 1, 1], found [{}]{}", path,
        fmt::join(array.shape, ", "),
        array.shape.size() == 1 && ntk::packed_side(array.shape[0])
            ? fmt::format("; a packed kernel needs {} with \"packed\": true beside it", sidecar.string())
            : ""));
  }
  const Tensor<double> values = input.packed ? ntk::unpack(array) : array.to_tensor<double>();
  const std::size_t n = values.shape()[0];
  input.values = Tensor<double>(Shape{n, n}, values.span());

  if (json.is_object() && json.contains("relative_entry_error") && json["relative_entry_error"].is_number()) {
    input.entry_error = json["relative_entry_error"].get<double>();
    if (!(input.entry_error >= 0 && input.entry_error < 1)) {
      throw FormatError(fmt::format("{}: relative_entry_error is {}, expected at least 0 and below 1",
                                    sidecar.string(), input.entry_error));
    }
    input.entry_error_origin = sidecar.filename().string();
  } else if (array.type == NpyType::F4) {
    input.entry_error = ntk::entry_error<float>();
    input.entry_error_origin = "its being stored as f32";
  } else {
    input.entry_error = ntk::entry_error<double>();
    input.entry_error_origin = "its being stored as f64";
  }
  if (json.is_object() && json.contains("approximate") && json["approximate"].is_object()) {
    const ordered_json& label = json["approximate"].value("label", ordered_json());
    input.approximate = label.is_string() ? label.get<std::string>() : "approximate";
  }
  return input;
}

}  // namespace gradgram::cli
