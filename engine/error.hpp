#pragma once

#include <stdexcept>
#include <string>

namespace gradgram {

/// Base of everything the library throws on purpose. The text names the call, the argument and both values.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Dimensions that must agree do not: `dense: inputs.features (784) and weights.d_in (785) must match`.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// An option, name or number that the caller chose is not acceptable. The program exits with code 2.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// A file or text is broken; the message holds the path and the byte offset or line.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused to open, read, write or rename; the message holds the path and its reason.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A memory budget cannot hold the job; the message holds the budget and the least that would do.
class BudgetError : public Error {
 public:
  using Error::Error;
};

/// Arithmetic left the numbers: NaN or infinity in a result, no convergence, a matrix that is not definite.
class NumericError : public Error {
 public:
  using Error::Error;
};

/// The work was stopped from outside (Ctrl-C, a stop token).
class Cancelled : public Error {
 public:
  using Error::Error;
};

}  // namespace gradgram
