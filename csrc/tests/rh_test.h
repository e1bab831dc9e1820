/*
 * A test program is a list of functions. CHECK and its kin report the place and go on, so one
 * run shows every failure; the program's exit code is the number of failed checks, at most 99.
 *
 *     static void adds(void) { CHECK_EQUAL(1 + 1, 2); }
 *     int main(void) { RUN(adds); return rh_test_result(); }
 */
#ifndef RINGHOLD_TESTS_RH_TEST_H
#define RINGHOLD_TESTS_RH_TEST_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ringhold/status.h>

static int rh_test_failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);              \
            rh_test_failures++;                                                                    \
        }                                                                                          \
    } while (0)

#define CHECK_EQUAL(actual, expected)                                                              \
    do {                                                                                           \
        uint64_t actual_ = (uint64_t)(actual), expected_ = (uint64_t)(expected);                   \
        if (actual_ != expected_) {                                                                \
            fprintf(stderr, "%s:%d: %s is %" PRIu64 ", not %" PRIu64 "\n", __FILE__, __LINE__,     \
                    #actual, actual_, expected_);                                                  \
            rh_test_failures++;                                                                    \
        }                                                                                          \
    } while (0)

#define CHECK_STATUS(call, expected)                                                               \
    do {                                                                                           \
        rh_status status_ = (call);                                                                \
        if (status_ != (expected)) {                                                               \
            fprintf(stderr, "%s:%d: %s returned %s, not %s\n", __FILE__, __LINE__, #call,          \
                    rh_status_name(status_), #expected);                                           \
            rh_test_failures++;                                                                    \
        }                                                                                          \
    } while (0)

/* For set-up whose failure would make everything after it meaningless. */
#define REQUIRE_OK(call)                                                                           \
    do {                                                                                           \
        rh_status status_ = (call);                                                                \
        if (status_ != RH_OK) {                                                                    \
            fprintf(stderr, "%s:%d: %s returned %s\n", __FILE__, __LINE__, #call,                  \
                    rh_status_name(status_));                                                      \
            exit(99);                                                                              \
        }                                                                                          \
    } while (0)

#define RUN(function)                                                                              \
    do {                                                                                           \
        int before_ = rh_test_failures;                                                            \
        function();                                                                                \
        printf("%s %s\n", rh_test_failures == before_ ? "ok  " : "FAIL", #function);               \
    } while (0)

static inline int rh_test_result(void)
{
    return rh_test_failures < 99 ? rh_test_failures : 99;
}

#endif
