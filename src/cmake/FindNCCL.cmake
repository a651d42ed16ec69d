# NCCL, as the user has it: NCCL_ROOT, the CUDA toolkit, the system, the wheel of a Python (nvidia/nccl, in the active one or
# the project's .venv); in that order.
#
#   NCCL::NCCL      libnccl.so.2 and nccl.h
#   NCCL_VERSION    of the header

set(_nccl_wheels "")
foreach(_prefix IN ITEMS "$ENV{VIRTUAL_ENV}" "${PROJECT_SOURCE_DIR}/.venv")
  file(GLOB _found "${_prefix}/lib/python3*/site-packages/nvidia/nccl")
  list(APPEND _nccl_wheels ${_found})
endforeach()

# Both from one place: a library that is older than its header would be refused at run time.
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} PATHS ${_nccl_wheels} PATH_SUFFIXES include)
get_filename_component(_nccl_prefix "${NCCL_INCLUDE_DIR}/.." ABSOLUTE)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS "${_nccl_prefix}" PATH_SUFFIXES lib lib64)

if(EXISTS "${NCCL_INCLUDE_DIR}/nccl.h")
  file(READ "${NCCL_INCLUDE_DIR}/nccl.h" _text)
  foreach(_part MAJOR MINOR PATCH)
    string(REGEX MATCH "#define NCCL_${_part} ([0-9]+)" _ "${_text}")
    list(APPEND _version_parts "${CMAKE_MATCH_1}")
  endforeach()
  list(JOIN _version_parts "." NCCL_VERSION)
  unset(_version_parts)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL
  REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR
  VERSION_VAR NCCL_VERSION
  REASON_FAILURE_MESSAGE "Give the folder above include/nccl.h and lib/libnccl.so.2 with -DNCCL_ROOT=…. To build rankslice \
itself, -DRANKSLICE_NCCL=OFF does without.")

if(NCCL_FOUND AND NOT TARGET NCCL::NCCL)
  add_library(NCCL::NCCL UNKNOWN IMPORTED)
  set_target_properties(NCCL::NCCL PROPERTIES
    IMPORTED_LOCATION "${NCCL_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIR}")
  target_link_libraries(NCCL::NCCL INTERFACE CUDA::toolkit)  # nccl.h includes cuda_runtime.h
endif()
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
