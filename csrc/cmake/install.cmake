# Installs the library, its headers, a CMake package and a pkg-config file, all of which find each
# other by relative paths, so that the tree may be moved: a wheel is unpacked anywhere.
include(CMakePackageConfigHelpers)

if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  message(FATAL_ERROR "CMAKE_INSTALL_INCLUDEDIR and CMAKE_INSTALL_LIBDIR are relative to the prefix")
endif()

set(_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/ringhold")

install(TARGETS ringhold EXPORT ringhold ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(DIRECTORY include/ringhold DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")

install(EXPORT ringhold FILE ringhold-targets.cmake NAMESPACE ringhold:: DESTINATION "${_cmake_dir}")
configure_package_config_file(cmake/ringhold-config.cmake.in ringhold-config.cmake
                              INSTALL_DESTINATION "${_cmake_dir}" NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may take something away.
write_basic_package_version_file(ringhold-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ringhold-config.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/ringhold-config-version.cmake"
        DESTINATION "${_cmake_dir}")

file(RELATIVE_PATH _pc_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" _pc_to_prefix "${_pc_to_prefix}")
configure_file(cmake/ringhold.pc.in ringhold.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ringhold.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

# xxhash.h is compiled into the library, so its licence, the comment that it opens with, goes along.
file(READ "${xxHash_INCLUDE_DIR}/xxhash.h" _licence LIMIT 8192)
string(FIND "${_licence}" "*/" _end)
string(SUBSTRING "${_licence}" 0 ${_end} _licence)
string(REGEX REPLACE "(^|\n)(/\\*| \\*) ?" "\\1" _licence "${_licence}")
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/LICENSE-xxHash" "${_licence}")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/LICENSE-xxHash" DESTINATION "${RINGHOLD_INSTALL_LICENSEDIR}")
if(NOT SKBUILD)
  install(FILES ../LICENSE DESTINATION "${RINGHOLD_INSTALL_LICENSEDIR}")
endif()
