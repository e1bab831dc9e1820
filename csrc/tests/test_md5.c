/*
 * Goal: rh_md5_digest is MD5. Method: the test suite of RFC 1321; and texts of 0 to 299 bytes, so of
 * every length modulo the block, whose digests together have a digest computed elsewhere.
 */
#include "md5.h"
#include "rh_test.h"

static void check(const void *data, size_t size, const char *expected)
{
    uint8_t digest[MD5_BYTES];
    char hex[2 * MD5_BYTES + 1];

    rh_md5_digest(data, size, digest);
    for (size_t i = 0; i < MD5_BYTES; i++) {
        snprintf(hex + 2 * i, 3, "%02x", (unsigned)digest[i]);
    }
    if (strcmp(hex, expected) != 0) {
        fprintf(stderr, "%s is not %s\n", hex, expected);
    }
    CHECK(strcmp(hex, expected) == 0);
}

static void the_suite_of_the_rfc_holds(void)
{
    static const char *const suite[][2] = {
        {"", "d41d8cd98f00b204e9800998ecf8427e"},
        {"a", "0cc175b9c0f1b6a831c399e269772661"},
        {"abc", "900150983cd24fb0d6963f7d28e17f72"},
        {"message digest", "f96b697d7cb7938d525a2f31aaf161d0"},
        {"abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"},
        {"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
         "d174ab98d277d9f5a5611c2c9f419d9f"},
        {"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
         "57edf4a22be3c955ac49da2e2107b67a"}};

    for (size_t i = 0; i < sizeof suite / sizeof *suite; i++) {
        check(suite[i][0], strlen(suite[i][0]), suite[i][1]);
    }
    check(NULL, 0, suite[0][1]);
}

static void texts_of_all_lengths_hold(void)
{
    enum { COUNT = 300 };
    static uint8_t digests[COUNT * MD5_BYTES];
    uint8_t text[COUNT] = {0};

    for (size_t size = 0; size < COUNT; size++) {
        for (size_t i = 0; i < size; i++) {
            text[i] = (uint8_t)(7 * size + i);
        }
        rh_md5_digest(text, size, digests + size * MD5_BYTES);
    }
    check(digests, sizeof digests, "62013c86fad7c16561532885a846de08");
}

int main(void)
{
    RUN(the_suite_of_the_rfc_holds);
    RUN(texts_of_all_lengths_hold);
    return rh_test_result();
}
