/*
 * Goal: every status tells its name, a value that is none does too, and the library tells which
 * interface it was compiled with.
 */
#include <ringhold/ringhold.h>

#include "rh_test.h"

static void every_status_has_its_name(void)
{
    CHECK(strcmp(rh_status_name(RH_OK), "RH_OK") == 0);
    CHECK(strcmp(rh_status_name(RH_NO_MEMORY), "RH_NO_MEMORY") == 0);
    CHECK(strcmp(rh_status_name(RH_INVALID_ARGUMENT), "RH_INVALID_ARGUMENT") == 0);
    CHECK(strcmp(rh_status_name(RH_TOO_LARGE), "RH_TOO_LARGE") == 0);
    CHECK(strcmp(rh_status_name(RH_DUPLICATE_NODE), "RH_DUPLICATE_NODE") == 0);
    CHECK(strcmp(rh_status_name(RH_UNKNOWN_NODE), "RH_UNKNOWN_NODE") == 0);
    CHECK(strcmp(rh_status_name(RH_EMPTY_RING), "RH_EMPTY_RING") == 0);
    CHECK(strcmp(rh_status_name(RH_NOT_ENOUGH_NODES), "RH_NOT_ENOUGH_NODES") == 0);
    CHECK(strcmp(rh_status_name(RH_CORRUPT), "RH_CORRUPT") == 0);
    CHECK(strcmp(rh_status_name(RH_NOT_SUPPORTED), "RH_NOT_SUPPORTED") == 0);
    CHECK(strcmp(rh_status_name(RH_CONFLICT), "RH_CONFLICT") == 0);
    CHECK(strcmp(rh_status_name(RH_NOT_OWNED), "RH_NOT_OWNED") == 0);
    CHECK(strcmp(rh_status_name(RH_DEADLOCK), "RH_DEADLOCK") == 0);
    CHECK(strcmp(rh_status_name((rh_status)-100), "RH_UNKNOWN_STATUS") == 0);
}

static void the_library_has_the_interface_of_its_headers(void)
{
    CHECK_EQUAL(rh_api_version(), RH_API_VERSION);
    CHECK_EQUAL(rh_api_version() >> 16, RH_API_VERSION_MAJOR);
    CHECK_EQUAL(rh_api_version() & 0xffff, RH_API_VERSION_MINOR);
}

int main(void)
{
    RUN(every_status_has_its_name);
    RUN(the_library_has_the_interface_of_its_headers);
    return rh_test_result();
}
