# What the Python package is built with: a Python's development files and its nanobind. The Python is the one that the user
# names (Python_EXECUTABLE), or that runs the tests (RANKSLICE_TEST_PYTHON), or the active virtual environment's, or the
# system's; in that order.
#
#   Python_EXECUTABLE, Python::Module, …    as CMake's FindPython gives them
#   nanobind_ROOT                           where find_package(nanobind) finds it

if(NOT Python_EXECUTABLE AND EXISTS "${RANKSLICE_TEST_PYTHON}")
  set(Python_EXECUTABLE "${RANKSLICE_TEST_PYTHON}")
endif()
# The stable ABI of CPython 3.12 serves all later ones. CMake finds its part from 3.26 on.
find_package(Python 3.10 QUIET COMPONENTS Interpreter Development.Module OPTIONAL_COMPONENTS Development.SABIModule)

if(NOT Python_Interpreter_FOUND)
  set(_python_bindings_reason "There is no Python from 3.10 on.")
elseif(NOT Python_Development.Module_FOUND)
  set(_python_bindings_reason "There is no Python.h for ${Python_EXECUTABLE}: python3-dev is missing.")
else()
  execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
    OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(_python_bindings_reason "${Python_EXECUTABLE} has no nanobind: `pip install nanobind` into it.")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PythonBindings
  REQUIRED_VARS Python_EXECUTABLE Python_Development.Module_FOUND nanobind_ROOT
  REASON_FAILURE_MESSAGE "${_python_bindings_reason}")
