# Finds the header xxhash.h: the whole of xxHash can be compiled from it, so no library is needed.
#
# Looks where xxHash_INCLUDE_DIR points and in the system. Where there is none, and unless
# RINGHOLD_XXHASH_FETCH is OFF, it takes the header from the source release of the PyPI package
# xxhash, pinned by version and SHA-256, with the pip of ${Python_EXECUTABLE} or of python3.
#
# Defines xxHash_FOUND, xxHash_INCLUDE_DIR and the target xxHash::headers.

option(RINGHOLD_XXHASH_FETCH "Fetch xxhash.h from PyPI where the system has none" ON)

set(_xxHash_version 4.1.0)
set(_xxHash_sha256 c9b288e4c1f5dae54417bc8a05e6f6daf505783d916b4783f4dd2f2e7d5db486)
set(_xxHash_remedy "install libxxhash-dev or pass -DxxHash_INCLUDE_DIR=<directory of xxhash.h>")

function(_xxHash_fetch)
  set(directory "${CMAKE_BINARY_DIR}/xxhash-${_xxHash_version}")
  set(source "${directory}/xxhash-${_xxHash_version}")
  if(NOT EXISTS "${source}/deps/xxhash/xxhash.h")
    set(python "${Python_EXECUTABLE}")
    if(NOT python)
      find_program(RINGHOLD_PYTHON NAMES python3 python)
      set(python "${RINGHOLD_PYTHON}")
    endif()
    if(NOT python)
      message(FATAL_ERROR "No xxhash.h and no python3 to fetch it with: ${_xxHash_remedy}")
    endif()
    message(STATUS "No xxhash.h in the system: fetching xxhash ${_xxHash_version} from PyPI with pip")
    # With the hash in a requirement, pip refuses another archive before it runs anything of it.
    file(WRITE "${directory}/requirements.txt"
         "xxhash==${_xxHash_version} --hash=sha256:${_xxHash_sha256}\n")
    execute_process(
      COMMAND "${python}" -m pip download --quiet --disable-pip-version-check --no-deps
              --no-binary xxhash --dest "${directory}" --require-hashes
              --requirement "${directory}/requirements.txt"
      RESULT_VARIABLE failed ERROR_VARIABLE complaint OUTPUT_QUIET)
    set(archive "${source}.tar.gz")
    if(failed OR NOT EXISTS "${archive}")
      message(VERBOSE "${complaint}")
      message(FATAL_ERROR "No xxhash.h, and pip could not fetch it: ${_xxHash_remedy}")
    endif()
    file(SHA256 "${archive}" sum)
    if(NOT sum STREQUAL _xxHash_sha256)
      file(REMOVE "${archive}")
      message(FATAL_ERROR "The fetched xxhash has SHA-256 ${sum}, not the pinned one: ${_xxHash_remedy}")
    endif()
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${directory}")
  endif()
  set(xxHash_INCLUDE_DIR "${source}/deps/xxhash" CACHE PATH "Directory of xxhash.h" FORCE)
endfunction()

# XXH3 has its final values from 0.8.0 on: older headers are passed over.
function(_xxHash_is_final result directory)
  set(header "${directory}/xxhash.h")
  set(${result} FALSE PARENT_SCOPE)
  if(EXISTS "${header}")
    file(STRINGS "${header}" minor REGEX "#define XXH_VERSION_MINOR +[0-9]+")
    file(STRINGS "${header}" major REGEX "#define XXH_VERSION_MAJOR +[0-9]+")
    string(REGEX REPLACE ".* " "" minor "${minor}")
    string(REGEX REPLACE ".* " "" major "${major}")
    if(major GREATER 0 OR minor GREATER_EQUAL 8)
      set(${result} TRUE PARENT_SCOPE)
    endif()
  endif()
endfunction()

find_path(xxHash_INCLUDE_DIR xxhash.h VALIDATOR _xxHash_is_final)
if(NOT xxHash_INCLUDE_DIR)
  if(NOT RINGHOLD_XXHASH_FETCH)
    message(FATAL_ERROR "No xxhash.h and RINGHOLD_XXHASH_FETCH is OFF: ${_xxHash_remedy}")
  endif()
  _xxHash_fetch()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(xxHash REQUIRED_VARS xxHash_INCLUDE_DIR)
mark_as_advanced(xxHash_INCLUDE_DIR)

if(xxHash_FOUND AND NOT TARGET xxHash::headers)
  add_library(xxHash::headers INTERFACE IMPORTED)
  # IMPORTED makes the directory a system one, so that warnings of the header stay its own.
  set_target_properties(xxHash::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${xxHash_INCLUDE_DIR}")
endif()
