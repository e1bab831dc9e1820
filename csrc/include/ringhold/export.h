/*
 * Visibility and compiler attributes used by the public headers.
 *
 * The library is built with hidden visibility: what RH_API marks is public, nothing else is.
 */
#ifndef RINGHOLD_EXPORT_H
#define RINGHOLD_EXPORT_H

#if defined(_WIN32) && defined(RINGHOLD_SHARED)
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
