/*
 * What every ring promises, whatever it was made of; held against the plain walk over its points.
 */
#ifndef RINGHOLD_TESTS_RING_PROMISES_H
#define RINGHOLD_TESTS_RING_PROMISES_H

#include "fuzz.h"

/* Keys and hashes to ask for come from what is left of the input. */
void ring_promises(const rh_ring *ring, struct fuzz_input *input);

/* rh_ring_diff of two rings of one profile tells exactly what moves. */
void move_promises(const rh_ring *from, const rh_ring *to, struct fuzz_input *input);

#endif
