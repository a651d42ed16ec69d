# LibTorch, as the user has it: LIBTORCH_ROOT, CMAKE_PREFIX_PATH, the active Python's torch, the project's .venv; in
# that order. torch's own TorchConfig.cmake is not used: the CUDA wheel's refuses to configure without a CUDA toolkit
# and adds flags for every GPU architecture with one.
#
#   LibTorch::cpu    libtorch_cpu, libc10
#   LibTorch::cuda   … and libtorch_cuda, libc10_cuda, the CUDA runtime (when they are there)
#   LibTorch_VERSION, LibTorch_ROOT

# A Python's torch is found as files: importing it takes seconds and needs all its libraries.
set(_libtorch_hints "${LIBTORCH_ROOT}" "$ENV{LIBTORCH_ROOT}")
foreach(_prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND _libtorch_hints "${_prefix}" "${_prefix}/torch")
endforeach()
find_program(LibTorch_PYTHON NAMES python3 PATHS ENV VIRTUAL_ENV PATH_SUFFIXES bin)
foreach(_python IN ITEMS "${LibTorch_PYTHON}" "${PROJECT_SOURCE_DIR}/.venv/bin/python3")
  if(EXISTS "${_python}")
    execute_process(
      COMMAND "${_python}" -c "import importlib.util as u; s = u.find_spec('torch'); print(list(s.submodule_search_locations)[0] if s else '')"
      OUTPUT_VARIABLE _found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND _libtorch_hints "${_found}")
  endif()
endforeach()
list(FILTER _libtorch_hints EXCLUDE REGEX "^$")

find_path(LibTorch_INCLUDE_DIR ATen/core/Tensor.h HINTS ${_libtorch_hints} PATH_SUFFIXES include NO_DEFAULT_PATH)
get_filename_component(LibTorch_ROOT "${LibTorch_INCLUDE_DIR}/.." ABSOLUTE)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_CUDA_LIBRARY torch_cuda HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)

set(_libtorch_version_header "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h")
if(NOT EXISTS "${_libtorch_version_header}")
  set(_libtorch_version_header "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include/torch/version.h")
endif()
if(EXISTS "${_libtorch_version_header}")
  file(READ "${_libtorch_version_header}" _text)
  foreach(_part MAJOR MINOR PATCH)
    string(REGEX MATCH "#define TORCH_VERSION_${_part} ([0-9]+)" _ "${_text}")
    list(APPEND _version_parts "${CMAKE_MATCH_1}")
  endforeach()
  list(JOIN _version_parts "." LibTorch_VERSION)
  unset(_version_parts)
endif()

list(JOIN _libtorch_hints ", " _libtorch_places)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "Looked for a folder with include/ATen and lib/libtorch_cpu.so in: ${_libtorch_places}. \
Give one with -DLIBTORCH_ROOT=…/site-packages/torch. To build rankslice itself, launch/setup.sh installs one, and \
-DRANKSLICE_TORCH=OFF does without.")

if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  # The wheels keep the CUDA runtime and its friends in folders beside torch; libtorch_cpu itself wants some of them.
  file(GLOB _nvidia_lib_dirs "${LibTorch_ROOT}/../nvidia/*/lib")
  set(_libtorch_lib_dirs "${LibTorch_ROOT}/lib" ${_nvidia_lib_dirs})

  add_library(LibTorch::cpu INTERFACE IMPORTED)
  target_include_directories(LibTorch::cpu SYSTEM INTERFACE
    "${LibTorch_INCLUDE_DIR}" "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include")
  target_link_libraries(LibTorch::cpu INTERFACE "${LibTorch_CPU_LIBRARY}" "${LibTorch_C10_LIBRARY}")
  foreach(_dir IN LISTS _libtorch_lib_dirs)
    target_link_options(LibTorch::cpu INTERFACE "LINKER:-rpath,${_dir}" "LINKER:-rpath-link,${_dir}")
  endforeach()

  if(LibTorch_CUDA_LIBRARY AND LibTorch_C10_CUDA_LIBRARY)
    file(GLOB _cudart "${LibTorch_ROOT}/../nvidia/*/lib/libcudart.so.*")
    file(GLOB _nccl "${LibTorch_ROOT}/../nvidia/nccl/lib/libnccl.so.2")
    add_library(LibTorch::cuda INTERFACE IMPORTED)
    # Registration of the CUDA backend happens in initialisers of libtorch_cuda, which nothing refers to by name.
    target_link_libraries(LibTorch::cuda INTERFACE LibTorch::cpu
      "-Wl,--no-as-needed" "${LibTorch_CUDA_LIBRARY}" "${LibTorch_C10_CUDA_LIBRARY}" ${_cudart} ${_nccl} "-Wl,--as-needed")
  endif()
endif()
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_CUDA_LIBRARY
  LibTorch_C10_CUDA_LIBRARY LibTorch_PYTHON)
