/*
 * Running out of memory on purpose: the linker sends the allocations of our object files here
 * (-Wl,--wrap=malloc and so on), and the one that `calls_until_failure` counts down to fails.
 * Included by one file of a program.
 */
#ifndef RINGHOLD_TESTS_ALLOC_FAULTS_H
#define RINGHOLD_TESTS_ALLOC_FAULTS_H

#include <stdbool.h>
#include <stddef.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static size_t calls_until_failure; /* 0: none fails */
static size_t calls;

static bool fails_now(void)
{
    calls++;
    return calls_until_failure > 0 && --calls_until_failure == 0;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *block, size_t size)
{
    return fails_now() ? NULL : __real_realloc(block, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails_now() ? NULL : __real_aligned_alloc(alignment, size);
}

#endif
