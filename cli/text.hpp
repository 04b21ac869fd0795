#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/shape.hpp"

/// Numbers and tables as people read them.
namespace gradgram::cli {

/// 1234567 -> `1,234,567`.
std::string grouped(std::size_t value);
/// To `digits` significant digits, without a needless exponent: `0.0123`, `4.57`, `12,300`, `3.1e-07`.
std::string significant(double value, int digits = 3);
/// With a sign and two decimals, for correlations: `+0.71`, `-0.02`; the minus sign of typography in `html`.
std::string correlation(double value, bool html = false);
/// `812 B`, `4.0 MB` (decimal units, as disks and packages count).
std::string bytes_text(std::size_t bytes);
/// `4 GiB` when it is a round number of binary units, else as bytes_text.
std::string budget_text(std::size_t bytes);
/// `0.42 s`, `12 s`, `3 min 20 s`, `1 h 05 min`.
std::string seconds_text(double seconds);
/// `64 %`, `6.4 %`, `0.64 %`.
std::string percent(double share);
/// `28 x 28 x 1`.
std::string extents(const Shape& shape, std::string_view separator = " x ");

/// `4GiB`, `512MB`, `1.5 GB`, `1000000` -> bytes: a number and a unit with at most one blank between them.
/// Throws ArgumentError.
std::size_t parse_bytes(std::string_view text);
/// `0,5` -> {0, 5}; `what` names the option in errors. Throws ArgumentError.
std::vector<std::size_t> parse_numbers(std::string_view text, std::string_view what);
/// `784` -> {784}; `3x32x32` (channels, height, width, PyTorch's order) -> {32, 32, 3}. Throws ArgumentError.
Shape parse_input_shape(std::string_view text);

/// Columns padded to their widest entry; the first is left-aligned, the others right-aligned when `numeric`.
std::string table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& numeric,
                  std::string_view indent = "  ");
/// The text with & < > " escaped for HTML.
std::string escape_html(std::string_view text);
/// Plain ASCII notation as a page sets it, `k_ii` -> `k(x,x)`, `||x||^2` -> `‖x‖²`, `+-` -> `±`; not yet
/// escaped.
std::string typeset(std::string text);
/// A word as a shell takes it: quoted when it needs to be.
std::string shell_quote(std::string_view word);

}  // namespace gradgram::cli
