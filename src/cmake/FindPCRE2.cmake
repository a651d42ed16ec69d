# PCRE2 for 8-bit characters, which comes without a file for CMake in the packages of Debian and Ubuntu.
#
#   PCRE2::8BIT    libpcre2-8
#   PCRE2_VERSION

find_path(PCRE2_INCLUDE_DIR pcre2.h)
find_library(PCRE2_8BIT_LIBRARY pcre2-8)

if(EXISTS "${PCRE2_INCLUDE_DIR}/pcre2.h")
  file(READ "${PCRE2_INCLUDE_DIR}/pcre2.h" _text)
  foreach(_part MAJOR MINOR)
    string(REGEX MATCH "#define PCRE2_${_part} +([0-9]+)" _ "${_text}")
    list(APPEND _version_parts "${CMAKE_MATCH_1}")
  endforeach()
  list(JOIN _version_parts "." PCRE2_VERSION)
  unset(_version_parts)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PCRE2
  REQUIRED_VARS PCRE2_8BIT_LIBRARY PCRE2_INCLUDE_DIR
  VERSION_VAR PCRE2_VERSION
  REASON_FAILURE_MESSAGE "rankslice needs pcre2.h and libpcre2-8: install libpcre2-dev (pcre2-devel), or name the \
folder that they were installed to with -DCMAKE_PREFIX_PATH=….")

if(PCRE2_FOUND AND NOT TARGET PCRE2::8BIT)
  add_library(PCRE2::8BIT UNKNOWN IMPORTED)
  set_target_properties(PCRE2::8BIT PROPERTIES
    IMPORTED_LOCATION "${PCRE2_8BIT_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${PCRE2_INCLUDE_DIR}")
endif()
mark_as_advanced(PCRE2_INCLUDE_DIR PCRE2_8BIT_LIBRARY)
