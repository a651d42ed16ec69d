#include "rankslice/error.hpp"

#include "python/native/bindings.hpp"

namespace rankslice::python {

namespace {

/// The class of rankslice.errors that stands for an error.
char const* class_name(Error const& error) {
  if (dynamic_cast<UsageError const*>(&error) != nullptr) return "UsageError";
  if (dynamic_cast<FormatError const*>(&error) != nullptr) return "FormatError";
  if (dynamic_cast<IoError const*>(&error) != nullptr) return "IoError";
  if (dynamic_cast<PlanError const*>(&error) != nullptr) return "PlanError";
  if (dynamic_cast<CommError const*>(&error) != nullptr) return "CommError";
  if (dynamic_cast<DeviceError const*>(&error) != nullptr) return "DeviceError";
  if (dynamic_cast<VerifyError const*>(&error) != nullptr) return "VerifyError";
  if (dynamic_cast<Interrupted const*>(&error) != nullptr) return "Interrupted";
  if (dynamic_cast<UnexpectedError const*>(&error) != nullptr) return "UnexpectedError";
  return "Error";
}

nb::object or_none(std::string const& text) { return text.empty() ? nb::none() : nb::object(nb::str(text.c_str())); }

void raise(Error const& error) {
  auto const type = nb::module_::import_("rankslice.errors").attr(class_name(error));
  auto const rank = error.rank < 0 ? nb::none() : nb::object(nb::int_(error.rank));
  auto const exception =
      type(error.what(), static_cast<int>(error.code), or_none(error.file), or_none(error.tensor), rank);
  PyErr_SetObject(type.ptr(), exception.ptr());
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](std::exception_ptr const& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (Error const& error) {
      raise(error);
    }
  });
}

}  // namespace rankslice::python
