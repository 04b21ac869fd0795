#pragma once

#include <string>
#include <string_view>

#include "datasets/formats.hpp"

namespace gradgram::datasets {

/// Synthetic sets by text, `name` or `name:key=value,key=value`:
///
///     circle:n=200,frequency=1     n points evenly spaced on the unit circle; class = whether cos(frequency
///     * angle) >= 0 sphere:n=200,d=10            uniform on the unit sphere in d dimensions
///     gaussian:n=200,d=10          independent standard normal entries
///     rademacher:n=200,d=10        independent entries -1 or 1
///     laplace:n=200,d=10           independent Laplace entries of variance 1
///     student:n=200,d=10,df=3      independent Student t entries of df degrees of freedom, not rescaled
///     moons:n=200,noise=0.1        two half circles in the plane with normal noise; the class is the half
///     circle
///
/// The classes of all but circle and moons are the sides of a random hyperplane through the origin (normal
/// entries), which the seed fixes and both parts share. Example i depends on the seed and i alone, so a
/// larger n only appends. The test part are other draws (of circle: the angles half a step further). The same
/// seed gives the same bits on every machine, except for circle and moons, which ask the C library for sine
/// and cosine (their labels do not).
bool is_synthetic(std::string_view text) noexcept;

/// Throws ArgumentError (position in the text) for unknown names and keys and for values out of range.
Examples synthetic(std::string_view text, std::uint64_t seed, bool test);

}  // namespace gradgram::datasets
