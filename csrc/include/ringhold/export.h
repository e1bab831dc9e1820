/*
 * Visibility and compiler attributes used by the public headers.
 *
 * The library is built with hidden visibility. The shared one exports what RH_API marks and
 * nothing else; of the static one nothing is exported by whatever it is linked into, so that
 * several copies may live in one process, each used by its own owner.
 */
#ifndef RINGHOLD_EXPORT_H
#define RINGHOLD_EXPORT_H

#if !defined(RINGHOLD_SHARED)
#  define RH_API
#elif defined(_WIN32)
#  if defined(RINGHOLD_BUILDING)
#    define RH_API __declspec(dllexport)
#  else
#    define RH_API __declspec(dllimport)
#  endif
#elif defined(__GNUC__)
#  define RH_API __attribute__((visibility("default")))
#else
#  define RH_API
#endif

#if defined(__GNUC__)
#  define RH_NODISCARD __attribute__((warn_unused_result))
#else
#  define RH_NODISCARD
#endif

#endif
