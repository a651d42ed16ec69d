#include "comm/mpi_check.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <cstdlib>

#include "comm/last_words.hpp"

namespace rankslice {

void MpiCommTraits::close(Handle comm) noexcept {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0) MPI_Comm_free(&comm);
}

void abort_job(MPI_Comm comm, ExitCode code, std::string_view message) {
  auto const line = last_words(message, true);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(nullptr);
  MPI_Abort(comm, static_cast<int>(code));
  std::_Exit(static_cast<int>(code));  // MPI_Abort is not declared as one that does not return
}

void check_mpi(int rc, MPI_Comm comm, std::source_location at) {
  if (rc == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(rc, text.data(), &length);
  abort_job(comm, ExitCode::timeout, fmt::format("MPI: {} ({}, line {})", text.data(), at.function_name(), at.line()));
}

}  // namespace rankslice
