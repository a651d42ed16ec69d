#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace rankslice {

/// What the `rankslice` program exits with; every error knows its own.
enum class ExitCode : int {
  done = 0,
  unexpected = 1,      ///< A bug.
  usage = 2,           ///< Wrong arguments.
  difference = 3,      ///< Verification found a difference.
  bad_data = 65,       ///< A checkpoint that breaks its format, or does not fit its model.
  input_missing = 66,  ///< A file or folder that is not there.
  unavailable = 69,    ///< A GPU or NCCL was asked for and cannot be had.
  cannot_create = 73,  ///< An output exists already or cannot be made.
  io = 74,             ///< A read or write failed.
  timeout = 75,        ///< A rank did not answer in time.
  bad_launch = 78,     ///< The ranks were not started as one job.
  interrupted = 130,   ///< SIGINT.
  terminated = 143,    ///< SIGTERM.
};

/// Base of everything rankslice throws on purpose. `what()` names the file, the tensor, the bytes, what was expected
/// and what was found; `file` and `tensor` repeat the first two for machines, and are empty where they do not apply.
class Error : public std::runtime_error {
 public:
  ExitCode code;
  std::string file;
  std::string tensor;
  int rank = -1;  ///< The rank that failed, once the ranks have agreed on it (`on_every_rank`).

 protected:
  Error(ExitCode exit_code, std::string const& message, std::string in_file, std::string in_tensor)
      : std::runtime_error(message), code(exit_code), file(std::move(in_file)), tensor(std::move(in_tensor)) {}
};

/// The arguments of a call or of the command line make no sense together.
class UsageError : public Error {
 public:
  explicit UsageError(std::string const& message) : Error(ExitCode::usage, message, {}, {}) {}
};

/// Bytes that break the rules of their format, or tensors that do not fit their model.
class FormatError : public Error {
 public:
  explicit FormatError(std::string const& message, std::string in_file = {}, std::string in_tensor = {})
      : Error(ExitCode::bad_data, message, std::move(in_file), std::move(in_tensor)) {}
};

/// A system call on a file failed: `input_missing`, `cannot_create` or `io`.
class IoError : public Error {
 public:
  IoError(ExitCode exit_code, std::string const& message, std::string in_file = {}, std::string in_tensor = {})
      : Error(exit_code, message, std::move(in_file), std::move(in_tensor)) {}
};

/// A mesh, selection or state dict from which no plan can be made.
class PlanError : public Error {
 public:
  explicit PlanError(std::string const& message, std::string in_tensor = {})
      : Error(ExitCode::usage, message, {}, std::move(in_tensor)) {}
};

/// Ranks that do not answer (`timeout`) or were not started together (`bad_launch`).
class CommError : public Error {
 public:
  CommError(ExitCode exit_code, std::string const& message) : Error(exit_code, message, {}, {}) {}
};

/// A device that was asked for and cannot be used.
class DeviceError : public Error {
 public:
  explicit DeviceError(std::string const& message) : Error(ExitCode::unavailable, message, {}, {}) {}
};

/// Tensors that are not what the checkpoint says they are.
class VerifyError : public Error {
 public:
  explicit VerifyError(std::string const& message, std::string in_file = {}, std::string in_tensor = {})
      : Error(ExitCode::difference, message, std::move(in_file), std::move(in_tensor)) {}
};

/// The caller's stop token fired: `interrupted` or `terminated`.
class Interrupted : public Error {
 public:
  explicit Interrupted(ExitCode exit_code = ExitCode::interrupted) : Error(exit_code, "stopped on request", {}, {}) {}
};

/// What no rank should meet: a bug, or memory that ran out.
class UnexpectedError : public Error {
 public:
  explicit UnexpectedError(std::string const& message) : Error(ExitCode::unexpected, message, {}, {}) {}
};

}  // namespace rankslice
