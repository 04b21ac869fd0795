#include "cli/rates.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <nlohmann/json.hpp>
#include <ostream>
#include <system_error>
#include <utility>

#include "cli/inputs.hpp"
#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"

namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int kLayout = 3;
constexpr std::size_t kLargestFile = std::size_t{1} << 20;

/// f(name, value) for every number of one precision; `Rates` may be const.
template <class Rates, class F>
void each_rate(Rates& rates, F f) {
  f("gram_flop_per_second", rates.gram);
  f("fetched_bytes_per_second", rates.fetch);
  f("packed_bytes_per_second", rates.pack);
  f("laid_bytes_per_second", rates.lay);
  f("tile_entries_per_second", rates.entries);
  f("position_gram_flop_per_second", rates.position);
  f("tap_additions_per_second", rates.taps);
  f("dense_flop_per_second", rates.gemm);
  f("copied_bytes_per_second", rates.bandwidth);
  f("elementwise_bytes_per_second", rates.elementwise);
}

template <class Rate, class F>
void each_pass(Rate& rate, F f) {
  f("forward_flop_per_second", rate.forward);
  f("reverse_flop_per_second", rate.reverse);
  f("weight_gradient_flop_per_second", rate.weight_gradient);
}

std::string geometry_text(const ntk::ConvolutionRate& rate) {
  return fmt::format("{}x{} window, stride {}, {} to {} channels, {}x{} pixels", rate.kernel, rate.kernel,
                     rate.stride, rate.c_in, rate.c_out, rate.side, rate.side);
}

ordered_json to_json(const ntk::PrecisionRates& rates) {
  ordered_json json;
  each_rate(rates, [&](const char* name, double value) { json[name] = value; });
  json["convolutions"] = ordered_json::array();
  for (const ntk::ConvolutionRate& convolution : rates.convolutions) {
    ordered_json one = {{"of", geometry_text(convolution)}};
    each_pass(convolution, [&](const char* name, double value) { one[name] = value; });
    json["convolutions"].push_back(one);
  }
  return json;
}

double positive(const ordered_json& json) {
  const double value = json.get<double>();
  if (!(std::isfinite(value) && value > 0)) throw FormatError("rates: a rate must be positive");
  return value;
}

void from_json(const ordered_json& json, ntk::PrecisionRates& rates) {
  each_rate(rates, [&](const char* name, double& value) { value = positive(json.at(name)); });
  std::size_t number = 0;
  for (ntk::ConvolutionRate& convolution : rates.convolutions) {
    const ordered_json& one = json.at("convolutions").at(number++);
    if (one.at("of") != geometry_text(convolution)) throw FormatError("rates: of another convolution");
    each_pass(convolution, [&](const char* name, double& value) { value = positive(one.at(name)); });
  }
}

/// What the rates depend on.
ordered_json circumstances() {
  return {{"layout", kLayout},
          {"version", version()},
          {"cpu", cpu_info().name},
          {"instruction_set", std::string(isa_name(active_isa()))},
          {"blis_kernels", blas::kernel_set()}};
}

}  // namespace

ordered_json to_json(const ntk::KernelRates& rates) {
  return {{"f32", to_json(rates.f32)},
          {"f64", to_json(rates.f64)},
          {"touched_bytes_per_second", rates.touch},
          {"share_kept_together", rates.together}};
}

fs::path rates_path() {
  const auto folder = [](const char* variable) {
    const char* const value = std::getenv(variable);
    const fs::path path = value == nullptr ? "" : value;
    return path.is_absolute() ? path : fs::path();
  };
  fs::path cache = folder("XDG_CACHE_HOME");
  if (cache.empty()) {
    const fs::path home = folder("HOME");
    if (home.empty()) return {};
    cache = home / ".cache";
  }
  std::string name;
  for (const char c : cpu_info().name) {
    const auto letter = static_cast<unsigned char>(c);
    if (std::isalnum(letter) != 0) {
      name += static_cast<char>(std::tolower(letter));
    } else if (!name.empty() && name.back() != '-') {
      name += '-';
    }
  }
  return cache / "gradgram" / fmt::format("rates-{}-{}.json", name, isa_name(active_isa()));
}

std::optional<MeasuredRates> read_rates(const fs::path& path) {
  std::error_code error;
  if (path.empty() || !fs::is_regular_file(path, error)) return std::nullopt;
  try {
    const auto bytes = read_file(path, kLargestFile);
    const char* const text = reinterpret_cast<const char*>(bytes.data());
    const ordered_json json = ordered_json::parse(text, text + bytes.size());
    const ordered_json here = circumstances();
    for (const auto& [name, value] : here.items()) {
      if (json.at(name) != value) return std::nullopt;
    }
    MeasuredRates measured;
    from_json(json.at("rates").at("f32"), measured.rates.f32);
    from_json(json.at("rates").at("f64"), measured.rates.f64);
    measured.rates.touch = positive(json.at("rates").at("touched_bytes_per_second"));
    measured.rates.together = positive(json.at("rates").at("share_kept_together"));
    measured.when = json.at("measured").get<std::string>();
    return measured;
  } catch (const ordered_json::exception&) {
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

MeasuredRates measure_rates_now(std::size_t threads) {
  return {ntk::measure_kernel_rates(threads),
          fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))};
}

std::string store_rates(const fs::path& path, const MeasuredRates& measured) {
  if (path.empty()) return "neither XDG_CACHE_HOME nor HOME names a folder";
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return fmt::format("cannot create {}: {}", path.parent_path().string(), error.message());
  ordered_json json = circumstances();
  json["measured"] = measured.when;
  json["rates"] = to_json(measured.rates);
  try {
    write_json(path, json);
  } catch (const IoError& failure) {
    return failure.what();
  }
  return {};
}

}  // namespace gradgram::cli
