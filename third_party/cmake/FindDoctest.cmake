# Finds the doctest header (used as "doctest/doctest.h") and defines doctest::doctest. The tests alone need it.
find_path(DOCTEST_INCLUDE_DIR doctest/doctest.h)
mark_as_advanced(DOCTEST_INCLUDE_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  Doctest
  REQUIRED_VARS DOCTEST_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "install doctest-dev (Debian, Ubuntu), doctest-devel (Fedora) or doctest (Homebrew), or run third_party/install")

if(Doctest_FOUND AND NOT TARGET doctest::doctest)
  add_library(doctest::doctest INTERFACE IMPORTED)
  set_target_properties(doctest::doctest PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${DOCTEST_INCLUDE_DIR})
endif()
