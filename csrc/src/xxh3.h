/*
 * The only door to xxHash: the whole of it inline, so nothing is linked, no symbol of it is
 * exported, and short keys are hashed without a call. Never included by a public header.
 */
#ifndef RINGHOLD_SRC_XXH3_H
#define RINGHOLD_SRC_XXH3_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#if XXH_VERSION_NUMBER < 800
#  error "XXH3 has its final values from xxHash 0.8.0 on"
#endif

#endif
