#include "python/native/errors.hpp"

#include "comm/outcome.hpp"

namespace rankslice::python {

namespace {

/// The class of rankslice.errors that stands for an error.
char const* class_name(Error const& error) {
  if (dynamic_cast<UsageError const*>(&error) != nullptr) return "UsageError";
  if (dynamic_cast<FormatError const*>(&error) != nullptr) return "FormatError";
  if (dynamic_cast<IoError const*>(&error) != nullptr) {
    return error.code == ExitCode::input_missing ? "InputMissingError" : "IoError";
  }
  if (dynamic_cast<PlanError const*>(&error) != nullptr) return "PlanError";
  if (dynamic_cast<CommError const*>(&error) != nullptr) return "CommError";
  if (dynamic_cast<DeviceError const*>(&error) != nullptr) return "DeviceError";
  if (dynamic_cast<VerifyError const*>(&error) != nullptr) return "VerifyError";
  if (dynamic_cast<Interrupted const*>(&error) != nullptr) return "Interrupted";
  if (dynamic_cast<UnexpectedError const*>(&error) != nullptr) return "UnexpectedError";
  return "Error";
}

/// Names of files need not be UTF-8: `how` says what becomes of such bytes.
nb::object text_of(std::string const& bytes, char const* how) {
  return nb::steal(PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), how));
}

std::string bytes_of(nb::handle text, char const* how) {
  auto const bytes = nb::steal<nb::bytes>(PyUnicode_AsEncodedString(text.ptr(), "utf-8", how));
  return {bytes.c_str(), bytes.size()};
}

/// As `os.fsdecode` has it, so that Python finds the file by it.
nb::object or_none(std::string const& name) { return name.empty() ? nb::none() : text_of(name, "surrogateescape"); }

nb::object exception_of(Error const& error) {
  auto const type = nb::module_::import_("rankslice.errors").attr(class_name(error));
  auto const message = text_of(error.what(), "backslashreplace");
  auto const rank = error.rank < 0 ? nb::none() : nb::object(nb::int_(error.rank));
  return type(message, static_cast<int>(error.code), or_none(error.file), or_none(error.tensor), rank);
}

void set(nb::object const& exception) { PyErr_SetObject(exception.type().ptr(), exception.ptr()); }

}  // namespace

void raise(Error const& error, nb::object const& cause) {
  auto const exception = exception_of(error);
  exception.attr("__cause__") = cause;
  set(exception);
  throw nb::python_error();
}

std::exception_ptr error_of(nb::python_error const& raised) {
  auto const ours = nb::module_::import_("rankslice.errors").attr("Error");
  if (!raised.matches(ours)) return nullptr;
  auto const error = raised.value();
  auto const name_in = [&](char const* attribute) {
    auto const name = error.attr(attribute);
    return name.is_none() ? std::string() : bytes_of(name, "surrogateescape");
  };
  try {
    rankslice::raise({.code = static_cast<ExitCode>(nb::cast<int>(error.attr("code"))),
                      .message = bytes_of(nb::str(error), "backslashreplace"),
                      .file = name_in("file"),
                      .tensor = name_in("tensor")});
  } catch (...) {
    return std::current_exception();
  }
}

std::string described(nb::python_error const& raised) {
  return bytes_of(nb::str(raised.type().attr("__name__")), "backslashreplace") + ": " +
         bytes_of(nb::str(raised.value()), "backslashreplace");
}

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](std::exception_ptr const& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (Error const& error) {
      set(exception_of(error));
    }
  });
}

}  // namespace rankslice::python
