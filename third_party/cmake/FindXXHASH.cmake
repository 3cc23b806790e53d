# Finds the xxHash header and defines XXHASH::XXHASH. The hash is inlined (XXH_INLINE_ALL): nothing is linked, and a program
# that embeds Octavo needs no xxHash of its own.
find_path(XXHASH_INCLUDE_DIR xxhash.h)
mark_as_advanced(XXHASH_INCLUDE_DIR)

if(XXHASH_INCLUDE_DIR)
  set(XXHASH_PARTS "")
  foreach(part MAJOR MINOR RELEASE)
    file(STRINGS ${XXHASH_INCLUDE_DIR}/xxhash.h line REGEX "#define XXH_VERSION_${part} ")
    string(REGEX MATCH "[0-9]+$" number "${line}")
    list(APPEND XXHASH_PARTS ${number})
  endforeach()
  list(JOIN XXHASH_PARTS "." XXHASH_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  XXHASH
  REQUIRED_VARS XXHASH_INCLUDE_DIR
  VERSION_VAR XXHASH_VERSION
  REASON_FAILURE_MESSAGE "install libxxhash-dev (Debian, Ubuntu), xxhash-devel (Fedora) or xxhash (Homebrew), or run third_party/install")

if(XXHASH_FOUND AND NOT TARGET XXHASH::XXHASH)
  add_library(XXHASH::XXHASH INTERFACE IMPORTED)
  set_target_properties(XXHASH::XXHASH PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${XXHASH_INCLUDE_DIR}
                                                  INTERFACE_COMPILE_DEFINITIONS XXH_INLINE_ALL)
endif()
