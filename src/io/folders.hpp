#pragma once

#include <string>

namespace rankslice {

/// The folder in which a path is: "." for a name alone.
[[nodiscard]] std::string parent_of(std::string const& path);

/// fsync of a directory, so that the names in it survive a power cut. @throws IoError
void sync_directory(std::string const& path);

}  // namespace rankslice
